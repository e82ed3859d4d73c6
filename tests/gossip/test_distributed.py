"""What gossip between processes stands on: a worker's vectors, matchmaking, channels, the rendezvous."""

from __future__ import annotations

import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unlocked.errors import SettingError
from unlocked.gossip import topology
from unlocked.gossip.distributed import exchange, rendezvous, vectors
from unlocked.gossip.distributed.channel import Channel
from unlocked.gossip.distributed.matchmaking import Ended, Matchmaker
from unlocked.gossip.distributed.vectors import Vectors
from unlocked.gossip.momentum import Constants
from unlocked.gossip.reference import replay


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(vectors.time, "perf_counter", lambda: self.now)


def meet(one: Vectors, other: Vectors) -> None:
    """An averaging whose exchange takes no time."""
    first, second = one.offer().clone(), other.offer().clone()
    one.received.copy_(second)
    other.received.copy_(first)
    one.average()
    other.average()


@pytest.mark.parametrize("dynamics", ["exact", "released"])
@pytest.mark.parametrize("constants", [Constants.accelerated(8.0, 0.9), Constants.baseline()])
def test_the_update_is_the_references(monkeypatch: pytest.MonkeyPatch, dynamics: str, constants: Constants) -> None:
    """Random events, in units of 0.25 s, lead to what `replay` says."""
    clock, draws = Clock(monkeypatch), np.random.default_rng(0)
    start = torch.from_numpy(draws.normal(size=(3, 5)))
    workers = [Vectors(row, constants, dynamics) for row in start]
    for worker in workers:
        worker.begin(0.25, 0.0)
    events: list[tuple] = []
    for _ in range(60):
        clock.now += draws.exponential(0.1)
        i, j = draws.choice(3, 2, replace=False).tolist()
        if draws.random() < 0.5:
            gradient = torch.from_numpy(draws.normal(size=5))
            workers[i].descend(gradient, 0.1, torch.zeros(5, dtype=torch.float64), 0.0)
            events.append(("gradient", clock.now / 0.25, i, gradient.numpy()))
        else:
            meet(workers[i], workers[j])
            events.append(("communication", clock.now / 0.25, i, j))
    x, x_tilde = replay(events, start, constants, 0.1, dynamics)
    for k, worker in enumerate(workers):
        torch.testing.assert_close(worker.x, x[k])
        if constants.momentum:
            torch.testing.assert_close(worker.x_tilde, x_tilde[k])


def test_what_happens_meanwhile_changes_no_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """While two vectors are on their way one worker steps by a known amount and time passes: x + x~ changes by that."""
    clock, draws = Clock(monkeypatch), torch.Generator().manual_seed(0)
    one, other = (Vectors(torch.randn(50, generator=draws, dtype=torch.float64), c, "exact")
                  for c in [Constants.accelerated(20.0, 0.9)] * 2)  # fmt: skip
    for worker in (one, other):
        worker.x_tilde += torch.randn(50, generator=draws, dtype=torch.float64)
        worker.begin(1.0, 0.0)
    before = one.x + one.x_tilde + other.x + other.x_tilde
    clock.now = 0.7
    first, second = one.offer().clone(), other.offer().clone()
    clock.now = 1.9
    step = torch.ones(50, dtype=torch.float64)
    one.descend(step, 0.5, torch.zeros(50, dtype=torch.float64), 0.0)
    one.received.copy_(second)
    one.average()
    clock.now = 2.3
    other.received.copy_(first)
    other.average()
    torch.testing.assert_close(one.x + one.x_tilde + other.x + other.x_tilde, before - 2 * 0.5 * step)


