"""The run record: the only hand-over from training to figures. Written whole or not at all.

Fourth on the road, after the trainers and before the items; without torch. A record is the folder
`results/<scale>/<paper>/<run_id>/` with `config.yaml`, `history.parquet` and `summary.json` (and `wandb/`, the
offline run). While a run trains, its files live in `<run_id>.partial/`; the folder is renamed when all are complete.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from unlocked import config
from unlocked.errors import DataError

SCHEMA = config.ROOT / "workflow" / "schemas" / "record.schema.json"
HISTORY = {
    "step": "int64",  # gradients so far, over all workers
    "epoch": "float64",  # passes over the training set so far, over all workers
    "virtual_time": "float64",  # in mean gradient durations
    "wall_time": "float64",  # seconds since the start, over all parts of an interrupted run
    "metric": "string",
    "index": "int64",  # worker or block; -1 where a metric has none
    "value": "float64",
}
STATUSES = ("completed", "diverged", "failed")


@dataclass(frozen=True)
class Record:
    """One finished run."""

    folder: Path
    config: DictConfig
    history: pd.DataFrame  # tidy, columns as in HISTORY
    summary: dict[str, Any]

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def diverged(self) -> bool:
        """Whether training ended in a loss that is not a number: a result, shown as such."""
        return self.summary["status"] == "diverged"

    def series(self, metric: str, index: int = -1) -> pd.DataFrame:
        """The rows of one metric over time."""
        rows = self.history
        return rows[(rows["metric"] == metric) & (rows["index"] == index)].reset_index(drop=True)

    def values(self, metric: str) -> pd.Series:
        """The last value of a metric for every index (worker or block)."""
        rows = self.history[self.history["metric"] == metric]
        return rows.sort_values("step", kind="stable").groupby("index").tail(1).set_index("index")["value"]


def folder_of(results: Path, run: DictConfig) -> Path:
    """Where the record of a run stands."""
    return results / run.scale / run.paper / config.run_id(run)


def partial(folder: Path) -> Path:
    """Where a run keeps its files while it trains."""
    return folder.with_name(folder.name + ".partial")


@functools.cache
def validator() -> Any:
    """What checks a `summary.json` against its schema; made once, because that costs more than the check."""
    import jsonschema

    return jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))


def validate_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Raise `DataError` if a summary does not follow the schema."""
    from jsonschema.exceptions import best_match

    if error := best_match(validator().iter_errors(summary)):
        raise DataError(f"{folder / 'summary.json'}: {error.message}")


def write(folder: Path, run: DictConfig, history: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Write a record into its partial folder, then rename it into place; an older record is replaced.

    Every file is on disk before the rename, and the rename is atomic: a killed process leaves no half record. The
    summary comes last and whole, and the checkpoint stays until then: a full disk costs no training.
    """
    validate_summary(summary, folder)
    working = partial(folder)
    working.mkdir(parents=True, exist_ok=True)
    (working / "config.yaml").write_text(OmegaConf.to_yaml(run, resolve=True))
    history.astype(HISTORY).to_parquet(working / "history.parquet", index=False)
    (working / "summary.json.new").write_text(json.dumps(summary, indent=1, sort_keys=True) + "\n")
    for name in ("config.yaml", "history.parquet", "summary.json.new"):
        with open(working / name, "rb") as file:
            os.fsync(file.fileno())
    (working / "summary.json.new").replace(working / "summary.json")
    drop_checkpoints(working)
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        working.rename(folder)
        shutil.rmtree(old)
    else:
        working.rename(folder)


def load(folder: str | Path) -> Record:
    """Read a record; `DataError` with one line if it is missing or damaged."""
    folder = Path(folder)
    if not (folder / "summary.json").is_file():
        state = "is unfinished: run the workflow again" if partial(folder).exists() else "does not exist"
        raise DataError(f"record {folder} {state}")
    try:
        summary = json.loads((folder / "summary.json").read_text())
        history = pd.read_parquet(folder / "history.parquet")
        settings = OmegaConf.load(folder / "config.yaml")
        if not isinstance(settings, DictConfig):
            raise TypeError("config.yaml does not hold the settings of a run")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(f"record {folder} is damaged ({reason}): delete it and run again") from None
    validate_summary(summary, folder)
    return Record(folder, settings, history, summary)


def is_record(folder: Path) -> bool:
    """Whether a folder holds a finished record."""
    return folder.suffix not in (".partial", ".old") and (folder / "summary.json").is_file()


def load_all(folder: str | Path) -> pd.DataFrame:
    """One row per finished record below `folder`: its settings (dotted keys), its summary, `run_id` and `folder`."""
    rows = []
    for path in sorted(p.parent for p in Path(folder).rglob("summary.json") if is_record(p.parent)):
        record = load(path)
        settings = OmegaConf.to_container(record.config, resolve=True)
        assert isinstance(settings, dict)
        scalars = {k: v for k, v in config.flatten(record.summary).items() if not isinstance(v, list)}
        rows.append(config.flatten(settings) | scalars | {"run_id": record.run_id, "folder": str(path)})
    return pd.DataFrame(rows)


def current(folder: Path, run: DictConfig, code: str) -> bool:
    """Whether a complete record of this run exists and still holds: same config, same code unless told otherwise."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
        same_config = summary["config_hash"] == config.config_hash(run)
        same_code = summary["provenance"]["code"] == code
        complete = summary["status"] in ("completed", "diverged")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return complete and same_config and (same_code or run.runtime.reuse == "same_config")


def finish_replacing(folder: Path) -> None:
    """A process killed between the two renames of `write` left a complete record under its partial name: move it.

    For the one process that holds the run's lock.
    """
    working = partial(folder)
    if not folder.exists() and (working / "summary.json").is_file():
        drop_checkpoints(working)
        working.rename(folder)
    shutil.rmtree(folder.with_name(folder.name + ".old"), ignore_errors=True)


def drop_checkpoints(working: Path) -> None:
    """A finished run needs none."""
    for path in working.glob("checkpoint.*"):
        path.unlink()


def git(*arguments: str) -> str:
    """Output of a git command in the repository, empty where there is none."""
    try:
        done = subprocess.run(["git", *arguments], cwd=config.ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def processor() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@functools.cache
def provenance() -> dict[str, Any]:
    """Commit, versions and hardware of this process; constant while it lives."""
    versions = {name: metadata.version(name) for name in installed(("torch", "torchvision", "numpy", "wandb"))}
    return {
        "commit": git("rev-parse", "HEAD") or None,
        "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {"processor": processor(), "cores": os.cpu_count(), "platform": platform.platform(terse=True)},
    }


def installed(names: Iterable[str]) -> list[str]:
    """Those of `names` that are installed."""
    present = []
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        present.append(name)
    return present
