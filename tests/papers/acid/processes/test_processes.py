"""Whole runs of the engine of processes: every gradient and averaging accounted for, sums conserved, no residue."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from driving import Short, Started, advance_to, check_accounts, drive, finals, pid_of

from graphs import fits
from unlocked.artifact import record
from unlocked.gossip import topology
from unlocked.papers.acid.processes.state import State, Tally
from unlocked.papers.acid.processes.training import ProcessTraining
from unlocked.papers.acid.synchronous import AllReduceTraining

PLACES = [(n, graph) for n in (2, 4, 8) for graph in topology.GRAPHS if fits(graph, n)]
WAYS = list(itertools.product((1.0, 0.5, 2.0), ("acid", "baseline"), ("mlp", "conv")))
NAMES = ("workers", "graph", "rate", "method", "model.name")
RUNS = [
    dict(zip(NAMES, (*place, *way), strict=True))
    for place, way in itertools.islice(zip(itertools.cycle(PLACES), itertools.cycle(WAYS), strict=False), 30)
]


def test_thirty_runs_in_a_row(short: Short, started: Started) -> None:
    """2, 4 and 8 workers, every graph that fits, both methods, both networks, rates below, at and above 1: none hangs
    or loses a step.
    """
    assert {(run["rate"], run["method"], run["model.name"]) for run in RUNS} == set(WAYS)
    for settings in RUNS:
        training = started(short(12 * settings["workers"], settings))
        measured = drive(training)
        counts = check_accounts(training)
        assert counts["communications"] > 0
        assert [m.step for m in measured] == training.bounds
        assert {"consensus_distance", "train_loss", "test_accuracy"} <= set(measured[-1].metrics)
        assert not alive(training)


def workers_left() -> list[int]:
    """Processes that the fork server of this process has made and that have not ended."""
    servers = [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]
    assert servers
    return [c.pid for server in servers for c in server.children() if c.status() != psutil.STATUS_ZOMBIE]


def alive(training: ProcessTraining) -> list[int]:
    """Worker processes that are still there."""
    assert training.coordinator is not None
    processes = [member.process for member in training.coordinator.members.values()]
    return [p.pid for p in processes if p is not None and p.pid is not None and p.is_alive()]


@pytest.mark.parametrize("method", ["acid", "baseline"])
def test_sums_are_conserved(short: Short, started: Started, method: str) -> None:
    """With a learning rate of (next to) 0 the sum over workers of x + x~ stays what it was, to rounding.

    The workers start apart, so the averagings move them; gossip and gradients overlap all the time.
    """
    training = started(short(800, {"rate": 2.0, "method": method, "optim.lr": 1e-38, "optim.momentum": 0.0}))
    draws = torch.Generator().manual_seed(0)
    size, states = len(training.start), {}
    for worker in range(4):
        x = torch.randn(size, generator=draws)
        x_tilde = x + torch.randn(size, generator=draws) if method == "acid" else x
        states[worker] = State(x, x_tilde, torch.zeros(size), 0.0, 0, {}, Tally())
    training.past.states |= states
    distance = drive(training)[-1].metrics["consensus_distance"]
    assert check_accounts(training)["communications"] > 100
    assert distance < 0.01 * size  # they did meet
    sums = [sum(s.x.double() + s.x_tilde.double() for s in own.values()) for own in (states, finals(training))]
    assert (sums[1] - sums[0]).abs().max() < 2e-4


def test_the_final_average_is_evaluated(short: Short, started: Started) -> None:
    """The last row is of the mean of the vectors that the workers had when their gossip was over."""
    training = started(short(80, {"method": "baseline"}))
    metrics = drive(training)[-1].metrics
    vectors = torch.stack([state.x.double() for state in finals(training).values()])
    spread = float((vectors - vectors.mean(0)).square().sum()) / 4
    assert metrics["consensus_distance"] == pytest.approx(spread, rel=1e-6)
    again = training.measures.evaluator.averaged(vectors.mean(0).float(), [{}])
    assert metrics["test_loss"] == pytest.approx(again["test_loss"], rel=1e-6)
    assert len(metrics["worker_test_accuracy"]) == len(metrics["worker_idle_seconds"]) == 4


def test_all_reduce_is_the_simulators(short: Short, started: Started, tiny_run: Any, data_of: Any) -> None:
    """DistributedDataParallel does the same steps on the same data: the same vector to rounding."""
    changes = {"method": "allreduce", "optim.weight_decay": 0.01, "optim.clip": 0.3}
    run = short(120, changes)
    training = started(run)
    measured = drive(training)
    assert check_accounts(training)["gradients_per_worker"] == [30] * 4
    simulated = AllReduceTraining(tiny_run(changes | {"optim.epochs": run.optim.epochs}), data_of(run))
    for span in range(simulated.spans):
        for _ in simulated.advance(span, 0):
            pass
    assert (finals(training)[2].x - simulated.x).abs().max() < 1e-4
    assert measured[-1].metrics["consensus_distance"] < 1e-9


def test_gradients_are_clipped(short: Short, started: Started) -> None:
    """Without SGD momentum the buffer is the last gradient: as long as the clip allows, in every worker."""
    settings = {"optim.clip": 0.2, "optim.momentum": 0.0, "optim.weight_decay": 0.0, "evaluation.points": 1}
    training = started(short(20, {"workers": 2, "graph": "complete"} | settings))
    drive(training)
    assert [float(state.m.norm()) for state in finals(training).values()] == pytest.approx([0.2, 0.2], rel=1e-3)


def test_batch_norm_statistics_come_along(short: Short, started: Started) -> None:
    """A network with BatchNorm: every worker sends statistics of its own, which the average may use."""
    model = {"model.name": "resnet18", "model.width": 0.0625, "batch_norm": "average"}
    training = started(short(8, model | {"workers": 2, "graph": "complete", "evaluation.points": 1}))
    drive(training)
    one, two = (state.buffers for state in finals(training).values())
    assert one.keys() == two.keys()
    assert any((one[name] != two[name]).any() for name in one if name.endswith("running_mean"))


def test_a_slow_worker_holds_nobody_up(short: Short, started: Started) -> None:
    """The others do its share: the slow worker has fewer gradients, and the total is as asked for."""
    training = started(short(400, {"clock.slow_workers": 1, "clock.slow_factor": 8.0}))
    drive(training)
    mine, *others = check_accounts(training)["gradients_per_worker"]
    assert mine < sum(others) / len(others)  # one of the others may be held up by the machine


def test_continued_runs_lose_nothing(short: Short, started: Started) -> None:
    """A state taken in mid-run and restored continues: gradients, averagings and seconds go on counting."""
    run = short(240, {"rate": 2.0})
    first = started(run)
    advance_to(first, 60)
    state = first.state()
    before = {worker: own["tally"]["steps"] for worker, own in state["states"].items()}
    first.close()
    second = started(run)
    short_vector = {**state["states"][0], "x": state["states"][0]["x"][:3]}
    with pytest.raises(ValueError, match=f"have not {len(second.start)} parameters"):
        second.restore({**state, "states": {**state["states"], 0: short_vector}})
    second.restore(state)
    last = drive(second)[-1]
    counts = check_accounts(second)
    assert 60 <= sum(before.values()) <= 240
    assert all(done >= before[worker] for worker, done in enumerate(counts["gradients_per_worker"]))
    assert last.metrics["training_seconds"] > state["seconds"] > 0


def test_a_run_that_lacks_its_end_alone_gets_it(short: Short, started: Started) -> None:
    """Saved when all gradients are done: the workers are set up once more, for the average."""
    first, second = started(short(40)), started(short(40))
    for span in range(first.spans):
        for _ in first.advance(span, 0):
            pass
    state = first.state()
    first.close()
    second.restore(state)
    last = drive(second)[-1]
    assert check_accounts(second)["gradients_per_worker"] == [own["tally"]["steps"] for own in state["states"].values()]
    assert last.metrics["training_seconds"] == state["seconds"] > 0


def test_nobody_spins(short: Short, started: Started) -> None:
    """While nothing may be done, four workers and their threads use next to no CPU time."""
    training = started(short(4000))
    coordinator = advance_to(training, 100)
    coordinator.paused = True
    coordinator.wait(coordinator.quiet)
    workers = [psutil.Process(pid_of(training, worker)) for worker in range(4)]

    def used() -> float:
        return sum(sum(worker.cpu_times()[:2]) for worker in workers)

    before = used()
    assert not coordinator.closing.wait(1.0)
    assert used() - before < 0.2


def listening(*pids: int) -> list[str]:
    """Addresses on which these processes can be reached."""
    connections = [c for pid in pids for c in psutil.Process(pid).net_connections("inet")]
    return [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN]


def test_nothing_is_left(short: Short, started: Started) -> None:
    """No worker, no shared memory, no open port, no thread."""
    memory, threads = set(os.listdir("/dev/shm")), set(threading.enumerate())
    training = started(short(40))
    drive(training)
    assert not alive(training)
    assert set(os.listdir("/dev/shm")) <= memory
    assert set(threading.enumerate()) <= threads
    assert listening(os.getpid()) == []


def test_only_loopback_is_listened_on(short: Short, started: Started) -> None:
    """While a run goes on with the default interface, no process of it can be reached from outside."""
    training = started(short(4000))
    advance_to(training, 400)
    assert set(listening(os.getpid(), *(pid_of(training, worker) for worker in range(4)))) == {"127.0.0.1"}


def test_a_record_as_any_other(short: Short, trained: Any) -> None:
    """`train` leaves a normal record, with what workers spent their time on in its history."""
    made = trained(short(80))
    assert isinstance(made, record.Record)
    assert made.summary["status"] == "completed"
    assert made.summary["counts"]["gradients"] == 80
    assert len(made.values("worker_transfer_seconds")) == 4
    assert made.series("training_seconds")["value"].is_monotonic_increasing
    assert Path(made.folder).name.startswith("processes-acid-ring-n4")


def test_divergence_is_a_result(short: Short, trained: Any) -> None:
    """A loss that is no longer a number ends the run as diverged, and its processes."""
    made = trained(short(2000, {"optim.lr": 1e6, "optim.weight_decay": 10.0}))
    assert made.summary["status"] == "diverged"
    assert not workers_left()
