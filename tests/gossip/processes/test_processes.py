"""Whole runs of the engine of processes: every gradient and averaging accounted for, sums conserved, no residue."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from omegaconf import DictConfig

from unlocked import record
from unlocked.errors import SettingError
from unlocked.gossip import allreduce, topology
from unlocked.gossip.processes.messages import State, Tally
from unlocked.gossip.processes.training import Training

Short = Callable[..., DictConfig]
Started = Callable[[DictConfig], Training]


def fits(graph: str, workers: int) -> bool:
    """Whether there is such a graph."""
    try:
        topology.check(graph, workers)
    except SettingError:
        return False
    return True


PLACES = [(n, graph) for n in (2, 4, 8) for graph in topology.GRAPHS if fits(graph, n)]
WAYS = list(itertools.product((1.0, 0.5, 2.0), ("acid", "baseline"), ("mlp", "conv"), ("poisson", "deterministic")))
RUNS = [
    (*place, *way)
    for place, way in itertools.islice(zip(itertools.cycle(PLACES), itertools.cycle(WAYS), strict=False), 50)
]


def check_accounts(training: Training) -> dict[str, Any]:
    """Gradients are exact, and both sides of every pair know of the same averagings; returns the counts."""
    counts, tallies = training.counts(), training.tallies()
    assert counts["gradients"] == sum(counts["gradients_per_worker"]) == training.total
    assert counts["gradients_per_worker"] == [tally.steps for tally in tallies]
    assert counts["deaths"] == []
    if training.run.method == "allreduce":
        return counts
    assert counts["communications_one_sided"] == counts["communications_failed"] == 0
    assert sum(counts["staleness"]) == sum(counts["averagings_between_gradients"]) == counts["gradients"]
    graph = topology.build(training.run.graph, training.run.workers)
    talks = [0] * training.run.workers
    for i, j, count in counts["communications_per_edge"]:
        assert graph.has_edge(i, j)
        talks[i] += count
        talks[j] += count
    assert talks == [tally.averagings for tally in tallies]
    return counts


def test_fifty_runs_in_a_row(short: Short, started: Started, drive: Any) -> None:
    """2, 4 and 8 workers, every graph that fits, both methods, rates below, at and above 1: none hangs or loses a step.

    Both networks and both laws of what a gradient owes are in it.
    """
    assert {run[2:4] for run in RUNS} == set(itertools.product((0.5, 1.0, 2.0), ("acid", "baseline")))
    for workers, graph, rate, method, network, owed in RUNS:
        settings = {"workers": workers, "graph": graph, "rate": rate, "method": method, "owed": owed}
        training = started(short(12 * workers, settings | {"model.name": network}))
        found = drive(training)
        counts = check_accounts(training)
        assert counts["communications"] <= rate * training.total  # owed by both sides of each
        assert counts["communications"] > 0
        assert [m.step for m in found] == training.bounds
        assert {"consensus_distance", "train_loss", "test_accuracy"} <= set(found[-1].metrics)
        assert not alive(training)


def workers_left() -> list[int]:
    """Processes that the fork server of this process has made and that have not ended."""
    servers = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    assert servers
    return [c.pid for server in servers for c in server.children() if c.status() != psutil.STATUS_ZOMBIE]


def alive(training: Training) -> list[int]:
    """Worker processes that are still there."""
    assert training.coordinator is not None
    processes = [member.process for member in training.coordinator.members.values()]
    return [p.pid for p in processes if p is not None and p.is_alive()]


@pytest.mark.parametrize("method", ["acid", "baseline"])
def test_sums_are_conserved(short: Short, started: Started, drive: Any, method: str) -> None:
    """With a learning rate of (next to) 0 the sum over workers of x + x~ stays what it was, to rounding.

    The workers start apart, so the averagings move them; gossip and gradients overlap all the time.
    """
    run = short(800, {"workers": 4, "rate": 2.0, "method": method, "optim.lr": 1e-38, "optim.momentum": 0.0})
    training = started(run)
    draws = torch.Generator().manual_seed(0)
    size, states = len(training.start), {}
    for worker in range(4):
        x = torch.randn(size, generator=draws)
        states[worker] = State(x, x + torch.randn(size, generator=draws), torch.zeros(size), 0.0, 0, {}, Tally())
        if method == "baseline":
            states[worker] = State(x, x, torch.zeros(size), 0.0, 0, {}, Tally())
    training.states = states
    distance = drive(training)[-1].metrics["consensus_distance"]
    assert check_accounts(training)["communications"] > 100
    assert distance < 0.01 * size  # they did meet
    assert training.coordinator is not None
    views = [member.final for member in training.coordinator.members.values()]
    before = sum(s.x.double() + s.x_tilde.double() for s in states.values())
    after = sum(v.x.double() + v.x_tilde.double() for v in views)
    assert (after - before).abs().max() < 2e-4


def test_the_final_average_is_evaluated(short: Short, started: Started, drive: Any) -> None:
    """The last row is of the mean of the vectors that the workers had when their gossip was over."""
    training = started(short(80))
    metrics = drive(training)[-1].metrics
    views = [member.final for member in training.coordinator.members.values()]
    mean = torch.stack([view.x.double() for view in views]).mean(0)
    spread = sum(float((view.x.double() - mean).square().sum()) for view in views) / 4
    assert metrics["consensus_distance"] == pytest.approx(spread, rel=1e-6)
    again = training.evaluator.averaged(mean.float(), [{}])
    assert metrics["test_loss"] == pytest.approx(again["test_loss"], rel=1e-6)
    assert len(metrics["worker_test_accuracy"]) == len(metrics["worker_idle_seconds"]) == 4


def test_all_reduce_is_the_virtual_engines(short: Short, started: Started, drive: Any, data_of: Any) -> None:
    """DistributedDataParallel does the same steps on the same data: the same vector to rounding."""
    run = short(120, {"method": "allreduce", "optim.weight_decay": 0.01})
    training = started(run)
    found = drive(training)
    assert check_accounts(training)["gradients_per_worker"] == [30] * 4
    virtual = allreduce.Training(run, data_of(run))
    for span in range(virtual.spans):
        for _ in virtual.advance(span, 0):
            pass
    mine = training.coordinator.members[2].final.x
    assert (mine - virtual.synchronous.x).abs().max() < 1e-4
    assert found[-1].metrics["consensus_distance"] < 1e-9


def test_batch_norm_statistics_come_along(short: Short, started: Started, drive: Any) -> None:
    """A network with BatchNorm: every worker sends statistics of its own, which the average may use."""
    changes = {
        "workers": 2,
        "graph": "complete",
        "model.name": "resnet18",
        "model.width": 0.0625,
        "batch_norm": "average",
    }
    training = started(short(8, changes, **{"evaluation.points": 1}))
    drive(training)
    one, two = (member.final.buffers for member in training.coordinator.members.values())
    assert one.keys() == two.keys()
    assert any((one[name] != two[name]).any() for name in one if name.endswith("running_mean"))


def test_a_slow_worker_holds_nobody_up(short: Short, started: Started, drive: Any) -> None:
    """The others do its share: the slow worker has fewer gradients, and the total is as asked for."""
    training = started(short(400, {"clock.slow_workers": 1, "clock.slow_factor": 8.0}))
    drive(training)
    mine, *others = check_accounts(training)["gradients_per_worker"]
    assert mine < min(others)


def test_continued_runs_lose_nothing(short: Short, started: Started, drive: Any, data_of: Any) -> None:
    """A state taken in mid-run and restored continues: gradients, averagings and seconds go on counting."""
    run = short(240, rate=2.0)
    first = started(run)
    for count, _ in enumerate(first.advance(0, 0), 1):
        if count == 60:
            break
    state = first.state()
    before = {worker: own["tally"]["steps"] for worker, own in state["states"].items()}
    first.close()
    second = started(run)
    second.restore(state)
    second.measure(0)
    for span in range(second.spans):
        for _ in second.advance(span, 60 if span == 0 else 0):
            pass
        last = second.measure(span + 1)
    counts = check_accounts(second)
    assert 60 <= sum(before.values()) <= 240
    assert all(done >= before[worker] for worker, done in enumerate(counts["gradients_per_worker"]))
    assert last.metrics["training_seconds"] > state["seconds"] > 0


def test_nobody_spins(short: Short, started: Started) -> None:
    """While nothing may be done, four workers and their threads use next to no CPU time."""
    training = started(short(4000))
    for count, _ in enumerate(training.advance(0, 0), 1):
        if count == 100:
            break
    coordinator = training.coordinator
    assert coordinator is not None
    coordinator.paused = True
    coordinator.wait(coordinator.quiet)
    workers = [psutil.Process(member.process.pid) for member in coordinator.members.values()]

    def used() -> float:
        return sum(sum(worker.cpu_times()[:2]) for worker in workers)

    before = used()
    assert not coordinator.closing.wait(1.0)
    assert used() - before < 0.2


def test_nothing_is_left(short: Short, started: Started, drive: Any) -> None:
    """No worker, no shared memory, no open port, no thread."""
    import threading

    memory, threads = set(os.listdir("/dev/shm")), set(threading.enumerate())
    training = started(short(40))
    drive(training)
    assert not alive(training)
    assert set(os.listdir("/dev/shm")) <= memory
    assert set(threading.enumerate()) <= threads
    del training.store
    ports = [c for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert ports == []


def test_only_loopback_is_listened_on(short: Short, started: Started) -> None:
    """While a run goes on with the default interface, no process of it can be reached from outside."""
    training = started(short(4000))
    for count, _ in enumerate(training.advance(0, 0), 1):
        if count == 400:
            break
    everybody = [os.getpid(), *(member.process.pid for member in training.coordinator.members.values())]
    found = [c for pid in everybody for c in psutil.Process(pid).net_connections("inet")]
    listening = [c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN]
    assert listening
    assert set(listening) == {"127.0.0.1"}


def test_a_record_as_any_other(short: Short, trained: Any) -> None:
    """`train` leaves a normal record, with what workers spent their time on in its history."""
    found = trained(short(80))
    assert isinstance(found, record.Record)
    assert found.summary["status"] == "completed"
    assert found.summary["counts"]["gradients"] == 80
    assert len(found.values("worker_transfer_seconds")) == 4
    assert found.series("training_seconds")["value"].is_monotonic_increasing
    assert Path(found.folder).name.startswith("processes-acid-ring-n4")


def test_divergence_is_a_result(short: Short, trained: Any) -> None:
    """A loss that is no longer a number ends the run as diverged, and its processes."""
    found = trained(short(2000, {"optim.lr": 1e20, "optim.schedule": "constant"}))
    assert found.summary["status"] == "diverged"
    assert not workers_left()
