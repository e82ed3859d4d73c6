"""Training runs into records: what is trained again, what is shared, and trainings that are stopped or killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from comparison import assert_same_record
from unlocked.artifact import record, train
from unlocked.errors import SettingError
from unlocked.papers.run import Run

MakeRun = Callable[..., Run]


def test_a_record_is_not_trained_again(tiny_run: MakeRun, results: Path) -> None:
    """A second call trains nothing; other settings, other code or a lost file do."""
    run = tiny_run()
    assert train.train([run], results) == [run.id]
    assert train.train([run, run, tiny_run({"runtime.execution": "loop"})], results) == []
    path = record.folder_of(results, run) / "summary.json"
    altered = json.loads(path.read_text())
    altered["provenance"]["code"] = "older"
    path.write_text(json.dumps(altered))
    assert train.train([tiny_run({"runtime.reuse": "same_config"})], results) == []
    assert train.train([run], results) == [run.id]


def test_data_are_loaded_once_and_before_any_training(
    tiny_run: MakeRun, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that share a data set follow each other; a study loads none."""
    happened: list[Any] = []
    load, train_one = train.load_data, train.train_one

    def loading(key: Any) -> Any:
        happened.append(dict(key).get("test_limit"))
        return load(key)

    def training(run: Run, *others: Any) -> bool:
        happened.append(run.id)
        return train_one(run, *others)

    monkeypatch.setattr(train, "load_data", loading)
    monkeypatch.setattr(train, "train_one", training)
    small = {"data.test_limit": 50}
    runs = [tiny_run(), tiny_run(small), tiny_run(seed=1), tiny_run(small, seed=1), tiny_run(study="averaging")]
    done = [runs[k].id for k in (0, 2, 1, 3, 4)]
    assert train.train(runs, results) == done
    assert happened == [None, 50, 100, *done[:2], 50, *done[2:4], None, done[4]]


@pytest.mark.parametrize(("count", "device"), [(0, "cuda"), (1, "cuda:1")])
def test_a_device_that_is_not_there(
    tiny_run: MakeRun, results: Path, monkeypatch: pytest.MonkeyPatch, count: int, device: str
) -> None:
    """Nothing is trained when a later run cannot be."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    with pytest.raises(SettingError, match=f"runtime.device = '{device}': this machine has {count} usable GPU"):
        train.train([tiny_run(), tiny_run({"runtime.device": device}, seed=1)], results)
    assert not results.exists()


def test_a_run_in_one_process_is_refused_under_torchrun(
    tiny_run: MakeRun, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of being trained by every process."""
    monkeypatch.setattr(train.places, "place", lambda: SimpleNamespace(rank=0, size=2))
    with pytest.raises(SettingError, match="computes in one process"):
        train.train([tiny_run()], results)
    assert not results.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_ended_training_is_continued(
    tiny_run: MakeRun,
    config_file: Callable,
    start_command: Callable,
    results: Path,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    """A signal ends `train` with the code that shells expect, one line, and a checkpoint; the next call is equal."""
    run = tiny_run({"optim.epochs": 8, "evaluation.points": 20, "runtime.checkpoint_minutes": 0})
    folder = record.folder_of(results, run)
    process = start_command("train", config_file(run), "--results", results)
    assert [process.stdout.readline() for _ in range(4)][-1], process.stderr.read()
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    killed = number == signal.SIGKILL
    assert process.returncode == (-number if killed else 128 + number)
    assert len(errors.strip().splitlines()) == (not killed)
    assert list(record.partial(folder).glob("checkpoint-*.pt"))
    assert [p.name for p in folder.parent.iterdir() if p.name != "locks"] == [record.partial(folder).name]
    assert record.load_all(results).empty
    for place in (results, tmp_path / "whole"):
        assert train.train([run], place) == [run.id]
    continued = record.load(folder)
    assert continued.summary["provenance"]["resumed"] == 1
    assert_same_record(continued, record.load(record.folder_of(tmp_path / "whole", run)))
    assert [p.name for p in folder.parent.iterdir() if p.name != "locks"] == [folder.name]
