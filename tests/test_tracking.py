"""Tracking: what Weights & Biases gets, stops by signal, and a training that is continued."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import DictConfig

from unlocked import record, tracking, train

MakeRun = Callable[..., DictConfig]
WANDB = Path(sys.executable).with_name("wandb")


def inspect(folder: Path, *options: str) -> list[dict[str, Any]]:
    """The entries of the offline run in a record, as W&B itself reads them."""
    (path,) = folder.rglob("*.wandb")
    done = subprocess.run(
        [WANDB, "leet", "inspect", "--json", *options, path], capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(done.stdout)] if options else [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def tracked(tiny_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> record.Record:
    """The record of a run that W&B followed offline."""
    run, results = tiny_run({"runtime.wandb": "offline"}), tmp_path_factory.mktemp("tracked")
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    train.train([run], results, {train.plan.config.run_id(run): ["acid_table_4"]})
    for number, handler in before.items():
        signal.signal(number, handler)
    return record.load(record.folder_of(results, run))


def test_wandb_has_every_value(tracked: record.Record) -> None:
    """Every row of the history is in the offline run at its step, an index as `metric/index`."""
    entries = [e["history"] for e in inspect(tracked.folder) if e["type"] == "history"]
    mirrored = {e["item"]["_step"]: e["item"] for e in entries}
    assert sorted(mirrored) == sorted(set(tracked.history["step"]))
    for row in tracked.history.itertuples(index=False):
        key = row.metric if row.index < 0 else f"{row.metric}/{row.index}"
        assert mirrored[row.step][key] == pytest.approx(row.value)
        assert mirrored[row.step]["epoch"] == pytest.approx(row.epoch)
        assert mirrored[row.step]["virtual_time"] == pytest.approx(row.virtual_time)


def test_wandb_knows_the_run(tracked: record.Record) -> None:
    """Name, id, config, tags, status and a clean end."""
    (found,) = inspect(tracked.folder, "--summary")
    assert found["run_id"] == found["name"] == tracked.run_id
    assert found["exit_code"] == 0
    assert found["summary"]["status"] == "completed"
    assert found["config"]["optim"]["lr"] == tracked.config.optim.lr
    assert "runtime" not in found["config"]
    assert {"acid", "quick", "seed 0", "acid_table_4"} <= set(found["tags"])
    for metric, value in tracked.summary["metrics"].items():
        assert found["summary"][metric] == pytest.approx(value)


def test_disabled_writes_no_wandb_folder(tiny_run: MakeRun, trained: Callable, tmp_path: Path) -> None:
    """Nothing of W&B anywhere in the results or the working folder."""
    before = set(Path.cwd().iterdir())
    trained(tiny_run())
    assert not list(tmp_path.rglob("*wandb*"))
    assert set(Path.cwd().iterdir()) - before == set()


def test_tracking_does_not_change_the_result(tiny_run: MakeRun, trained: Callable, tracked: record.Record) -> None:
    """With and without W&B the history is the same."""
    histories = [made.history.drop(columns="wall_time") for made in (trained(tiny_run()), tracked)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def recorder(run: DictConfig, folder: Path) -> tracking.Recorder:
    """A recorder of a run in progress."""
    return tracking.Recorder(record.folder_of(folder, run), run, total_steps=100, code="c")


class Source:
    """Stands in for a data set."""

    name, source, checksum = "digits", "here", "0"


def test_log_and_finish(tiny_run: MakeRun, tmp_path: Path) -> None:
    """Scalars and sequences become rows; the summary holds the last scalar, None where it is no number."""
    made = recorder(tiny_run(), tmp_path)
    made.log({"loss": 2, "accuracy": [0.1, 0.2]}, step=0, epoch=0.0)
    made.log({"loss": float("nan"), "norm": 1.5}, step=10, epoch=0.5, virtual_time=3.0)
    made.finish("diverged", {"gradients": 10}, Source(), "because")
    found = record.load(made.folder)
    assert found.summary["metrics"] == {"loss": None, "norm": 1.5}
    assert found.summary["reason"] == "because"
    assert found.diverged
    rows = found.history[["step", "metric", "index", "value"]].to_numpy().tolist()
    assert rows[:3] == [[0, "loss", -1, 2.0], [0, "accuracy", 0, 0.1], [0, "accuracy", 1, 0.2]]
    assert found.series("norm")["virtual_time"].tolist() == [3.0]


def test_restored_rows_are_not_lost_or_doubled(tiny_run: MakeRun, tmp_path: Path) -> None:
    """A recorder continued from its state has the old rows, then the new; time goes on."""
    first = recorder(tiny_run(), tmp_path)
    first.log({"loss": 1.0}, step=0, epoch=0.0)
    state = json.loads(json.dumps(first.state()))  # plain values
    second = recorder(tiny_run(), tmp_path)
    second.restore(state | {"seconds": 100.0})
    second.log({"loss": 0.5}, step=5, epoch=0.5)
    assert [row["value"] for row in second.rows] == [1.0, 0.5]
    assert second.rows[-1]["wall_time"] > 100
    assert second.finish("completed", {"gradients": 5}, Source())["provenance"]["resumed"] == 1


def test_stop_is_a_flag_first_and_an_interrupt_second() -> None:
    """One signal asks for a checkpoint, the second does not wait."""
    with tracking.Stop() as stop:
        assert stop.requested is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_training_gives_the_signals_back(tiny_run: MakeRun, results: Path) -> None:
    """After a training Ctrl-C works as before it."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    train.train([tiny_run()], results)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.fixture
