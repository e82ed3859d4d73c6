"""The run record: a round trip, the schema, damage, what counts as current, and tables of many records."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch

from comparison import of_other_code
from unlocked import fingerprint
from unlocked import record as public
from unlocked.artifact import folders, record
from unlocked.errors import DataError
from unlocked.papers.run import Run

MakeRun = Callable[..., Run]


def history() -> pd.DataFrame:
    """Two evaluations of one scalar and one metric with an index."""
    rows = [
        (step, step / 10, step * 1.5, step * 0.1, metric, index, value)
        for step, values in ((0, [1.0, 0.1, 0.2]), (10, [np.nan, 0.3, np.inf]))
        for metric, index, value in zip(("loss", "accuracy", "accuracy"), (-1, 0, 1), values, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(record.HISTORY))


def summary(run: Run, **changes: Any) -> dict[str, Any]:
    """A valid summary of `run`; a change to None leaves a part out."""
    data = {"name": "digits", "source": "here", "checksum": "0"}
    provenance = {"commit": None, "dirty": False, "versions": {"torch": "2"}, "hardware": {"cores": 2}, "threads": 1}
    parts = {
        "run_id": run.id,
        "config_hash": run.hash,
        "status": "completed",
        "metrics": {"loss": 0.5, "gone": None},
        "counts": {"gradients": 10, "communications_per_edge": [[0, 1, 3]]},
        "durations": {"wall_seconds": 1.0},
        "peak_memory_mb": 100.0,
        "provenance": provenance | {"seed": 0, "code": fingerprint.training(run.trainer), "data": data},
    }
    return {name: part for name, part in (parts | changes).items() if part is not None}


def write(run: Run, results: Path, **changes: Any) -> Path:
    """Write a record of `run`; returns its folder."""
    folder = record.folder_of(results, run)
    record.write(folder, run, history(), summary(run, **changes))
    return folder


@pytest.fixture
def run(tiny_run: MakeRun) -> Run:
    return tiny_run()


@pytest.fixture
def written(run: Run, results: Path) -> Path:
    return write(run, results)


def test_round_trip(written: Path, run: Run) -> None:
    """What is written is read back: settings, rows with their types, summary; the folder is where it belongs."""
    one = public.load(str(written))
    assert written.parts[-3:] == ("quick", "acid", run.id)
    assert (one.run, one.summary) == (run, folders.sealed(summary(run), written))
    pd.testing.assert_frame_equal(one.history, history().astype(record.HISTORY), check_dtype=False)
    types = {name: str(dtype) for name, dtype in one.history.dtypes.items()}
    assert types | {"metric": "string"} == record.HISTORY
    assert sorted(p.name for p in written.iterdir()) == ["config.yaml", "history.parquet", "summary.json"]
    assert [p.name for p in written.parent.iterdir()] == [written.name]
    assert one.series("loss")["step"].tolist() == [0, 10]
    assert one.series("accuracy", 0)["value"].tolist() == [0.1, 0.3]
    assert one.values("accuracy").to_dict() == {0: 0.3, 1: np.inf}


def test_a_new_record_replaces_the_old(written: Path, run: Run, results: Path) -> None:
    (written / "leftover").write_text("old")
    write(run, results, peak_memory_mb=7.0)
    assert record.load(written).summary["peak_memory_mb"] == 7.0
    assert not (written / "leftover").exists()
    assert [p.name for p in written.parent.iterdir()] == [written.name]


@pytest.mark.parametrize("old", ["whole", "half removed", "gone"])
def test_a_kill_while_a_record_is_replaced(written: Path, run: Run, old: str) -> None:
    """The new one is complete under its partial name: it is moved, without its checkpoint; half an old one is none."""
    shutil.copytree(written, record.partial(written))
    (record.partial(written) / "checkpoint-0.pt").write_text("")
    (written / "leftover").write_text("old")
    if old == "gone":
        shutil.rmtree(written)
    if old == "half removed":
        (written / "summary.json").unlink()
        assert not record.current(written, run)
    record.finish_replacing(written)
    assert [p.name for p in written.parent.iterdir()] == [written.name]
    assert sorted(p.name for p in written.iterdir()) == ["config.yaml", "history.parquet", "summary.json"]


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
        *({name: None} for name in ("config_hash", "status", "metrics", "counts", "provenance")),
    ],
    ids=str,
)
def test_what_breaks_the_schema_is_not_written(run: Run, results: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        write(run, results, **changes)
    assert not results.exists()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated history": lambda folder: (folder / "history.parquet").write_bytes(b"PAR1" + bytes(96)),
    "no history": lambda folder: (folder / "history.parquet").unlink(),
    "no config": lambda folder: (folder / "config.yaml").unlink(),
    "config is a list": lambda folder: (folder / "config.yaml").write_text("[1]"),
    "setting of another version": lambda folder: (folder / "config.yaml").open("a").write("owed: poisson\n"),
    "half summary": lambda folder: (folder / "summary.json").write_text('{"run_id": "a'),
    "empty summary": lambda folder: (folder / "summary.json").write_text(""),
    "summary of another kind": lambda folder: (folder / "summary.json").write_text("[1, 2]"),
    "summary lacks parts": lambda folder: (folder / "summary.json").write_text('{"status": "completed"}'),
    "no summary": lambda folder: (folder / "summary.json").unlink(),
    "summary of another run": lambda folder: (folder / "summary.json").write_text('{"run_id": "b-00000000"}'),
    "summary without digests of files": lambda folder: edit_summary(folder, "files"),
    "gone": shutil.rmtree,
}


def edit_summary(folder: Path, *lost: str) -> None:
    """Leave parts of a summary out, and give it the digest of what is left."""
    values = json.loads((folder / "summary.json").read_text())
    values = {key: value for key, value in values.items() if key not in lost}
    if "digest" not in lost:
        values["digest"] = folders.digest_of_summary(values)
    (folder / "summary.json").write_text(json.dumps(values))


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_record_is_one_line(written: Path, run: Run, how: str) -> None:
    """Reading it names its folder; with a damaged summary it is not current, so that it is trained again."""
    DAMAGES[how](written)
    with pytest.raises(DataError) as caught:
        record.load(written)
    assert "\n" not in str(caught.value)
    assert str(written) in str(caught.value)
    if "summary" in how or how == "gone":
        assert not record.current(written, run)


def test_a_record_from_before_there_were_digests_is_read(written: Path, run: Run) -> None:
    edit_summary(written, "files", "digest")
    assert record.current(written, run)
    assert record.load(written).run == run


def test_a_damaged_record_takes_no_other_ones_place(written: Path, run: Run) -> None:
    """What a crash left half written under the partial name stays there."""
    shutil.copytree(written, record.partial(written))
    (record.partial(written) / "history.parquet").write_bytes(b"")
    record.finish_replacing(written)
    assert record.current(written, run)
    assert record.partial(written).exists()


def test_a_record_is_on_disk_before_it_is_one(run: Run, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files first, then the name of the summary, then the checkpoint goes; a crash at any moment loses nothing."""
    folder, order = record.folder_of(results, run), []
    record.partial(folder).mkdir(parents=True)
    checkpoint = record.partial(folder) / "checkpoint-0.pt"
    checkpoint.write_text("")

    def flush(*paths: Path) -> None:
        order.append(sorted(path.name for path in paths))
        assert checkpoint.exists()
        assert all(path.exists() for path in paths)

    monkeypatch.setattr(folders, "flush", flush)
    record.write(folder, run, history(), summary(run))
    assert order == [["config.yaml", "history.parquet", "summary.json.new"], [f"{run.id}.partial"]]
    assert not list(results.rglob("checkpoint*"))


