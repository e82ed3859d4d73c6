"""`unlocked runs`: one row per finished run of a scale, with what it was made of and a digest of all its numbers.

Last on the road, beside the report. The table stands beside the figures of its scale and is small enough to be kept
with them, so that a run that somebody trains again can be compared with it to the last bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from unlocked.errors import DataError
from unlocked.items.build import records_there
from unlocked.plan import Plan
from unlocked.record import Record
from unlocked.units import plural

METRICS = ("test_accuracy", "train_loss", "consensus_distance")  # those of the last measurement; the digest has all
MEASURED_TIME = ("seconds", "bytes")  # metrics that are measurements of the machine begin like this


def digest(history: pd.DataFrame) -> str:
    """16 hex digits of SHA-256 over every step, epoch, virtual time, metric, index and value; not over seconds."""
    kept = history[~history["metric"].str.startswith(MEASURED_TIME)].drop(columns="wall_time")
    return hashlib.sha256(kept.to_csv(index=False).encode()).hexdigest()[:16]


def row(one: Record, items: Sequence[str]) -> dict[str, Any]:
    """A run: which, how it ended, what it took, what it was made of."""
    summary, made = one.summary, one.summary["provenance"]
    return {
        "run": one.run_id,
        "paper": one.config.paper,
        "status": summary["status"],
        "seed": made["seed"],
        **{name: summary["metrics"].get(name) for name in METRICS},
        "history": digest(one.history),
        "gradients": summary["counts"]["gradients"],
        "communications": summary["counts"].get("communications"),
        "seconds": summary["durations"]["wall_seconds"],
        "memory_mb": summary["peak_memory_mb"],
        "config": summary["config_hash"][:16],
        "code": made["code"],
        "commit": made["commit"],
        "modified": made["dirty"],
        "data": made["data"]["name"],
        "data_sha256": made["data"]["checksum"],
        "processor": made["hardware"]["processor"],
        "threads": made["threads"],
        "python": made["versions"]["python"],
        "torch": made["versions"].get("torch"),
        "items": " ".join(items),
    }


def table(plan: Plan, results: Path) -> pd.DataFrame:
    """One row per finished run of the plan, in the plan's order."""
    wanted_by: dict[str, list[str]] = {}
    for item in plan.items.values():
        for name in item.runs:
            wanted_by.setdefault(name, []).append(item.name)
    rows = [row(one, wanted_by[one.run_id]) for one in records_there(plan.runs, plan, results)]
    return pd.DataFrame(rows)


def write(plan: Plan, results: Path, path: Path) -> Path:
    """Write the table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table(plan, results).to_csv(path, index=False, lineterminator="\n")
    return path


def compare(found: pd.DataFrame, path: Path) -> str:
    """What became of runs that were trained again, against the table in `path`; `DataError` if none can be compared."""
    try:
        known = pd.read_csv(path).set_index("run")[["history", *METRICS]]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: no table of runs ({type(error).__name__}: {error})") from None
    both = [name for name in found.get("run", ()) if name in known.index]
    if not both:
        raise DataError(f"{path}: none of the runs here is in it; to train one: unlocked train --runs ID --results DIR")
    now, then = found.set_index("run").loc[both], known.loc[both]
    same = now["history"] == then["history"]
    lines = [
        f"{name}: " + ("the same to the last bit" if same[name] else changes(then.loc[name], now.loc[name]))
        for name in both
    ]
    return "\n".join([*lines, f"{plural(len(both), 'run')} compared, {same.sum()} the same to the last bit"])


def changes(then: pd.Series, now: pd.Series) -> str:
    """The main numbers of a run that differs."""
    there = [metric for metric in METRICS if pd.notna(now[metric])]
    return ", ".join(["differs", *(f"{metric} {then[metric]:.6g} -> {now[metric]:.6g}" for metric in there)])