def long_run(tiny_run: MakeRun) -> MakeRun:
    """Runs of some seconds."""
    return lambda **more: tiny_run({"optim.epochs": 8, "evaluation.points": 20, **more})


def first_lines(process: subprocess.Popen, step: int) -> None:
    """Read a training's output until it has come past `step`."""
    assert process.stdout is not None
    for line in process.stdout:
        words = line.split()
        if len(words) > 1 and "/" in words[1] and int(words[1].split("/")[0]) > step:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "ended")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_training_is_continued(
    long_run: MakeRun,
    config_file: Callable,
    start_command: Callable,
    results: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
) -> None:
    """A signal ends `train` with the code that shells expect, one line, and a checkpoint; the next call is equal."""
    run = long_run()
    folder = record.folder_of(results, run)
    process = start_command("train", config_file(run), "--results", results)
    first_lines(process, 130)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (record.partial(folder) / "checkpoint.pt").is_file()
    assert not folder.exists()
    assert len(errors.strip().splitlines()) == 1
    train.train([run], results)
    train.train([run], tmp_path / "whole")
    continued, whole = record.load(folder), record.load(record.folder_of(tmp_path / "whole", run))
    assert continued.summary["provenance"]["resumed"] == 1
    assert continued.summary["metrics"] == whole.summary["metrics"]
    drop = {"columns": "wall_time"}
    pd.testing.assert_frame_equal(continued.history.drop(**drop), whole.history.drop(**drop), check_exact=True)
    assert process.returncode == code


def test_an_interrupted_run_is_mirrored_whole(tiny_run: MakeRun, results: Path) -> None:
    """After a stop and a second call the one offline run holds every evaluation."""
    run = tiny_run({"runtime.wandb": "offline", "optim.epochs": 3, "evaluation.points": 3})
    engine = train.plan.engine(run)
    data = train.load_data(train.data_key(run))

    class Asked(tracking.Stop):
        def __init__(self) -> None:
            self.requested = None

    stop = Asked()
    logged = tracking.Recorder.log

    def log(self: tracking.Recorder, *arguments: Any, **options: Any) -> None:
        logged(self, *arguments, **options)
        if options["step"] > 0:
            stop.requested = 15

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking.Recorder, "log", log)
        with pytest.raises(tracking.Interrupted):
            train.train_one(run, results, data, (), stop)
    assert engine == "unlocked.gossip.virtual"
    assert train.train_one(run, results, data, (), None) == "completed"
    found = record.load(record.folder_of(results, run))
    steps = [e["history"]["item"]["_step"] for e in inspect(found.folder) if e["type"] == "history"]
    assert steps == found.series("test_loss")["step"].tolist()
    assert found.summary["provenance"]["resumed"] == 1


def test_tracking_that_cannot_start_does_not_stop_a_run(
    tiny_run: MakeRun, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """W&B fails to start: one line says so, and the record is complete."""

    def fail(*arguments: object) -> None:
        raise RuntimeError("no\nservice")

    monkeypatch.setattr(tracking, "start_wandb", fail)
    run = tiny_run({"runtime.wandb": "offline"})
    train.train([run], results)
    lines = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert len(lines) == 1
    assert "no service" in lines[0]
    assert record.load(record.folder_of(results, run)).summary["status"] == "completed"
