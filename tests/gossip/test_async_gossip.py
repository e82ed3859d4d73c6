"""`AsyncGossip` between real processes: means, dynamics, deaths, early ends, checkpoints, and what it refuses."""

from __future__ import annotations

import random
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import gossiping
import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from gossiping import network, run
from torch import nn

from unlocked.errors import SettingError
from unlocked.gossip import AsyncGossip, topology
from unlocked.gossip.distributed import server
from unlocked.gossip.distributed.async_gossip import Worker, trained
from unlocked.gossip.distributed.wire import introduced, start_thread
from unlocked.gossip.momentum import Constants
from unlocked.gossip.reference import replay

SGD = torch.optim.SGD
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model_gossip.py"


def train(folder: Path, workers: int, last: int = 0, **options: Any) -> list[Any]:
    return run(folder, workers, partial(gossiping.train, **options), last=last)


def pairs(results: list[Any]) -> Counter[tuple[int, int]]:
    """Averagings of each pair, as its lower rank counted them."""
    counts = ((i, result["statistics"]["peers"]) for i, result in enumerate(results) if isinstance(result, dict))
    return Counter({(i, j): count for i, peers in counts for j, count in peers.items() if i < j})


@pytest.mark.parametrize(
    ("workers", "options"),
    [
        (2, {"graph": "ring", "optimizer": "Adam"}),
        (3, {"graph": "star", "rate": 2.0, "momentum": False}),
        (4, {"graph": "exponential", "optimizer": "AdamW"}),
        (8, {"graph": "torus", "strength": 0.5}),
    ],
)
def test_all_end_with_one_mean(tmp_path: Path, workers: int, options: dict[str, Any]) -> None:
    """From one start, with different numbers of steps; both sides count the same, neighbours alone meet; the mean over
    workers' parameters and BatchNorm statistics is what all have in the end.
    """
    results = train(tmp_path, workers, **options)
    before = np.array([result["before"] for result in results])
    for rank, result in enumerate(results):
        said = result["statistics"]
        assert result["start"] == results[0]["start"]
        assert result["after"] == results[0]["after"]
        assert (result["workers"], said["steps"], said["failed"]) == (workers, 40 + 5 * rank, {})
        assert all(results[peer]["statistics"]["peers"][rank] == count for peer, count in said["peers"].items())
        assert set(said["lost"].values()) <= {"ended"}
        assert not result["alive"]
    np.testing.assert_allclose(results[0]["after"], before.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert len({tuple(row) for row in before.tolist()}) == workers
    edges = topology.build({"ring": "path"}.get(options["graph"], options["graph"]), workers).edges
    assert set(pairs(results)) <= {tuple(sorted(edge)) for edge in edges}
    assert pairs(results).total() > 5 * workers


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGKILL), (2, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_the_others_go_on(tmp_path: Path, rank: int, number: int) -> None:
    """After a worker, rank 0 too, was killed or has stopped at some moment; the mean is over those who can answer."""
    stopped = number == signal.SIGSTOP
    hit, timeout = (rank, number, random.uniform(0, 0.1)), 1.0 if stopped else 10.0
    results = train(tmp_path, 4, last=rank, hit=hit, timeout=timeout, steps=(60, 0), pause=0.003)
    assert results.pop(rank) == (None if stopped else -9)
    for result in results[:3]:
        assert result["statistics"]["lost"].get(rank) == (None if stopped else "lost its connection")
        assert (result["workers"], result["statistics"]["steps"]) == (3, 60)
        assert result["after"] == results[0]["after"]


@pytest.mark.slow
@pytest.mark.faults
def test_thirty_runs_ten_with_kills(tmp_path: Path) -> None:
    """Whatever the graph, the optimiser, the rate and the moment: all who live end, and those of one mean are equal."""
    draw = random.Random(0)
    for number in range(30):
        workers = draw.choice([2, 3, 4, 6])
        hit = (draw.randrange(workers), signal.SIGKILL, draw.uniform(0, 0.2)) if number % 3 == 0 else None
        options = {"graph": draw.choice(["ring", "complete", "star"]), "rate": draw.choice([0.5, 1, 3]), "hit": hit}
        options |= {"optimizer": draw.choice(["SGD", "Adam"]), "steps": (draw.randrange(5, 60), draw.choice([0, 5]))}
        results = train(tmp_path / str(number), workers, last=hit[0] if hit else 0, **options)
        alive = [result for result in results if isinstance(result, dict)]
        assert len(alive) >= workers - bool(hit), (options, results)
        for count in (workers, workers - 1):
            assert len({tuple(r["after"]) for r in alive if r["workers"] == count}) <= 1
        assert {result["workers"] for result in alive} <= {workers, workers - bool(hit)}


def test_who_ends_early_or_never_comes(tmp_path: Path) -> None:
    """A worker that fails leaves the others in order; one that does not call `average_` costs the others their timeout;
    the same model gossips again.
    """
    results = run(tmp_path, 3, gossiping.leave, str(tmp_path))
    assert all(not result["alive"] for result in results)
    for rank in (0, 2):
        assert results[rank]["lost"][1] == "ended"
        assert results[rank]["workers"] == 2
        assert 0.5 < results[rank]["took"] < 8
    assert results[1]["workers"] == 1
    assert results[0]["services"]
    assert not any(map(psutil.pid_exists, results[0]["services"]))


def test_without_the_service_training_goes_on(tmp_path: Path) -> None:
    for result in run(tmp_path, 2, gossiping.lose_the_service):
        assert result["workers"] == 1
        assert result["statistics"]["steps"] == 40
        assert result["statistics"]["gossip"] == "the pairing service is lost"


def in_order(one: list[tuple], other: list[tuple]) -> list[tuple]:
    """Both ranks' events for `replay`, in an order that both agree with: what one asks the other answers next."""
    result: list[tuple] = []
    rest = [list(one), list(other)]
    while any(rest):
        for rank, events in enumerate(rest):
            while events and events[0][0] == "gradient":
                _, time, direction = events.pop(0)
                result.append(("gradient", time, rank, direction))
        if any(rest):
            (kind, time, _), (other_kind, *_) = (events.pop(0) for events in rest)
            assert {kind, other_kind} == {"asks", "answers"}
            result.append(("communication", time, 0, 1))
    return result


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("lockstep", [True, False])
def test_the_dynamics_are_the_references(tmp_path: Path, lockstep: bool, dtype: torch.dtype, close: float) -> None:
    """With momentum by a clock that the test moves; without it as it comes, gradients and gossip steps side by side."""
    results = run(tmp_path, 2, gossiping.record, lockstep, dtype)
    events = in_order(*(result["events"] for result in results))
    if not lockstep:
        events = [(kind, float(k), *rest) for k, (kind, _, *rest) in enumerate(events)]
    constants = Constants.baseline()
    if lockstep:
        constants = Constants.accelerated(*topology.chi(topology.build("path", 2)), strength=4.0)
    x, x_tilde = replay(events, [result["start"] for result in results], constants, 1.0)
    assert sum(kind == "communication" for kind, *_ in events) >= 10
    for rank, result in enumerate(results):
        np.testing.assert_allclose(result["x"], x[rank], rtol=0, atol=close)
        if lockstep:
            np.testing.assert_allclose(result["x_tilde"], x_tilde[rank], rtol=0, atol=close)


def test_a_state_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    """Vectors, counts, the time since the last event, and the communications that come due."""
    for result in run(tmp_path, 2, gossiping.save_and_load):
        state, again = result["state"], result["again"]
        assert again.pop("age") == pytest.approx(state.pop("age"), abs=20)
        assert state == again
        assert state["x"] != state["x_tilde"]
        assert state["counts"]["steps"] == 20
        assert result["due"] == result["due_again"]
        assert result["weight"] == state["x"][: len(result["weight"])]


def test_nobody_averages_with_who_has_not_begun(tmp_path: Path) -> None:
    """A rank that is still loading its checkpoint is asked in vain; then a model that was moved is refused."""
    for result in run(tmp_path, 2, gossiping.begin_late):
        assert result["averagings"] == 0
        assert result["later"] > 0
        assert "must stay where AsyncGossip put them" in result["moved"]


def test_who_reads_nothing_keeps_nobody_waiting() -> None:
    """The service sends one worker a mean that fills its connection; the others have theirs, and the next one."""
    service, channels = server.Service(b"key"), []
    for rank in range(3):
        here, there = socket.socketpair()
        start_thread(service.welcome, there)
        channels.append(introduced(here, b"key", rank, server=False)[0])
        here.settimeout(20)
    array = np.ones(4_000_000, np.float32)
    with service.changed:
        assert service.changed.wait_for(lambda: len(service.here) == 3, 20)
    for channel in channels:
        channel.send("share", 7, array, 20.0)
    for number, workers in ((7, 3), (8, 2)):
        for channel in channels[:2]:
            which, count, mean = next(rest for word, *rest in iter(channel.receive, None) if word == "mean")
            assert (which, count) == (number, workers)
            assert np.array_equal(mean, array)
            channel.send("share", 8, array, 20.0)
        channels[2].hang_up()  # so that the next one is of two
    for channel in channels:
        channel.hang_up()


def test_the_model_keeps_its_layout() -> None:
    """Its parameters are views of one vector, with the values and strides that they had."""
    model, like = network(0), network(0)
    worker = Worker(list(model.parameters()), Constants.baseline())
    for mine, before in zip(model.parameters(), like.parameters(), strict=True):
        assert mine.stride() == before.stride()
        assert torch.equal(mine, before)
    assert torch.equal(worker.read, worker.x)
    worker.read.zero_()
    assert all(not p.any() for p in model.parameters())


def test_ranks_that_disagree_all_say_so(tmp_path: Path) -> None:
    assert ["unlike rank 0's" in said for said in run(tmp_path, 2, gossiping.disagree)] == [True, True]


@pytest.mark.parametrize(
    ("options", "workers", "word"),
    [
        ({"graph": "nosuch"}, 4, "graph = 'nosuch': must be one of"),
        ({"graph": "hypercube"}, 6, "workers = 6: must be a power of two"),
        ({}, 1, "workers = 1: must be at least 2"),
        ({"rate": 0}, 4, "rate = 0"),
        ({"rate": float("nan"), "momentum": False}, 4, "rate = nan"),
        ({"strength": -1}, 4, "strength = -1"),
        ({"timeout": 0}, 4, "timeout = 0: must be a number of seconds"),
        ({"timeout": float("inf")}, 4, "timeout = inf"),
    ],
)
def test_refuses(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], workers: int, word: str) -> None:
    """In one line, before anything is said to others."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda _: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda _: workers)
    model = network(0)
    with pytest.raises(SettingError, match=word) as refusal:
        AsyncGossip(model, SGD(model.parameters(), lr=0.1), **options)
    assert "\n" not in str(refusal.value)


def test_refuses_to_begin_without_a_process_group() -> None:
    model = network(0)
    with pytest.raises(SettingError, match="init_process_group"):
        AsyncGossip(model, SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            lambda m: m.register_parameter("odd", nn.Parameter(torch.eye(3).to_sparse())),
            "'odd': must be a dense",
        ),
        (lambda m: m.register_parameter("odd", nn.Parameter(torch.zeros(3).cfloat())), "floating"),
        (lambda m: m[3].double(), "torch.float32 on cpu, torch.float64 on cpu"),
        (lambda m: m[3].to("meta"), "one device"),
        (lambda m: m.requires_grad_(False), "nothing to train"),
    ],
)
def test_refuses_parameters(change: Any, word: str) -> None:
    model = network(0)
    change(model)
    with pytest.raises(SettingError, match=word):
        trained(model, SGD([nn.Parameter(torch.zeros(1))], lr=0.1))


def test_refuses_an_optimiser_of_something_else() -> None:
    with pytest.raises(SettingError, match="optimizer = 'SGD'"):
        trained(network(0), SGD(network(0).parameters(), lr=0.1))


def test_the_example() -> None:
    """Gossip beside AR-SGD under torchrun: both learn; the slow worker keeps nobody from doing more gradients."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", str(EXAMPLE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(float(accuracy) > 0.9 for accuracy in re.findall(r"accuracy (\S+)", done.stdout)), done.stdout
    gradients = [int(count) for count in re.findall(r"(\d+) gradients", done.stdout)]
    assert gradients[:4] == [150] * 4
    assert min(gradients[5:]) > gradients[4]


GROUP_ENDS = """
import os, sys, torch, torch.distributed as dist
from unlocked.gossip import AsyncGossip
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
import torch.distributed.nn.functional  # as an optimiser and DistributedDataParallel do
dist.destroy_process_group()
print(*(open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_no_thread_outlives_the_process_group(tmp_path: Path) -> None:
    """One that did would abort the process if it had tensors to free while the interpreter ends."""
    words = [sys.executable, "-c", GROUP_ENDS, str(tmp_path / "store")]
    assert "gloo" not in subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
