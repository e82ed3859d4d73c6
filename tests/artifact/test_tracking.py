"""Tracking: what the recorder keeps, what Weights & Biases gets, and the flag that signals set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comparison import StopAfter, assert_same_record, train_here
from unlocked.artifact import mirror, record, tracking
from unlocked.artifact.record import Record
from unlocked.papers.base import Measurement
from unlocked.papers.run import Run

MakeRun = Callable[..., Run]
WANDB = Path(sys.executable).with_name("wandb")


def inspect(folder: Path, *options: str) -> list[dict[str, Any]]:
    """The entries of the offline run in a record, as W&B itself reads them."""
    (path,) = folder.rglob("*.wandb")
    line = [WANDB, "leet", "inspect", "--json", *options, path]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(done.stdout)] if options else [json.loads(line) for line in done.stdout.splitlines()]


def mirrored(folder: Path) -> dict[int, dict[str, Any]]:
    """What the offline run holds by step."""
    entries = [entry["history"]["item"] for entry in inspect(folder) if entry["type"] == "history"]
    assert len({entry["_step"] for entry in entries}) == len(entries)
    return {entry["_step"]: entry for entry in entries}


@pytest.fixture(scope="module")
def tracked(tiny_run: MakeRun, data_of: Callable, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The record of a run that W&B followed offline."""
    from unlocked.artifact import train

    run, results = tiny_run({"runtime.wandb": "offline"}), tmp_path_factory.mktemp("tracked")
    train.train_one(run, results, data_of(run), ["acid_table_4"], None)
    return record.load(record.folder_of(results, run))


def test_wandb_has_every_value(tracked: Record) -> None:
    """Every row of the history is in the offline run at its step, an index as `metric/index`."""
    by_step = mirrored(tracked.folder)
    assert sorted(by_step) == sorted(set(tracked.history["step"]))
    for row in tracked.history.itertuples(index=False):
        key = row.metric if row.index < 0 else f"{row.metric}/{row.index}"
        expected = {key: row.value, "epoch": row.epoch, "virtual_time": row.virtual_time}
        assert {name: by_step[row.step][name] for name in expected} == pytest.approx(expected)


def test_wandb_knows_the_run(tracked: Record) -> None:
    """Name, id, settings, tags, status and a clean end."""
    (found,) = inspect(tracked.folder, "--summary")
    assert found["run_id"] == found["name"] == tracked.run.id
    assert found["exit_code"] == 0
    assert found["summary"]["status"] == "completed"
    assert found["config"]["optim"]["lr"] == 0.02
    assert "runtime" not in found["config"]
    assert {"paper:acid", "scale:quick", "seed:0", "item:acid_table_4"} <= set(found["tags"])
    assert {tag.partition(":")[0] for tag in found["tags"]} == {"paper", "scale", "seed", "method", "item", "commit"}
    assert all(len(tag) <= 64 for tag in found["tags"])  # W&B's limit
    for metric, value in tracked.summary["metrics"].items():
        assert found["summary"][metric] == pytest.approx(value)


def test_wandb_draws_against_epochs(tracked: Record) -> None:
    """Every metric by default; and the machine's load is not followed unless somebody asks for it."""
    entries = inspect(tracked.folder)
    axes = {own.get("name") or own["glob_name"]: own.get("step_metric") for own in map(metric_of, entries) if own}
    assert axes == {"epoch": None, "virtual_time": None, "*": "epoch"}
    assert "stats" not in {entry["type"] for entry in entries}