def test_looking_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are as of the last event, which was `age` ago, a pause taken out; without momentum x~ is x itself."""
    clock = Clock(monkeypatch)
    worker = Vectors(torch.zeros(3), Constants(0.5, 0.5, 1.0), "exact")
    worker.x_tilde += 2.0
    worker.begin(2.0, 1.0)
    clock.now = 3.0
    worker.pass_over(2.0)
    x, x_tilde, m, age = worker.copies()
    assert (x.tolist(), x_tilde.tolist(), m.tolist(), age) == ([0.0] * 3, [2.0] * 3, [0.0] * 3, 1.5)
    x += 1.0
    assert worker.x.tolist() == [0.0] * 3
    x, x_tilde, *_ = Vectors(torch.zeros(3), Constants.baseline(), "exact").copies()
    assert x is x_tilde


def test_matchmaking_forgets_the_lost() -> None:
    """First come, first served; who is lost, or cannot be reached from a worker, is not paired with it."""
    maker = Matchmaker(topology.build("complete", 4), 0)
    assert maker.arrange(0) is None
    assert maker.arrange(1) == (1, 0)
    assert maker.arrange(1) is None  # asks for the next one in the middle of the step
    assert maker.arrange(0) == (2, 1)
    maker.part(2, 3)
    assert maker.arrange(2) is None
    assert maker.arrange(3) is None
    maker.drop(2)
    assert maker.arrange(1) == (3, 3)
    assert 2 not in {j for others in maker.neighbours.values() for j in others}


@pytest.mark.parametrize(
    ("said", "lost", "ended", "reported"),
    [
        ([(0, True), (1, True)], None, Ended({(0, 1): 1}, 0, 0), False),
        ([(0, True), (1, False)], None, Ended({}, 1, 0), True),
        ([(0, False), (1, False)], None, Ended({}, 0, 1), True),
        ([(0, True)], 1, Ended({}, 1, 0), False),
        ([(0, False)], 1, Ended({}, 0, 1), False),
        ([], 1, Ended({}, 0, 0), False),  # the other has not yet said
    ],
)
def test_every_gossip_step_is_counted_once(said: Any, lost: int | None, ended: Ended, reported: bool) -> None:
    """When both sides have said what became of it or are lost; those that failed between living workers are reported,
    with a reason, and the pair is not made again.
    """
    maker = Matchmaker(topology.build("complete", 2), 0)
    maker.arrange(1)
    maker.arrange(0)
    failed = [maker.confirm(1, worker, applied, "" if applied else "why") for worker, applied in said]
    if lost is not None:
        maker.drop(lost)
    assert maker.ended == ended
    assert bool(maker.under_way) == (not said)
    assert [step.reason for step in failed if step] == ["why"] * reported
    if not all(applied for _, applied in said):
        assert maker.neighbours == {0: [], 1: []}


def test_a_channel_ends_for_both() -> None:
    """Hanging up wakes whoever waits for a message."""
    here, there = (Channel(end) for end in multiprocessing.Pipe())
    there.send({"x": torch.arange(3)})
    assert here.receive()["x"].tolist() == [0, 1, 2]
    heard: list[str] = []

    def listen() -> None:
        try:
            here.receive()
        except EOFError:
            heard.append("the end")

    waiting = threading.Thread(target=listen)
    waiting.start()
    here.hang_up()
    waiting.join(10)
    assert heard == ["the end"]
    with pytest.raises(OSError):  # noqa: PT011 - EPIPE or ECONNRESET
        there.send(1)
    here.hang_up()


def test_strangers_are_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not know the key is turned away, and the next one is let in."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(rendezvous, "rendezvous", lambda: store)
    reception = rendezvous.Reception(2, "lo")
    host, port, key = rendezvous.coordinator()
    assert host == "127.0.0.1"

    def come() -> None:
        with pytest.raises(multiprocessing.AuthenticationError):
            rendezvous.connect(host, port, b"wrong", 1)
        channels.append(rendezvous.connect(host, port, key, 1))

    channels: list[Channel] = []
    guest = threading.Thread(target=come)
    guest.start()
    ((rank, connection),) = reception.arrivals(20)
    guest.join(20)
    Channel(connection).send("welcome")
    assert rank == 1
    assert channels[0].receive() == "welcome"
    assert list(reception.arrivals(0.1)) == []  # nobody else comes
    reception.close()


def test_interfaces() -> None:
    """Loopback has its address; another one is looked up, and one that is not there is refused."""
    assert rendezvous.interface_address("lo") == "127.0.0.1"
    assert exchange.interface_name("eth7") == "eth7"
    with pytest.raises(SettingError, match="lo"):
        rendezvous.interface_address("nosuch0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_trace_shows_gossip_beside_gradients(tmp_path: Path) -> None:
    """On a GPU copies and updates of the gossip's stream run while the gradient's stream computes."""
    rounds = 30
    worker = Vectors(torch.zeros(2**24, device="cuda"), Constants.accelerated(20.0, 0.9), "exact")
    worker.begin(1.0, 0.0)
    staging, matrix = torch.empty(2**24, pin_memory=True), torch.randn(4096, 4096, device="cuda")

    def gossip() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(rounds):
                staging.copy_(worker.offer(), non_blocking=True)
                exchange.finish_stream(worker.x.device)
                worker.received.copy_(staging, non_blocking=True)
                worker.average()

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        beside = threading.Thread(target=gossip)
        beside.start()
        for _ in range(rounds):
            worker.start_gradient()
            matrix = torch.nn.functional.normalize(matrix @ matrix)
            torch.cuda.current_stream().synchronize()
        beside.join()
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    work = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy")]
    spans = [(e["ts"], e["ts"] + e["dur"], e["args"]["stream"]) for e in work]
    assert any(a[2] != b[2] and a[0] < b[1] and b[0] < a[1] for a in spans for b in spans)
