"""The run record: a round trip, the schema, damage, what counts as current, and kills."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf

from unlocked import config, record, train
from unlocked.errors import DataError


def history() -> pd.DataFrame:
    """Two evaluations of one scalar and one metric with an index."""
    rows = [
        (step, step / 10, step * 1.5, step * 0.1, metric, index, value)
        for step, values in ((0, [1.0, 0.1, 0.2]), (10, [np.nan, 0.3, np.inf]))
        for metric, index, value in zip(("loss", "accuracy", "accuracy"), (-1, 0, 1), values, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(record.HISTORY))


def summary(run: DictConfig, **changes: Any) -> dict[str, Any]:
    """A valid summary of `run`."""
    data = {"name": "digits", "source": "here", "checksum": "0"}
    provenance = {"commit": None, "dirty": False, "versions": {}, "hardware": {}, "threads": 1, "seed": 0}
    return {
        "run_id": config.run_id(run),
        "config_hash": config.config_hash(run),
        "status": "completed",
        "metrics": {"loss": 0.5, "gone": None},
        "counts": {"gradients": 10, "communications_per_edge": [[0, 1, 3]]},
        "durations": {"wall_seconds": 1.0},
        "peak_memory_mb": 100.0,
        "provenance": provenance | {"code": "abc", "data": data},
    } | changes


@pytest.fixture
def run(tiny_run: Callable[..., DictConfig]) -> DictConfig:
    """A run."""
    return tiny_run()


@pytest.fixture
def written(run: DictConfig, results: Path) -> Path:
    """The folder of a record."""
    folder = record.folder_of(results, run)
    record.write(folder, run, history(), summary(run))
    return folder


def test_round_trip(written: Path, run: DictConfig) -> None:
    """What is written is read back: config, rows with their types, summary; the folder is where it belongs."""
    found = record.load(written)
    assert written.parent.name == "acid"
    assert written.parent.parent.name == "quick"
    assert found.run_id == written.name == config.run_id(run)
    assert found.summary == summary(run)
    assert OmegaConf.to_container(found.config) == OmegaConf.to_container(run)
    pd.testing.assert_frame_equal(found.history, history().astype(record.HISTORY), check_dtype=False)
    assert {k: str(t) for k, t in found.history.dtypes.items() if k != "metric"} == {
        k: t for k, t in record.HISTORY.items() if k != "metric"
    }
    assert sorted(p.name for p in written.iterdir()) == ["config.yaml", "history.parquet", "summary.json"]
    assert [p.name for p in written.parent.iterdir()] == [written.name]


def test_series_and_values(written: Path) -> None:
    """A metric over time, and its last value for every index."""
    found = record.load(str(written))
    assert found.series("loss")["step"].tolist() == [0, 10]
    assert found.series("accuracy", 0)["value"].tolist() == [0.1, 0.3]
    assert found.values("accuracy").to_dict() == {0: 0.3, 1: np.inf}
    assert found.series("nothing").empty
    assert not found.diverged


def test_config_of_a_record_is_the_run(written: Path, run: DictConfig) -> None:
    """The config in the folder resolves to a run of the same id."""
    assert config.run_id(config.from_file(written / "config.yaml")) == config.run_id(run)


def test_a_new_record_replaces_the_old(written: Path, run: DictConfig) -> None:
    """Written anew, the folder holds the new files only; nothing is left beside it."""
    (written / "leftover").write_text("old")
    record.write(written, run, history(), summary(run, peak_memory_mb=7.0))
    assert record.load(written).summary["peak_memory_mb"] == 7.0
    assert not (written / "leftover").exists()
    assert [p.name for p in written.parent.iterdir()] == [written.name]


@pytest.mark.parametrize(
    "changes",
    [
        {"status": "perfect"},
        {"config_hash": "short"},
        {"run_id": "no-hash"},
        {"metrics": {"loss": "low"}},
        {"counts": {}},
        {"counts": {"gradients": -1}},
        {"counts": {"gradients": 1, "communications_per_edge": [[0, 1]]}},
        {"durations": {}},
        {"provenance": {}},
        {"surprise": 1},
    ],
)
def test_what_breaks_the_schema_is_not_written(run: DictConfig, results: Path, changes: dict[str, Any]) -> None:
    """A summary against the schema is refused in one line, and nothing appears on disk."""
    folder = record.folder_of(results, run)
    with pytest.raises(DataError) as caught:
        record.write(folder, run, history(), summary(run, **changes))
    assert "\n" not in str(caught.value)
    assert "summary.json" in str(caught.value)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["config_hash", "status", "metrics", "counts", "provenance"])
def test_every_required_part_is_required(run: DictConfig, results: Path, name: str) -> None:
    """A summary that lacks a part is refused by its name."""
    lacking = summary(run)
    del lacking[name]
    with pytest.raises(DataError, match=name):
        record.write(record.folder_of(results, run), run, history(), lacking)


def damage(folder: Path, how: str) -> None:
    """Damage a record in a named way."""
    parquet = folder / "history.parquet"
    {
        "truncated history": lambda: parquet.write_bytes(parquet.read_bytes()[:100]),
        "no history": parquet.unlink,
        "no config": (folder / "config.yaml").unlink,
        "half summary": lambda: (folder / "summary.json").write_text('{"run_id": "a'),
        "empty summary": lambda: (folder / "summary.json").write_text(""),
        "summary of another kind": lambda: (folder / "summary.json").write_text("[1, 2]"),
        "no summary": (folder / "summary.json").unlink,
        "config is a list": lambda: (folder / "config.yaml").write_text("[1]"),
        "gone": lambda: shutil.rmtree(folder),
    }[how]()


DAMAGES = ["truncated history", "no history", "no config", "half summary", "empty summary", "summary of another kind"]
DAMAGES += ["no summary", "config is a list", "gone"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_record_is_one_line(written: Path, how: str) -> None:
    """Reading a damaged record names its folder in one line."""
    damage(written, how)
    with pytest.raises(DataError) as caught:
        record.load(written)
    assert "\n" not in str(caught.value)
    assert str(written) in str(caught.value)


def test_an_unfinished_record_says_so(results: Path, run: DictConfig) -> None:
    """A folder that is still being trained is told from one that never was."""
    folder = record.folder_of(results, run)
    with pytest.raises(DataError, match="does not exist"):
        record.load(folder)
    record.partial(folder).mkdir(parents=True)
    with pytest.raises(DataError, match="unfinished"):
        record.load(folder)


def test_load_all_is_a_flat_table(tiny_run: Callable[..., DictConfig], results: Path) -> None:
    """One row per finished record with dotted settings, metrics, counts; unfinished and replaced ones are left out."""
    runs = [tiny_run(seed=s, rate=r) for s, r in ((0, 1.0), (1, 0.5))]
    for run in runs:
        record.write(record.folder_of(results, run), run, history(), summary(run))
    folder = record.folder_of(results, runs[0])
    for other in (record.partial(folder), folder.with_name(folder.name + ".old")):
        shutil.copytree(folder, other)
    table = record.load_all(results)
    assert sorted(table["run_id"]) == sorted(config.run_id(run) for run in runs)
    assert sorted(table["rate"]) == [0.5, 1.0]
    assert set(table["optim.lr"]) == {0.02}
    assert set(table["metrics.loss"]) == {0.5}
    assert set(table["counts.gradients"]) == {10}
    assert set(table["provenance.code"]) == {"abc"}
    assert not [c for c in table.columns if isinstance(table[c].iloc[0], (dict, list)) and c != "optim.milestones"]
    assert all(Path(f).is_dir() for f in table["folder"])


def test_load_all_of_nothing(tmp_path: Path) -> None:
    """No records, no rows."""
    assert record.load_all(tmp_path).empty
    assert record.load_all(tmp_path / "missing").empty


def test_current(tiny_run: Callable[..., DictConfig], written: Path, run: DictConfig) -> None:
    """Same config and same code hold; other code holds only if asked for; other config never."""
    assert record.current(written, run, "abc")
    assert not record.current(written, run, "other")
    assert record.current(written, tiny_run({"runtime.reuse": "same_config"}), "other")
    assert not record.current(written, tiny_run(seed=1), "abc")
    assert not record.current(written.with_name("missing"), run, "abc")


@pytest.mark.parametrize(("status", "holds"), [("completed", True), ("diverged", True), ("failed", False)])
def test_a_failed_run_is_not_current(results: Path, run: DictConfig, status: str, holds: bool) -> None:
    """A diverged run is a result, a failed one is tried again."""
    folder = record.folder_of(results, run)
    record.write(folder, run, history(), summary(run, status=status))
    assert record.current(folder, run, "abc") is holds


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "{}", None])
def test_a_damaged_record_is_not_current(written: Path, run: DictConfig, text: str | None) -> None:
    """It is trained again instead of stopping everything."""
    if text is None:  # a summary without the part that is looked at
        text = json.dumps({"config_hash": config.config_hash(run), "status": "completed"})
    (written / "summary.json").write_text(text)
    assert not record.current(written, run, "abc")


def test_a_record_is_not_trained_again(tiny_run: Callable[..., DictConfig], results: Path) -> None:
    """A second call trains nothing; other settings, other code or a lost file do."""
    run = tiny_run()
    assert train.train([run], results) == [config.run_id(run)]
    assert train.train([run], results) == []
    assert train.train([tiny_run({"runtime.execution": "loop"})], results) == []
    path = record.folder_of(results, run) / "summary.json"
    altered = json.loads(path.read_text())
    altered["provenance"]["code"] = "older"
    path.write_text(json.dumps(altered))
    assert train.train([tiny_run({"runtime.reuse": "same_config"})], results) == []
    assert train.train([run], results) == [config.run_id(run)]


def test_provenance(tiny_run: Callable[..., DictConfig], trained: Callable[[DictConfig], record.Record]) -> None:
    """The record says with what it was made."""
    made = trained(tiny_run(seed=3)).summary["provenance"]
    assert made["seed"] == 3
    assert made["data"]["name"] == "digits"
    assert len(made["code"]) == 16
    assert {"python", "torch", "numpy"} <= set(made["versions"])
    assert made["hardware"]["cores"] >= 1


def wait_for_progress(process: subprocess.Popen, step: int) -> None:
    """Read a training's output until it has come past `step`."""
    assert process.stdout is not None
    for line in process.stdout:
        words = line.split()
        if len(words) > 1 and "/" in words[1] and int(words[1].split("/")[0]) > step:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "ended")


def test_a_killed_run_leaves_no_record(
    tiny_run: Callable[..., DictConfig], config_file: Callable, start_command: Callable, results: Path
) -> None:
    """After SIGKILL there is no folder but the partial one; the next training completes it."""
    run = tiny_run({"optim.epochs": 8, "evaluation.points": 20, "runtime.checkpoint_minutes": 0})
    folder = record.folder_of(results, run)
    process = start_command("train", config_file(run), "--results", results)
    wait_for_progress(process, 300)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert [p.name for p in folder.parent.iterdir() if p.name != "locks"] == [record.partial(folder).name]
    assert record.load_all(results).empty
    assert train.train([run], results) == [config.run_id(run)]
    found = record.load(folder)
    assert found.summary["status"] == "completed"
    assert found.series("test_accuracy")["step"].is_unique
    assert [p.name for p in folder.parent.iterdir() if p.name != "locks"] == [folder.name]