def metric_of(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry says of a metric; empty if it is about something else."""
    return entry["metric"] if entry["type"] == "metric" else {}


def test_disabled_writes_no_wandb_folder(tiny_run: MakeRun, trained: Callable, tracked: Record, tmp_path: Path) -> None:
    """Nothing of W&B in the results or the working folder; with and without it the record is the same."""
    before = set(Path.cwd().iterdir())
    assert_same_record(trained(tiny_run()), tracked)
    assert not list(tmp_path.rglob("*wandb*"))
    assert set(Path.cwd().iterdir()) == before


def test_wandb_is_offline_unless_asked_otherwise_and_imported_late() -> None:
    """By default; and a process that does not mirror does not pay for the import."""
    assert Run(scale="quick").runtime.wandb == "offline"
    code = "import sys, unlocked.artifact.train; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_log_and_finish(tiny_run: MakeRun, tmp_path: Path) -> None:
    """Scalars and sequences become rows; the summary holds the last scalar, None where it is no number."""
    data: Any = SimpleNamespace(name="digits", source="here", checksum="0")
    run = tiny_run(seed=3)
    made = tracking.Recorder(record.folder_of(tmp_path, run), run)
    made.log(Measurement({"loss": 2, "accuracy": [0.1, 0.2]}, 0, 0.0, 0.0))
    made.log(Measurement({"loss": float("nan"), "norm": 1.5}, 10, 0.5, 3.0))
    made.finish("diverged", {"gradients": 10}, data, "because")
    one = record.load(made.folder)
    assert one.summary["metrics"] == {"loss": None, "norm": 1.5}
    assert (one.summary["status"], one.summary["reason"]) == ("diverged", "because")
    rows = one.history[["step", "metric", "index", "value"]].to_numpy().tolist()
    assert rows[:3] == [[0, "loss", -1, 2.0], [0, "accuracy", 0, 0.1], [0, "accuracy", 1, 0.2]]
    assert one.series("norm")["virtual_time"].tolist() == [3.0]
    made_with = one.summary["provenance"]
    assert (made_with["seed"], made_with["data"]) == (3, vars(data))
    assert len(made_with["code"]) == 16
    assert {"python", "torch", "numpy"} <= set(made_with["versions"])
    assert made_with["hardware"]["cores"] >= 1


def test_an_interrupted_run_is_mirrored_whole(tiny_run: MakeRun, data_of: Callable, results: Path) -> None:
    """After a stop and a second call the one offline run holds every evaluation."""
    run = tiny_run({"runtime.wandb": "offline"})
    with pytest.raises(tracking.Interrupted):
        train_here(run, results, data_of(run), StopAfter(3))
    one = train_here(run, results, data_of(run))
    assert list(mirrored(one.folder)) == one.series("test_loss")["step"].tolist()
    assert one.summary["provenance"]["resumed"] == 1


@pytest.mark.parametrize("calls", [0, 3], ids=["at the start", "in the middle"])
def test_tracking_that_breaks_does_not_stop_a_run(
    tiny_run: MakeRun,
    trained: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    calls: int,
) -> None:
    """One line says so, W&B is not called any more, and the record holds every evaluation."""
    made: list[int] = []

    def log(_: object, step: int) -> None:
        made.append(step)
        if len(made) == calls:
            raise RuntimeError("the service\nis gone")

    def start(*_: object) -> SimpleNamespace:
        if not calls:
            raise RuntimeError("the service\nis gone")
        return SimpleNamespace(log=log)

    monkeypatch.setattr(mirror, "start_wandb", start)
    one = trained(tiny_run({"runtime.wandb": "offline", "evaluation.points": 5}))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert "the service is gone" in line
    assert len(made) == calls
    assert len(one.series("test_loss")) == 6


def test_stop_is_a_flag_first_and_an_interrupt_second() -> None:
    """One signal asks for a checkpoint, the second does not wait; afterwards signals do what they did before."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with tracking.Stop() as stop:
        assert stop.requested is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.skipif(not os.access(tracking.PEAK, os.W_OK), reason="resident peaks can be forgotten on Linux only")
def test_a_run_has_a_peak_of_its_own() -> None:
    """Not that of runs that the process has trained before it."""
    assert any(bytearray(b"1" * 2**28))  # half a gigabyte, for a moment
    before = tracking.peak_memory_mb("cpu")
    tracking.forget_peak_memory("cpu")
    assert tracking.peak_memory_mb("cpu") < before - 200
