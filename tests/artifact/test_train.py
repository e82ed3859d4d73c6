"""Training runs into records: what is trained again, what is shared, and trainings that are stopped or killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from comparison import assert_same_record, of_other_code
from unlocked.artifact import record, train
from unlocked.artifact.record import Record
from unlocked.errors import DataError, SettingError
from unlocked.papers.run import Run

MakeRun = Callable[..., Run]


def test_a_record_is_not_trained_again(tiny_run: MakeRun, results: Path) -> None:
    """A second call trains nothing; other settings, other code or a lost file do."""
    run = tiny_run()
    assert train.train([run], results) == [run.id]
    assert train.train([run, run, tiny_run({"runtime.execution": "loop"})], results) == []
    of_other_code(record.folder_of(results, run))
    assert train.train([tiny_run({"runtime.reuse": "same_config"})], results) == []
    assert train.train([run], results) == [run.id]


def harm_config(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))


def empty_history(folder: Path) -> None:
    path = folder / "history.parquet"
    pd.read_parquet(path).iloc[:0].to_parquet(path, index=False)


def flip_bits(folder: Path) -> None:
    path = folder / "history.parquet"
    content = bytearray(path.read_bytes())
    content[100:164] = bytes(byte ^ 255 for byte in content[100:164])
    path.write_bytes(content)


def harm_summary(folder: Path) -> None:
    path = folder / "summary.json"
    path.write_text(path.read_text().replace('"status": "completed"', '"status": "diverged"'))


@pytest.mark.parametrize("harm", [harm_config, empty_history, flip_bits, harm_summary])
def test_an_altered_record_is_set_aside_and_trained_again(
    tiny_run: MakeRun,
    trained: Callable[[Run], Record],
    results: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], None],
) -> None:
    """No reader believes it; the call that finds it trains the run, and what was there is kept."""
    run = tiny_run()
    before = trained(run)
    harm(before.folder)
    kept = {path.name: path.read_bytes() for path in before.folder.iterdir() if path.is_file()}
    with pytest.raises(DataError, match="damaged"):
        record.load(before.folder)
    assert record.load_all(results).empty
    assert not record.current(before.folder, run)
    assert_same_record(trained(run), before)
    aside = before.folder.with_name(f"damaged-{run.id}")
    assert {path.name: path.read_bytes() for path in aside.iterdir() if path.is_file()} == kept
    assert record.load_all(results)["run_id"].tolist() == [run.id]
    harm(before.folder)
    trained(run)
    assert before.folder.with_name(f"damaged-{run.id}.2").is_dir()
    assert capsys.readouterr().err.count("was set aside as") == 2


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


START = """
import sys, torch
from unlocked import cli
assert cli.main(sys.argv[1:]) == 0
assert torch.are_deterministic_algorithms_enabled() and torch.is_deterministic_algorithms_warn_only_enabled()
heavy = {"torch._inductor", "torch._dynamo", "wandb", "matplotlib", "snakemake"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_a_training_imports_nothing_that_it_does_not_need(
    tiny_run: MakeRun, config_file: Callable, results: Path
) -> None:
    """No compiler, no tracker, no drawing: a job begins to train soon. Kernels are deterministic all the same."""
    line = [sys.executable, "-c", START, "train", str(config_file(tiny_run())), "--results", str(results)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
