"""Parts of the engine of processes by themselves: the update, the pairing, the settings, the lines, torchrun."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from unlocked import config, record, train
from unlocked.errors import SettingError
from unlocked.gossip import topology, virtual
from unlocked.gossip.momentum import Constants
from unlocked.gossip.processes import launch, pairs, places, vectors
from unlocked.gossip.processes.coordinator import Matchmaker
from unlocked.gossip.processes.messages import Channel, Tally, count
from unlocked.gossip.processes.training import Training
from unlocked.gossip.processes.vectors import Vectors

Short = Callable[..., DictConfig]


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
def test_the_update_is_the_virtual_engines(
    monkeypatch: pytest.MonkeyPatch, dynamics: str, constants: Constants
) -> None:
    """Random events, in units of 0.25 s, lead to what `virtual.replay` says."""
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
    x, x_tilde = virtual.replay(events, start, constants, 0.1, dynamics)
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
    """`now` mixes copies up to the moment and leaves the worker as it was; a pause is taken out of the time."""
    clock = Clock(monkeypatch)
    worker = Vectors(torch.zeros(3, dtype=torch.float64), Constants(0.5, 0.5, 1.0), "exact")
    worker.x_tilde += 2.0
    worker.begin(2.0, 1.0)
    assert worker.age() == 1.0
    clock.now = 3.0
    worker.pass_over(3.0)
    x, twin, stored = worker.now()
    expected = 1 - np.exp(-2 * 0.5 * 1.0)  # half the gap of 2 is closed at this rate
    assert x.tolist() == pytest.approx([expected] * 3)
    assert (x + twin).tolist() == [2.0] * 3
    assert stored.tolist() == worker.x.tolist() == [0.0] * 3


def test_pairing_forgets_the_lost() -> None:
    """First come, first served; who is lost, or cannot be reached from a worker, is not paired with it."""
    maker = Matchmaker(topology.build("complete", 4), 0)
    assert maker.partner_of(0) is None
    assert maker.partner_of(1) == 0
    assert maker.partner_of(1) is None  # asks for the next one while it still talks
    assert maker.partner_of(0) == 1
    maker.part(2, 3)
    assert maker.partner_of(2) is None
    assert maker.partner_of(3) is None
    maker.drop(2)
    assert maker.partner_of(1) == 3
    assert 2 not in {j for others in maker.neighbours.values() for j in others}


def test_settings_without_an_effect(short: Short) -> None:
    """Real processes have one pairing, one moment of reading and their own clock; only slow workers are a choice."""
    plain = config.run_id(short(40))
    changes = {"pairing": "poisson", "gradient_read": "event", "clock.law": "gamma", "clock.latency": 0.1}
    assert {config.run_id(short(40, {key: value})) for key, value in changes.items()} == {plain}
    assert config.run_id(short(40, {"owed": "deterministic"})) != plain
    assert config.run_id(short(40, {"clock.slow_workers": 1})) != plain
    run = short(40)
    assert (run.pairing, run.gradient_read) == ("availability", "start")
    assert config.run_id(short(40, {"engine": "virtual"})) != plain
    with pytest.raises(SettingError, match=r"runtime.backend = 'nccl'"):
        short(40, {"runtime.backend": "nccl"})


def test_staleness_is_counted() -> None:
    """The histogram grows as it needs to."""
    tally = Tally()
    for averagings in (0, 3, 0):
        count(tally.staleness, averagings)
    before = tally.copy()
    count(tally.staleness, 1)
    assert before.staleness == [2, 0, 0, 1]
    assert tally.staleness == [2, 1, 0, 1]


def test_a_line_ends_for_both() -> None:
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
    monkeypatch.setattr(launch, "rendezvous", dict)
    monkeypatch.setattr(launch.Lobby, "_store", None, raising=False)

    class Store(dict):
        set = dict.__setitem__

    store = Store()
    monkeypatch.setattr(launch, "rendezvous", lambda: store)
    lobby = launch.Lobby(places.Place(0, 2, 0), "lo")
    host, port, key = store["unlocked/coordinator"].split()
    assert host == "127.0.0.1"

    def come() -> None:
        with pytest.raises(multiprocessing.AuthenticationError):
            launch.connect(host, int(port), b"wrong", 1)
        lines.append(launch.connect(host, int(port), bytes.fromhex(key), 1))

    lines: list[Channel] = []
    guest = threading.Thread(target=come)
    guest.start()
    ((rank, line),) = lobby.arrivals(20)
    guest.join(20)
    Channel(line).send("welcome")
    assert rank == 1
    assert lines[0].receive() == "welcome"
    assert list(lobby.arrivals(0.1)) == []  # nobody else comes


def test_place_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torchrun, of srun, or of nobody."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert places.place() is None
    slurm = {"STEP_NUM_TASKS": "8", "PROCID": "5", "LOCALID": "1", "JOB_ID": "77", "LAUNCH_NODE_IPADDR": "10.0.0.1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that what `place` sets is undone
        monkeypatch.delenv(name)
    assert places.place() == places.Place(5, 8, 1)
    assert os.environ["MASTER_ADDR"] == "10.0.0.1"
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert places.place() == places.Place(2, 4, 0)


def test_processes_must_be_as_many_as_workers(
    monkeypatch: pytest.MonkeyPatch, short: Short, tiny_run: Any, data_of: Any, results: Path
) -> None:
    """Under torchrun a run needs one process per worker, and this engine."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    run = short(40)
    with pytest.raises(SettingError, match="3 processes were started"):
        Training(run, data_of(run))
    with pytest.raises(SettingError, match="engine = 'virtual': must be processes"):
        train.train([tiny_run()], results)


