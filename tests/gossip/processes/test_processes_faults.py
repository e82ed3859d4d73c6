"""What a run of processes survives: killed, stalled and failing workers, a killed coordinator, SIGTERM, a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from omegaconf import DictConfig, OmegaConf

from unlocked import loop, record
from unlocked.errors import MachineError, SettingError
from unlocked.gossip.processes.messages import State, Tally
from unlocked.gossip.processes.training import Training
from unlocked.tracking import Recorder

pytestmark = pytest.mark.faults

Short = Callable[..., DictConfig]
Started = Callable[[DictConfig], Training]
KILLS = 20


def process_of(training: Training, worker: int) -> int:
    """The process of a worker."""
    assert training.coordinator is not None
    process = training.coordinator.members[worker].process
    assert process is not None
    assert process.pid is not None
    return process.pid


def killing(training: Training, *workers: int) -> Callable[[], None]:
    """An action that kills workers."""
    return lambda: [os.kill(process_of(training, worker), signal.SIGKILL) for worker in workers] and None


def at(count: int, action: Callable[[], None]) -> Callable[[int], None]:
    """Call `action` when so many gradients are done."""

    def each(done: int) -> None:
        if done == count:
            action()

    return each


def check_survivors(training: Training, lost: int) -> dict[str, Any]:
    """All gradients are done, by three workers and what counts of the fourth; the record names it."""
    counts = training.counts()
    assert counts["gradients"] == sum(counts["gradients_per_worker"]) == training.total
    (death,) = counts["deaths"]
    assert death["worker"] == lost
    assert death["gradients"] == counts["gradients_per_worker"][lost]
    assert death["seconds"] >= 0
    assert training.coordinator is not None
    finals = {member.number for member in training.coordinator.members.values() if member.final is not None}
    assert finals == set(range(training.run.workers)) - {lost}
    return death


def test_survivors_finish(short: Short, started: Started, drive: Any) -> None:
    """One worker of four killed at a random moment, again and again, on several graphs, with both methods."""
    draws = np.random.default_rng(0)
    graphs = ("ring", "complete", "star", "path")
    for kill in range(KILLS):
        settings = {
            "method": ("acid", "baseline")[kill % 2],
            "graph": graphs[kill % 4],
            "rate": (1.0, 2.0, 0.5)[kill % 3],
        }
        training = started(short(240, settings, **{"runtime.timeout": 8}))
        lost, moment = int(draws.integers(4)), int(draws.integers(1, 200))
        drive(training, at(moment, killing(training, lost)))
        death = check_survivors(training, lost)
        assert death["reason"] == "was killed by SIGKILL"


def test_a_worker_that_stalls_is_given_up(short: Short, started: Started, drive: Any) -> None:
    """A stopped process says nothing: after the timeout the others go on without it, and it is ended."""
    training = started(short(400, {"rate": 2.0}, **{"runtime.timeout": 3}))
    drive(training, at(100, lambda: os.kill(process_of(training, 2), signal.SIGSTOP)))
    assert check_survivors(training, 2)["reason"] == "was silent for more than 3 s"
    assert not psutil.pid_exists(process_of(training, 2))


def test_all_reduce_cannot_go_on(short: Short, started: Started, drive: Any) -> None:
    """Without one of its workers AR-SGD ends at once, with an error that names it."""
    training = started(short(2000, {"method": "allreduce"}))
    with pytest.raises(MachineError, match="worker 1 was killed by SIGKILL"):
        drive(training, at(200, killing(training, 1)))


def test_nobody_left(short: Short, started: Started, drive: Any) -> None:
    """When all workers are gone there is an error that names them all."""
    training = started(short(2000, {"workers": 2, "graph": "complete"}))
    with pytest.raises(MachineError, match=r"worker (0 .*worker 1|1 .*worker 0) "):
        drive(training, at(100, killing(training, 0, 1)))


def test_the_record_names_the_lost(short: Short, results: Path, data_of: Any) -> None:
    """A death is in `summary.json`, with the worker, the reason and the time; the run is completed."""
    run = short(300)
    training = Training(run, data_of(run))
    original = training.advance

    def advance(span: int, skip: int) -> Any:
        for count, _ in enumerate(original(span, skip), 1):
            if span == 0 and count == 50:
                os.kill(process_of(training, 3), signal.SIGKILL)
            yield

    training.advance = advance
    recorder = Recorder(record.folder_of(results, run), run, total_steps=training.total)
    try:
        loop.run(training, recorder, data_of(run))
    finally:
        training.close()
    found = record.load(record.folder_of(results, run))
    (death,) = found.summary["counts"]["deaths"]
    assert (death["worker"], death["reason"]) == (3, "was killed by SIGKILL")
    assert found.summary["status"] == "completed"
    assert len(found.values("worker_gradient_seconds")) == 4


# As a user would: the command, killed from outside


@pytest.fixture
def command(short: Short, tmp_path: Path) -> Callable[..., tuple[list[str], DictConfig]]:
    """`python -m unlocked train` with a run that would take long."""

    def make(gradients: int, changes: dict[str, Any] | None = None) -> tuple[list[str], DictConfig]:
        run = short(gradients, {"runtime.timeout": 10, "evaluation.points": 20} | (changes or {}))
        OmegaConf.save(run, tmp_path / "run.yaml")
        words = [sys.executable, "-m", "unlocked", "train", str(tmp_path / "run.yaml")]
        return [*words, "--results", str(tmp_path / "results")], run

    return make


def wait_until_trained(process: subprocess.Popen) -> list[psutil.Process]:
    """Wait for the second evaluation after the start; returns the workers."""
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline(), process.stderr.read() if process.stderr else ""
    (server,) = (c for c in psutil.Process(process.pid).children() if "forkserver" in " ".join(c.cmdline()))
    return server.children()


def begun(words: list[str]) -> subprocess.Popen:
    """The command, its output in pipes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_killed_coordinator_leaves_nobody(command: Any) -> None:
    """Every worker says that the coordinator is gone and ends; so does the process that forked them."""
    words, _ = command(100_000)
    process = begun(words)
    workers = wait_until_trained(process)
    assert len(workers) == 4
    process.kill()
    _, left = psutil.wait_procs(workers, timeout=10)
    assert not left
    errors = process.communicate(timeout=10)[1]
    for worker in range(4):
        assert f"worker {worker}: the coordinating process is gone" in errors


