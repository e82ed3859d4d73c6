"""What gossip between processes stands on: a worker's vectors, averagings, messages, the rendezvous, the key."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from unlocked.errors import MachineError, SettingError
from unlocked.gossip import topology
from unlocked.gossip.distributed import rendezvous, vectors, wire
from unlocked.gossip.distributed.averaging import Averaging
from unlocked.gossip.distributed.exchange import Memory
from unlocked.gossip.distributed.vectors import Vectors
from unlocked.gossip.distributed.wire import Channel, Stranger
from unlocked.gossip.momentum import Constants
from unlocked.gossip.reference import replay
from unlocked.papers.acid.processes import launch


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(vectors.time, "perf_counter", lambda: self.now)


def meet(one: Vectors, other: Vectors) -> None:
    """An averaging whose exchange takes no time."""
    sent, back = torch.empty_like(one.x), torch.empty_like(one.x)
    one.offer(sent)
    other.answer(sent, back)
    one.average(sent, back)


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
    sent, back = torch.empty_like(one.x), torch.empty_like(one.x)
    one.offer(sent)
    clock.now = 1.9
    step = torch.ones(50, dtype=torch.float64)
    one.descend(step, 0.5, torch.zeros(50, dtype=torch.float64), 0.0)
    other.answer(sent, back)
    clock.now = 2.3
    one.average(sent, back)
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


@contextmanager
def together(graph: nx.Graph, rate: float = 2.0, length: int = 50) -> Iterator[list[Averaging]]:
    """Workers of a graph in this process, in float64 and apart, that have all met."""
    draws = torch.Generator().manual_seed(0)
    starts = [torch.randn(length, generator=draws, dtype=torch.float64) for _ in graph]
    constants = Constants.accelerated(*topology.chi(graph, rate))
    workers = [
        Averaging(Vectors(x, constants, "exact"), graph, k, rate=rate, seed=0, key=b"key", timeout=5.0)
        for k, x in enumerate(starts)
    ]
    places = {k: ("127.0.0.1", worker.connect("127.0.0.1")) for k, worker in enumerate(workers)}
    try:
        for worker in workers:
            worker.meet(places)
            worker.vectors.begin(0.001, 0.0)
            worker.resume()
        assert not any(worker.missing({*places}, 5.0) for worker in workers)
        yield workers
    finally:
        for worker in workers:
            worker.close()


def total(workers: list[Averaging]) -> torch.Tensor:
    return torch.stack([worker.vectors.x + worker.vectors.x_tilde for worker in workers]).sum(0)


def drive(worker: Averaging, steps: int) -> None:
    """Steps that change nothing, and the averagings that they make due."""
    for _ in range(steps):
        with worker.changed:
            assert worker.changed.wait_for(lambda: not worker.must_wait(), 20)
        time.sleep(0.002)
        worker.after_step(lambda: None)


def drive_all(workers: list[Averaging], steps: int) -> None:
    """All at the same time; then none takes part any more."""
    threads = [threading.Thread(target=drive, args=(worker, steps)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(worker.hold() for worker in workers)


@pytest.mark.parametrize("far", [False, True])
def test_averagings_conserve_the_sum(monkeypatch: pytest.MonkeyPatch, far: bool) -> None:
    """Through shared memory, and as if the workers were on different hosts: all ask all, nobody waits for ever, both
    sides count the same, and the vectors come together.
    """
    if far:
        monkeypatch.setattr(Memory, "opened", lambda *_: None)
    with together(topology.build("complete", 4), rate=8.0) as workers:
        before = total(workers)
        for _ in range(10):  # on a busy machine gossip falls behind
            drive_all(workers, 60)
            if min(worker.asked.total() for worker in workers) >= 20:
                break
            for worker in workers:
                worker.resume()
        torch.testing.assert_close(total(workers), before, rtol=0, atol=1e-12)
        assert max(float((w.vectors.x - workers[0].vectors.x).abs().max()) for w in workers) < 0.1
        for one in workers:
            assert one.asked.total() >= 20
            assert all(workers[peer].answered[one.rank] == count for peer, count in one.asked.items())
            assert (one.failed, one.in_vain) == ({}, 0)


def test_an_edge_that_counts_twice_is_used_twice_as_often() -> None:
    """Chi-square against the graph's rates: every worker asks its neighbours in proportion to the weights."""
    graph = nx.Graph()
    graph.add_weighted_edges_from([(0, 1, 3), (1, 2, 1), (0, 2, 1)])
    with together(graph, length=3) as workers:
        drive_all(workers, 400)
        counts = Counter({(min(w.rank, p), max(w.rank, p)): 0 for w in workers for p in w.asked})
        for worker in workers:
            counts.update({(min(worker.rank, p), max(worker.rank, p)): n for p, n in worker.asked.items()})
    rates = topology.edge_rates(graph)
    seen, wanted = np.array([counts[edge] for edge in rates]), np.array(list(rates.values()))
    assert chisquare(seen, wanted / wanted.sum() * seen.sum()).pvalue > 1e-4, counts


