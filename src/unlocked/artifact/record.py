"""The run record: the only hand-over from training to tables and figures, written whole or not at all.

A folder with `config.yaml`, `history.parquet` and `summary.json` (and `wandb/`, the offline run). While a run trains
its files are in `<run_id>.partial/`, which is renamed when all are complete.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import yaml

from unlocked.artifact import config, folders
from unlocked.artifact.folders import current as current
from unlocked.artifact.folders import folder_of as folder_of
from unlocked.console import say
from unlocked.errors import DataError
from unlocked.items.frames import Frames
from unlocked.papers.run import Run
from unlocked.settings import flatten

SCHEMA = json.loads((config.ROOT / "workflow" / "schemas" / "record.schema.json").read_text())
HISTORY = {
    "step": "int64",  # gradients so far, over all workers
    "epoch": "float64",  # passes over the training set so far, over all workers
    "virtual_time": "float64",  # in mean gradient durations
    "wall_time": "float64",  # seconds since the start, over all parts of an interrupted run
    "metric": "string",
    "index": "int64",  # worker or block; -1 where a metric has none
    "value": "float64",
}


@dataclass(frozen=True)
class Record:
    """One finished run."""

    folder: Path
    run: Run
    history: pd.DataFrame  # tidy, columns as in HISTORY
    summary: dict[str, Any]

    def series(self, metric: str, index: int = -1) -> pd.DataFrame:
        """The rows of one metric over time."""
        rows = self.history
        return rows[(rows["metric"] == metric) & (rows["index"] == index)].reset_index(drop=True)

    def values(self, metric: str) -> pd.Series:
        """The last value of a metric for every index (worker or block)."""
        rows = self.history[self.history["metric"] == metric]
        return rows.sort_values("step", kind="stable").groupby("index").tail(1).set_index("index")["value"]

    def row(self) -> dict[str, Any]:
        """Its settings by dotted name, how it ended, its final metrics and counts, and what it was made with."""
        summary, made = self.summary, self.summary["provenance"]
        return {
            **flatten(self.run.identity()),
            "runtime.device": self.run.runtime.device,
            "status": summary["status"],
            "diverged": summary["status"] == "diverged",
            **{name: math.nan if value is None else value for name, value in summary["metrics"].items()},
            **{f"counts.{name}": count for name, count in summary["counts"].items()},
            "wall_seconds": summary["durations"]["wall_seconds"],
            "memory_mb": summary["peak_memory_mb"],
            **{name: made[name] for name in ("commit", "dirty", "code", "threads", "versions", "hardware")},
            "data_source": made["data"]["source"],
            "data_checksum": made["data"]["checksum"],
        }


def frames(records: Iterable[Record]) -> Frames:
    """The two tidy frames of some records: a row per run, and all histories."""
    records = list(records)
    names = [record.folder.name for record in records]
    runs = pd.DataFrame([record.row() for record in records], index=pd.Index(names, name="run", dtype="str"))
    histories = [record.history for record in records] or [pd.DataFrame(columns=list(HISTORY)).astype(HISTORY)]
    history = pd.concat(histories, ignore_index=True)
    history.insert(0, "run", np.repeat(runs.index, [len(record.history) for record in records]))
    return Frames(runs, history)


def partial(folder: Path) -> Path:
    """Where a run keeps its files while it trains."""
    return folder.with_name(folder.name + ".partial")


def write(folder: Path, run: Run, history: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Write a record and replace an older one. A killed process leaves no half record, a full disk costs no training:
    the summary comes last and whole, when all is on disk, and the checkpoint stays until then."""
    jsonschema.Draft202012Validator(SCHEMA).validate(summary)
    working = partial(folder)
    working.mkdir(parents=True, exist_ok=True)
    (working / "config.yaml").write_text(yaml.safe_dump(run.settings(), sort_keys=False, allow_unicode=True))
    history.astype(HISTORY).to_parquet(working / "history.parquet", index=False)
    summary = folders.sealed(summary, working)
    (working / "summary.json.new").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    folders.flush(*(working / name for name in (*folders.FILES, "summary.json.new")))
    (working / "summary.json.new").replace(working / "summary.json")
    folders.flush(working)
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Move a complete record from its partial folder into its place. Also what a process left that was killed before it
    did so; for the one process that holds the run's lock."""
    working = partial(folder)
    if (working / "summary.json").is_file() and folders.damage(working) is None:
        for path in working.glob("checkpoint*"):  # a finished run needs none
            path.unlink()
        if folder.exists():
            (folder / "summary.json").unlink(missing_ok=True)  # first: what is half removed is no record
            shutil.rmtree(folder)
        working.rename(folder)


def load(folder: str | Path) -> Record:
    """Read a record; `DataError` with one line if it is missing or not what was written."""
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        state = "is unfinished: run the workflow again" if partial(folder).exists() else "does not exist"
        raise DataError(f"record {folder} {state}")
    try:
        if (wrong := folders.damage(folder)) is not None:
            raise ValueError(wrong)
        summary = folders.summary_of(folder)
        history = pd.read_parquet(folder / "history.parquet")
        run = config.run_from(config.read_yaml(folder / "config.yaml"))
        jsonschema.Draft202012Validator(SCHEMA).validate(summary)
    except Exception as error:
        reason = " ".join(str(getattr(error, "message", error)).split())
        raise DataError(f"record {folder} is damaged ({reason}): the next training of it sets it aside") from None
    return Record(folder, run, history, summary)


def is_record(folder: Path) -> bool:
    named = re.search(r"-[0-9a-f]{8}$", folder.name) and not folder.name.startswith("damaged-")
    return bool(named) and (folder / "summary.json").is_file()


def readable(folders: Iterable[Path]) -> Iterator[Record]:
    """The records of those folders that have one; a damaged one counts as not there, with one line."""
    for folder in filter(is_record, folders):
        try:
            yield load(folder)
        except DataError as error:
            say(str(error))


def load_all(folder: str | Path) -> pd.DataFrame:
    """One row per finished record below `folder`, as `Record.row` has it, with its `run_id` and `folder`."""
    records = list(readable(sorted(path.parent for path in Path(folder).rglob("summary.json"))))
    runs = frames(records).runs.rename_axis("run_id").reset_index()
    return runs.assign(folder=[str(one.folder) for one in records])


def set_damaged_aside(folder: Path) -> None:
    """Make room for a new record where there is a damaged one; for the one process that holds the run's lock."""
    if folder.exists() and (wrong := folders.damage(folder)) is not None:
        folders.set_aside(folder, wrong)


@functools.cache
def provenance() -> dict[str, Any]:
    """Commit, versions and hardware of this process; constant while it lives."""
    described = ""  # `<commit>` or `<commit>-dirty`
    with suppress(OSError, subprocess.TimeoutExpired):  # without git, or outside a repository, there is no commit
        line = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        described = subprocess.run(line, cwd=config.ROOT, capture_output=True, text=True, timeout=20).stdout.strip()
    commit, _, dirty = described.partition("-")
    versions = {name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "wandb")}
    return {
        "commit": commit or None,
        "dirty": bool(dirty),
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {"processor": processor(), "cores": os.cpu_count(), "platform": platform.platform(terse=True)},
    }


def processor() -> str:
    with suppress(OSError, StopIteration):  # Linux only
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
