"""Whether two trainings, or two runs of the workflow, came to the same results, times aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from unlocked.artifact import folders, loop, record, train
from unlocked.artifact.record import Record
from unlocked.artifact.tracking import Interrupted
from unlocked.papers.run import Run


class StopAfter:
    """Stands in for the flag that signals set: asks for a stop after it has been read `reads` times."""

    def __init__(self, reads: int) -> None:
        self.left = reads

    @property
    def requested(self) -> int | None:
        self.left -= 1
        return 15 if self.left < 0 else None


def train_here(run: Run, results: Path, data: Any, stop: Any = None) -> Record:
    """Train a run on data that are loaded, and read its record."""
    train.train_one(run, results, data, (), stop)
    return record.load(record.folder_of(results, run))


def of_other_code(folder: Path) -> None:
    """Make a record one that another version of the code has written."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["provenance"]["code"] = "older"
    path.write_text(json.dumps(folders.sealed(summary, folder)))


def assert_survives_stops(run: Run, data: Any, folder: Path, stops: int = 2) -> None:
    """Stopped inside its spans and continued, a run leaves the record of one that was not stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "STEPS_PER_LOOK", 1)
        for _ in range(stops):
            with pytest.raises(Interrupted):
                train_here(run, folder / "stopped", data, StopAfter(1))
    continued, whole = (train_here(run, folder / place, data) for place in ("stopped", "whole"))
    assert continued.summary["provenance"]["resumed"] == stops
    assert not record.partial(continued.folder).exists()
    assert_same_record(continued, whole)


def assert_same_record(ours: Record, theirs: Record) -> None:
    """The same numbers, bit by bit; only times, memory and provenance may differ."""
    for part in ("run_id", "status", "metrics", "counts", "config_hash"):
        assert ours.summary[part] == theirs.summary[part]
    histories = [one.history.drop(columns="wall_time") for one in (ours, theirs)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def assert_same_records(found: Path, expected: Path) -> None:
    """The same runs with the same numbers below two folders."""
    ours, theirs = (list(map(record.load, record.load_all(folder)["folder"])) for folder in (found, expected))
    assert ours
    for one, other in zip(ours, theirs, strict=True):
        assert_same_record(one, other)


def assert_same_items(found: Path, expected: Path) -> None:
    """The same numbers behind the same tables and figures, byte by byte."""
    ours, theirs = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.csv")} for folder in (found, expected)
    )
    assert ours == theirs
    assert ours
