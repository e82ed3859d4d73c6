"""What a run of processes survives: killed, stalled and failing workers, a killed coordinator, SIGTERM, a restart."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from driving import Short, Started, advance_to, drive, finals, pid_of

from unlocked.artifact import loop, record
from unlocked.artifact.tracking import Recorder
from unlocked.errors import MachineError, SettingError
from unlocked.papers.acid.processes.state import State, Tally
from unlocked.papers.acid.processes.training import ProcessTraining

pytestmark = pytest.mark.faults

KILLS = 20


def hit(training: ProcessTraining, *workers: int, number: int = signal.SIGKILL) -> Callable[[], None]:
    """An action that sends workers a signal."""

    def act() -> None:
        for worker in workers:
            os.kill(pid_of(training, worker), number)

    return act


def check_survivors(training: ProcessTraining, lost: int) -> dict[str, Any]:
    """All gradients are done, by three workers and what counts of the fourth; the record names it."""
    counts = training.counts()
    assert counts["gradients"] == sum(counts["gradients_per_worker"]) == training.total
    (death,) = counts["deaths"]
    assert death["worker"] == lost
    assert death["gradients"] == counts["gradients_per_worker"][lost]
    assert death["seconds"] >= 0
    assert set(finals(training)) == set(range(training.run.workers)) - {lost}
    return death


def test_survivors_finish(short: Short, started: Started) -> None:
    """One worker of four killed at a random moment, again and again, on several graphs, with both methods."""
    draws = np.random.default_rng(0)
    for kill in range(KILLS):
        settings = {
            "method": ("acid", "baseline")[kill % 2],
            "graph": ("ring", "complete", "star", "path")[kill % 4],
            "rate": (1.0, 2.0, 0.5)[kill % 3],
            "runtime.timeout": 8,
        }
        training = started(short(240, settings))
        lost, moment = int(draws.integers(4)), int(draws.integers(1, 200))
        drive(training, moment, hit(training, lost))
        assert check_survivors(training, lost)["reason"] == "was killed by SIGKILL"


def test_a_worker_that_stalls_is_given_up(short: Short, started: Started) -> None:
    """A stopped process says nothing: after the timeout the others go on without it, and it is ended."""
    training = started(short(400, {"rate": 2.0, "runtime.timeout": 3}))
    drive(training, 100, hit(training, 2, number=signal.SIGSTOP))
    assert check_survivors(training, 2)["reason"] == "was silent for more than 3 s"
    assert not psutil.pid_exists(pid_of(training, 2))


def test_all_reduce_cannot_go_on(short: Short, started: Started) -> None:
    """Without one of its workers AR-SGD ends at once, with an error that names it."""
    training = started(short(2000, {"method": "allreduce"}))
    with pytest.raises(MachineError, match="worker 1 was killed by SIGKILL"):
        drive(training, 200, hit(training, 1))


def test_nobody_left(short: Short, started: Started) -> None:
    """When all workers are gone there is an error that names them all."""
    training = started(short(2000, {"workers": 2, "graph": "complete"}))
    with pytest.raises(MachineError, match=r"worker (0 .*worker 1|1 .*worker 0) "):
        drive(training, 100, hit(training, 0, 1))


def test_the_record_names_the_lost(short: Short, started: Started, results: Path) -> None:
    """A death is in `summary.json`, with the worker, the reason and the time; the run is completed."""
    run = short(300)
    training = started(run)
    original = training.advance

    def advance(span: int, skip: int) -> Any:
        for count, _ in enumerate(original(span, skip), 1):
            if span == 0 and count == 50:
                hit(training, 3)()
            yield

    training.advance = advance
    loop.run(training, Recorder(record.folder_of(results, run), run), training.data)
    made = record.load(record.folder_of(results, run))
    (death,) = made.summary["counts"]["deaths"]
    assert (death["worker"], death["reason"]) == (3, "was killed by SIGKILL")
    assert made.summary["status"] == "completed"
    assert len(made.values("worker_gradient_seconds")) == 4


def test_the_lost_stay_lost(short: Short, started: Started) -> None:
    """A run that is continued after a death goes on with the others, and counts what the lost one has done."""
    run = short(400)
    first = started(run)
    coordinator = advance_to(first, 60)
    hit(first, 1)()
    coordinator.wait(lambda: bool(first.past.deaths))
    state = first.state()
    first.close()
    second = started(run)
    second.restore(state)
    drive(second)
    assert check_survivors(second, 1)["reason"] == "was killed by SIGKILL"


def test_a_graph_without_an_edge_is_another_graph(short: Short, started: Started) -> None:
    """Neighbours that cannot reach each other end the run; a lost one is missed by nobody."""
    training = started(short(400))
    coordinator = advance_to(training, 60)
    with coordinator.changed:
        coordinator._met(0, [5])  # lost before
        assert coordinator.apart is None
        coordinator._met(1, [0])
    with pytest.raises(MachineError, match=r"workers 0 and 1 have no connection: runtime\.interface"):
        drive(training)


# As a user would: the command, killed from outside


@pytest.fixture
def command(short: Short, results: Path, start_command: Any, config_file: Any) -> Any:
    """Start the training of a run, once or again; returns the process and its workers after the second evaluation."""

    def begin(run: Any) -> tuple[Any, list[psutil.Process]]:
        process = start_command("train", config_file(run), "--results", results)
        for _ in range(3):
            assert process.stdout.readline(), process.stderr.read()
        (server,) = (c for c in psutil.Process(process.pid).children() if "forkserver" in " ".join(c.cmdline()))
        return process, server.children()

    return lambda gradients: partial(begin, short(gradients, {"runtime.timeout": 10, "evaluation.points": 20}))


def test_a_killed_coordinator_leaves_nobody(command: Any) -> None:
    """Every worker says that the coordinator is gone and ends; so does the process that forked them."""
    process, workers = command(100_000)()
    assert len(workers) == 4
    process.kill()
    _, left = psutil.wait_procs(workers, timeout=10)
    assert not left
    errors = process.communicate(timeout=10)[1]
    for worker in range(4):
        assert f"worker {worker}: the coordinating process is gone" in errors


def test_sigterm_checkpoints_all_and_a_restart_resumes(command: Any, results: Path) -> None:
    """The first call ends by its signal with a checkpoint and no process; the second has every gradient, once."""
    start = command(6000)
    process, workers = start()
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "a checkpoint is kept" in errors
    assert not psutil.wait_procs(workers, timeout=10)[1]
    folder = record.folder_of(results, start.args[0])
    assert list(record.partial(folder).glob("checkpoint-*.pt"))
    again, _ = start()
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["provenance"]["resumed"] == 1
    counts = summary["counts"]
    assert counts["gradients"] == sum(counts["gradients_per_worker"]) == sum(counts["staleness"]) == 6000
    steps = record.load(folder).series("training_seconds")
    assert steps["step"].tolist() == sorted(set(steps["step"]))
    assert steps["value"].is_monotonic_increasing


def test_a_failing_worker_is_named(short: Short, started: Started) -> None:
    """A worker that cannot set itself up does not keep the others from training."""
    training = started(short(200))
    wrong = training.start[:-1]
    training.past.states[0] = State(wrong, wrong, wrong, 0.0, 0, {}, Tally())
    drive(training)
    assert "failed (RuntimeError" in check_survivors(training, 0)["reason"]


def test_a_setting_that_cannot_work_starts_nothing(short: Short, data_of: Any) -> None:
    """An interface that is not there is refused in one line before any process is started."""
    run = short(40, {"runtime.interface": "nosuch0"})
    with pytest.raises(SettingError, match=r"runtime.interface = 'nosuch0'.*lo"):
        ProcessTraining(run, data_of(run))


def test_timeouts_are_bounded_by_the_setting(short: Short, started: Started) -> None:
    """Closing a run in the middle of everything returns at once and kills what does not end."""
    training = started(short(100_000))
    advance_to(training, 100)
    pids = [pid_of(training, worker) for worker in range(4)]
    training.close()
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)
