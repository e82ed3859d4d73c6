"""Whether two runs of the workflow came to the same results, times aside."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from unlocked import record


def records_of(results: Path) -> dict[str, record.Record]:
    """The finished records below a folder by their id."""
    folders = (path.parent for path in results.rglob("summary.json") if record.is_record(path.parent))
    return {folder.name: record.load(folder) for folder in folders}


def assert_same_records(found: Path, expected: Path) -> None:
    """The same runs with the same numbers, bit by bit; only times, memory and provenance may differ."""
    ours, theirs = records_of(found), records_of(expected)
    assert ours.keys() == theirs.keys()
    assert ours
    for name in ours:
        for part in ("status", "metrics", "counts", "config_hash"):
            assert ours[name].summary[part] == theirs[name].summary[part], name
        histories = [records[name].history.drop(columns="wall_time") for records in (ours, theirs)]
        pd.testing.assert_frame_equal(*histories, check_exact=True)


def assert_same_items(found: Path, expected: Path) -> None:
    """The same numbers behind the same tables and figures, byte by byte."""
    ours, theirs = csv_files(found), csv_files(expected)
    assert ours == theirs
    assert ours


def csv_files(folder: Path) -> dict[Path, bytes]:
    """The contents of all CSV files below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.csv")}