def test_files_and_names_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every path that is given, files and folders, and no descriptor stays open."""
    (tmp_path / "file").write_text("content")
    flushed, inodes = [], [path.stat().st_ino for path in (tmp_path / "file", tmp_path)]
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    before = len(os.listdir("/proc/self/fd"))
    folders.flush(tmp_path / "file", tmp_path)
    assert flushed == inodes
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_unfinished_record_says_so(results: Path, run: Run) -> None:
    folder = record.folder_of(results, run)
    with pytest.raises(DataError, match="does not exist"):
        record.load(folder)
    record.partial(folder).mkdir(parents=True)
    with pytest.raises(DataError, match="unfinished"):
        record.load(folder)


def test_load_all_is_a_flat_table(tiny_run: MakeRun, results: Path) -> None:
    """One row per finished record with dotted settings, metrics, counts; unfinished ones are left out."""
    assert public.load_all(results).empty
    runs = [tiny_run(seed=0), tiny_run(seed=1, rate=0.5), tiny_run(study="averaging")]
    folders = {run.id: write(run, results) for run in runs}
    shutil.copytree(folders[runs[0].id], record.partial(folders[runs[0].id]))
    table = public.load_all(results).set_index("run_id")
    assert {name: Path(folder) for name, folder in table["folder"].items()} == folders
    assert table.loc[[run.id for run in runs], "rate"].tolist() == [1.0, 0.5, 1.0]
    assert table["optim.lr"].dropna().tolist() == [0.02, 0.02]  # averaging takes no steps
    assert set(table["loss"]) == {0.5}
    assert set(table["counts.gradients"]) == {10}
    assert not {"runtime.threads", "runtime"} & set(table)


def test_frames(tiny_run: MakeRun, results: Path) -> None:
    """Runs by their id, in the order given, and every row of every history with its run."""
    assert record.frames([]).history.empty
    runs = [tiny_run(seed=1), tiny_run(method="allreduce")]
    write(runs[1], results, status="diverged")
    made = record.frames([record.load(write(runs[0], results)), record.load(record.folder_of(results, runs[1]))])
    assert made.runs.index.tolist() == [run.id for run in runs]
    assert made.runs["method"].tolist() == ["acid", "allreduce"]
    assert made.runs["diverged"].tolist() == [False, True]
    assert made.runs["diverged"].dtype == bool
    first = made.runs.iloc[0]
    assert first["optim.milestones"] == [0.5, 0.75]
    assert first["counts.communications_per_edge"] == [[0, 1, 3]]
    assert math.isnan(first["gone"])
    given = {"paper": "acid", "seed": 1, "runtime.device": "cpu", "wall_seconds": 1.0, "memory_mb": 100.0}
    given |= {"commit": None, "dirty": False, "threads": 1, "versions": {"torch": "2"}, "hardware": {"cores": 2}}
    given |= {"code": fingerprint.training(runs[0].trainer), "data_source": "here", "data_checksum": "0"}
    assert {name: first[name] for name in given} == given
    assert list(made.history) == ["run", *record.HISTORY]
    for run in runs:
        rows = made.history[made.history["run"] == run.id].drop(columns="run").reset_index(drop=True)
        pd.testing.assert_frame_equal(rows, history(), check_dtype=False)


@pytest.mark.parametrize(("status", "holds"), [("completed", True), ("diverged", True), ("failed", False)])
def test_current(tiny_run: MakeRun, run: Run, results: Path, status: str, holds: bool) -> None:
    """A diverged run is a result, a failed one is tried again; other code holds only if asked for, settings never."""
    folder = write(run, results, status=status)
    assert record.current(folder, run) is holds
    assert not record.current(folder, tiny_run(seed=1))
    of_other_code(folder)
    assert not record.current(folder, run)
    assert record.current(folder, tiny_run({"runtime.reuse": "same_config"})) is holds


def test_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit of the code's folder and whether it was changed since; none where there is no repository."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
    monkeypatch.setattr(record.config, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    made = record.provenance.__wrapped__()
    assert (made["commit"], made["dirty"]) == (None, False)
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    made = record.provenance.__wrapped__()
    assert (made["commit"], made["dirty"]) == (head, False)
    (tmp_path / "file").write_text("2")
    made = record.provenance.__wrapped__()
    assert (made["commit"], made["dirty"]) == (head, True)
    assert made["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert made["hardware"]["cores"] == os.cpu_count()
    assert made["hardware"]["processor"] == record.processor() != ""
