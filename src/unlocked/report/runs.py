"""The table of runs: one row per finished run of a scale, with what it was made of and a digest of all its numbers.

It stands beside the figures of its scale and is small enough to be kept with them, so that a run that somebody trains
again can be compared with it to the last bit.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from unlocked.errors import DataError
from unlocked.items.output import atomically
from unlocked.report.page import Sources
from unlocked.units import plural

METRICS = ["test_accuracy", "train_loss", "consensus_distance"]  # those of the last measurement; the digest has all
MEASURED_TIME = ("seconds", "bytes")  # metrics that are measurements of the machine begin like this
FORMER = {"consensus_distance_auxiliary": "consensus_distance_twin"}  # its name in the tables that were shipped
DIGESTED = ["step", "epoch", "virtual_time", "metric", "index", "value"]
COLUMNS = (
    "paper", "status", "seed", *METRICS, "history", "gradients", "communications", "seconds", "memory_mb", "config",
    "code", "commit", "modified", "data", "data_sha256", "processor", "threads", "python", "torch", "items",
)  # fmt: skip
NAMES = {
    "gradients": "counts.gradients", "communications": "counts.communications", "seconds": "wall_seconds",
    "modified": "dirty", "data": "data.name", "data_sha256": "data_checksum",
}  # fmt: skip


def digest(history: pd.DataFrame) -> str:
    """16 hex digits of SHA-256 over every step, epoch, virtual time, metric, index and value; not over seconds."""
    kept = history.loc[~history["metric"].str.startswith(MEASURED_TIME), DIGESTED]
    kept = kept.replace({"metric": FORMER})
    return hashlib.sha256(kept.to_csv(index=False).encode()).hexdigest()[:16]


def table(sources: Sources) -> pd.DataFrame:
    """One row per finished run of the plan, in the plan's order."""
    plan, frames = sources.plan, sources.frames
    frames = frames.assign(
        history=pd.Series({name: digest(rows) for name, rows in frames.history.groupby("run")}, dtype=object),
        config=[plan.runs[name].hash[:16] for name in frames.runs.index],
        items=[" ".join(item.name for item in plan.wanted_by[name]) for name in frames.runs.index],
        processor=frames.column("hardware").str.get("processor"),
        **{name: frames.column("versions").str.get(name) for name in ("python", "torch")},
    )
    columns = {name: frames.column(NAMES.get(name, name)) for name in COLUMNS}
    return pd.DataFrame(columns).fillna({"data": "none"}).rename_axis("run").reset_index()


def write(sources: Sources, path: Path) -> Path:
    return atomically(path, lambda whole: table(sources).to_csv(whole, index=False, lineterminator="\n"))


def compare(runs: pd.DataFrame, path: Path) -> str:
    """What became of runs that were trained again, against the table in `path`; `DataError` if none can be compared."""
    try:
        known = pd.read_csv(path).set_index("run")[["history", *METRICS]]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: no table of runs ({type(error).__name__}: {error})") from None
    now, lines, same = runs[runs["run"].isin(known.index)].set_index("run"), [], 0
    if now.empty:
        raise DataError(f"{path}: none of the runs here is in it; to train one: unlocked train --runs ID --results DIR")
    for name, row in now.iterrows():
        then = known.loc[name]
        if row["history"] == then["history"]:
            same += 1
            lines.append(f"{name}: the same to the last bit")
        else:
            changes = [f"{key} {then[key]:.6g} -> {row[key]:.6g}" for key in METRICS if pd.notna(row[key])]
            lines.append(", ".join([f"{name}: differs", *changes]))
    return "\n".join([*lines, f"{plural(len(now), 'run')} compared, {same} the same to the last bit"])