def test_a_peer_that_is_gone_or_silent_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is lost with its connection, one never answers: the rest go on, and say so."""
    with together(topology.build("star", 3)) as (hub, gone, silent):
        gone.close()
        hub.timeout = 0.2
        monkeypatch.setattr(silent, "_was_asked", lambda *_: None)
        deadline = time.monotonic() + 20
        while hub._links and time.monotonic() < deadline:
            hub.after_step(lambda: None)
            time.sleep(0.01)
        assert hub.failed == {2: "no answer within 0.2 s"}
        assert hub.in_vain <= 2
        assert hub.hold()


def test_neighbours_out_of_reach_are_missed() -> None:
    """By their numbers, and no others; by nobody when the gossip has ended."""
    vectors = Vectors(torch.zeros(3), Constants.baseline(), "exact")
    alone = Averaging(vectors, topology.build("ring", 5), 1, rate=1.0, seed=0, key=b"key", timeout=0.2)
    alone.connect("127.0.0.1")
    nobody = socket.create_server(("127.0.0.1", 0))
    port = nobody.getsockname()[1]
    nobody.close()
    alone.meet(dict.fromkeys(range(5), ("127.0.0.1", port)))
    assert alone.missing({0, 2, 3}, 0.2) == [0, 2]
    alone.close()
    assert alone.missing({0, 2, 3}, 0.2) == []


def test_who_does_not_know_the_key_is_no_peer() -> None:
    """Nonsense, silence, a wrong key: the connection ends, and nothing else."""
    with together(topology.build("path", 2)) as workers:
        port = workers[0].listener.getsockname()[1]
        silent = socket.create_connection(("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as loud:
            loud.sendall(pickle.dumps(print) * 1000)
        with socket.create_connection(("127.0.0.1", port)) as wrong, pytest.raises((Stranger, OSError)):
            wire.prove(wrong, b"wrong", server=False)
        drive_all(workers, 20)
        assert workers[0].asked.total() + workers[0].answered.total() > 5
        silent.close()


# Messages


def test_messages_are_plain_data() -> None:
    """Values, dataclasses and arrays come as they went; objects are refused; hanging up wakes who waits."""
    here, there = map(Channel, socket.socketpair())
    arrays = [np.arange(6.0).reshape(2, 3), torch.tensor(7), np.zeros((0, 2), np.int8)]
    there.send("word", {"x": arrays}, Constants(0.5, float("inf"), 1.0), None)
    word, values, constants, nothing = here.receive()
    assert (word, constants, nothing) == ("word", {"eta": 0.5, "alpha": float("inf"), "alpha_tilde": 1.0}, None)
    for sent, got in zip(arrays, values["x"], strict=True):
        np.testing.assert_array_equal(np.asarray(sent), got)
        assert np.asarray(sent).dtype == got.dtype
    with pytest.raises(TypeError, match="no plain value"):
        there.send("word", print)
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
        there.send("word")
    here.hang_up()


@pytest.mark.parametrize(
    "data",
    [
        wire.SIZES.pack(2**31, 0),
        wire.SIZES.pack(2, 2**60),
        wire.SIZES.pack(4, 0) + b"\xff\xfe\x00{",
        wire.SIZES.pack(25, 0) + b'[{"array": ["f8", [9999]]}]'[:25],
        wire.SIZES.pack(25, 8) + b'[{"array": ["O", [1]]}]   '[:25] + bytes(8),
    ],
)
def test_what_is_no_message_ends_a_connection(data: bytes) -> None:
    """Sizes beyond any, no JSON, arrays that are not there or of objects."""
    here, there = socket.socketpair()
    there.sendall(data)
    there.close()
    with pytest.raises(EOFError):
        Channel(here).receive()
    here.close()


def test_strangers_are_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not know the key, which stands in no store, is turned away, and the next one is let in."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(rendezvous, "rendezvous", lambda: store)
    monkeypatch.setenv(wire.KEY, "secret")
    reception = rendezvous.Reception(2, "lo")
    host, port = store.get(rendezvous.ADDRESS).decode().split()
    assert host == "127.0.0.1"

    def come() -> None:
        with pytest.raises((Stranger, OSError)):
            rendezvous.connect(host, int(port), b"wrong", 1)
        with pytest.raises(MachineError, match=f"rank 1 lost the coordinator at {host}"):
            rendezvous.find(b"wrong", 1)
        channels.append(rendezvous.find(wire.shared_key(), 1)[2])

    channels: list[Channel] = []
    guest = threading.Thread(target=come)
    guest.start()
    ((rank, channel),) = reception.arrivals(seconds=20)
    guest.join(20)
    channel.send("welcome")
    assert rank == 1
    assert channels[0].receive() == ["welcome"]
    assert list(reception.arrivals(seconds=0.1)) == []  # nobody else comes
    assert all(wire.shared_key().hex().encode() not in store.get(key) for key in [rendezvous.ADDRESS])
    reception.close()


def test_a_rank_that_a_run_does_without_takes_part_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits until the run is over, then comes again."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(rendezvous, "rendezvous", lambda: store)
    monkeypatch.setenv(wire.KEY, "secret")
    reception = rendezvous.Reception(3, "lo")
    monkeypatch.setattr(launch, "_reception", reception)
    words: dict[int, list[bool]] = {1: [], 2: []}

    def come(rank: int) -> None:
        for _ in range(2):
            words[rank].append(launch.take_part(rendezvous.find(wire.shared_key(), rank)[2], run_of))

    def run_of(_: str) -> Any:
        raise AssertionError("there is no run")

    guests = [threading.Thread(target=come, args=(rank,)) for rank in words]
    for guest in guests:
        guest.start()
    assert not reception.met
    ((rank, channel, process),) = launch.lines({1}, *2 * [None])
    assert (rank, process) == (1, None)
    rendezvous.farewell(channel, "spared")  # in the place of a run
    assert words[2] == []
    for _, channel in reception.arrivals(seconds=20):
        rendezvous.farewell(channel, "dismissed", "")
    for guest in guests:
        guest.join(20)
    assert words == {1: [True, False], 2: [True, False]}
    reception.close()


def test_an_address_that_a_restart_has_left_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until rank 0 has written its own; in vain, it is named."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(rendezvous, "rendezvous", lambda: store)
    monkeypatch.setenv(wire.KEY, "secret")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        stale = nobody.getsockname()[1]
    store.set(rendezvous.ADDRESS, f"127.0.0.1 {stale}")
    with pytest.raises(MachineError, match=f"rank 1 finds nobody at 127.0.0.1:{stale}"):
        rendezvous.find(wire.shared_key(), 1, seconds=0.2)
    found: list[Channel] = []
    guest = threading.Thread(target=lambda: found.append(rendezvous.find(wire.shared_key(), 1)[2]))
    guest.start()
    reception = rendezvous.Reception(2, "lo")
    ((rank, channel),) = reception.arrivals(seconds=20)
    guest.join(20)
    channel.send("welcome")
    assert (rank, found[0].receive()) == (1, ["welcome"])
    reception.close()


def test_the_key_is_the_users_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the environment; else a file, made once for the user alone, not believed if others can read it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(wire.KEY, raising=False)
    first, path = wire.shared_key(), tmp_path / ".unlocked_key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert first == wire.shared_key() != wire.shared_key(b"other")
    assert list(tmp_path.iterdir()) == [path]
    path.chmod(0o640)
    with pytest.raises(SettingError, match="chmod 600"):
        wire.shared_key()
    monkeypatch.setenv(wire.KEY, "secret")
    assert wire.shared_key() == wire.shared_key(b"other") != first


def test_interfaces() -> None:
    """Loopback has its address; another one is looked up, and one that is not there is refused."""
    assert rendezvous.interface_address("lo") == "127.0.0.1"
    assert rendezvous.interface_name("eth7") == "eth7"
    with pytest.raises(SettingError, match="lo"):
        rendezvous.interface_address("nosuch0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_trace_shows_gossip_beside_gradients(tmp_path: Path) -> None:
    """On a GPU copies and updates of the gossip's stream run while the gradient's stream computes."""
    rounds = 30
    worker = Vectors(torch.zeros(2**24, device="cuda"), Constants.accelerated(20.0, 0.9), "exact")
    worker.begin(1.0, 0.0)
    sent, back = (torch.zeros(2**24, pin_memory=True) for _ in range(2))
    matrix = torch.randn(4096, 4096, device="cuda")

    def gossip() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(rounds):
                worker.offer(sent)
                worker.average(sent, back)

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