def test_sigterm_checkpoints_all_and_a_restart_resumes(command: Any) -> None:
    """The first call ends by its signal with a checkpoint and no process; the second has every gradient, once."""
    words, run = command(6000)
    process = begun(words)
    workers = wait_until_trained(process)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "a checkpoint is kept" in errors
    assert not psutil.wait_procs(workers, timeout=10)[1]
    folder = record.folder_of(Path(words[-1]), run)
    assert (record.partial(folder) / "checkpoint.pt").is_file()
    again = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["provenance"]["resumed"] == 1
    counts = summary["counts"]
    assert counts["gradients"] == sum(counts["gradients_per_worker"]) == sum(counts["staleness"]) == 6000
    steps = record.load(folder).series("training_seconds")
    assert steps["step"].tolist() == sorted(set(steps["step"]))
    assert steps["value"].is_monotonic_increasing


def test_a_failing_worker_is_named(short: Short, started: Started, drive: Any) -> None:
    """A worker that cannot set itself up does not keep the others from training."""
    training = started(short(200))
    wrong = training.start[:-1]
    training.states[0] = State(wrong, wrong, wrong, 0.0, 0, {}, Tally())
    drive(training)
    assert "failed (RuntimeError" in check_survivors(training, 0)["reason"]


def test_a_setting_that_cannot_work_starts_nothing(short: Short, data_of: Any) -> None:
    """An interface that is not there is refused in one line before any process is started."""
    run = short(40, {"runtime.interface": "nosuch0"})
    with pytest.raises(SettingError, match=r"runtime.interface = 'nosuch0'.*lo"):
        Training(run, data_of(run))


def test_timeouts_are_bounded_by_the_setting(short: Short, started: Started) -> None:
    """Closing a run in the middle of everything returns at once and kills what does not end."""
    training = started(short(100_000))
    for count, _ in enumerate(training.advance(0, 0), 1):
        if count == 100:
            break
    pids = [process_of(training, worker) for worker in range(4)]
    training.close()
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)