def test_interfaces() -> None:
    """Loopback has its address; another one is looked up, and one that is not there is refused."""
    assert launch.interface_address("lo") == "127.0.0.1"
    assert pairs.interface_name("eth7") == "eth7"
    with pytest.raises(SettingError, match="lo"):
        launch.interface_address("nosuch0")


def test_two_agents_of_torchrun(short: Short, tmp_path: Path) -> None:
    """Two nodes of two processes each, on loopback, one run after the other: records as from a local start."""
    runs = [short(80), short(80, {"method": "allreduce"})]
    for number, run in enumerate(runs):
        OmegaConf.save(run, tmp_path / f"{number}.yaml")
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "-m", "unlocked", "train"]
    words += [str(tmp_path / f"{number}.yaml") for number in range(2)] + ["--results", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    for agent in agents:
        errors = agent.communicate(timeout=300)[1]
        assert agent.returncode == 0, errors
    for run in runs:
        summary = json.loads((record.folder_of(tmp_path, run) / "summary.json").read_text())
        assert summary["counts"]["gradients"] == 80
        assert summary["counts"]["deaths"] == []


def free_port() -> int:
    """A port that nobody uses at the moment."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
def test_four_workers_share_a_gpu(short: Short, started: Any, drive: Any) -> None:
    """Gossip through page-locked memory: all is accounted for, and the workers agree in the end."""
    training = started(short(400, {"runtime.device": "cuda", "model.name": "conv", "rate": 2.0}))
    metrics = drive(training)[-1].metrics
    counts = training.counts()
    assert counts["gradients"] == 400
    assert counts["communications"] > 100
    assert counts["communications_failed"] == counts["communications_one_sided"] == 0
    assert metrics["consensus_distance"] < 1.0


@needs_gpu
def test_a_trace_shows_gossip_beside_gradients(tmp_path: Path) -> None:
    """On a GPU copies and updates of the gossip's stream run while the gradient's stream computes."""
    side, rounds = 4096, 30
    worker = Vectors(torch.zeros(2**24, device="cuda"), Constants.accelerated(20.0, 0.9), "exact")
    worker.begin(1.0, 0.0)
    staging = torch.empty(2**24, pin_memory=True)

    def gossip() -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(rounds):
                staging.copy_(worker.offer(), non_blocking=True)
                pairs.finish_stream(staging_device)
                worker.received.copy_(staging, non_blocking=True)
                worker.average()

    staging_device, matrix = worker.x.device, torch.randn(side, side, device="cuda")
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
    spans = [
        (e["ts"], e["ts"] + e["dur"], e["args"]["stream"]) for e in events if e.get("cat") in ("kernel", "gpu_memcpy")
    ]
    assert any(a[2] != b[2] and a[0] < b[1] and b[0] < a[1] for a in spans for b in spans)
