"""What every table and figure took, from the benchmark files that Snakemake leaves with each job of a finished scale.

A training job serves all items that need one of its runs. So an item has two costs: all jobs that it waits for, which
is what building it alone takes, and its share, every job split evenly over the items that wait for it, which adds up to
the whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from unlocked.artifact import resources
from unlocked.artifact.plan import Plan
from unlocked.errors import DataError
from unlocked.units import plural

TAKEN = ["s", "cpu_time", "max_rss"]  # columns of a benchmark file: seconds, seconds of all cores, MB
HEADER = ("minutes, alone", "minutes, share", "core minutes, share", "memory, MB", "on")


def table(plan: Plan, results: Path) -> pd.DataFrame:
    """One row per item, the last one the total, where every job counts once; `DataError` where one has not run."""
    folder = results / plan.scale.name
    jobs = {key: benchmark(folder / batch.paper, key) for key, batch in plan.batches.items()}
    shares = {key: jobs[key] / len(plan.items_of(batch)) for key, batch in plan.batches.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, item in plan.items.items():
        drawing, batches = benchmark(folder / item.paper, item.id), plan.batches_of(item)
        whole, share = (pd.DataFrame([drawing, *map(of.get, batches)]) for of in (jobs, shares))
        asked = resources.of_job([plan.runs[run] for run in item.runs])
        rows[name] = {
            "alone_minutes": whole["s"].sum() / 60,
            "share_minutes": share["s"].sum() / 60,
            "core_minutes": share["cpu_time"].sum() / 60,
            "memory_mb": whole["max_rss"].max(),
            "on": "GPU" if asked.gpu else plural(asked.threads, "core"),
        }
    costs = pd.DataFrame.from_dict(rows, orient="index")
    spent, cores = costs["share_minutes"].sum(), costs["core_minutes"].sum()
    costs.loc["everything"] = (spent, spent, cores, costs["memory_mb"].max(), ", ".join(sorted(set(costs["on"]))))
    return costs.rename_axis("item")


def benchmark(folder: Path, job: str) -> pd.Series:
    """What a job took: `TAKEN`."""
    path = folder / "benchmarks" / f"{job}.tsv"
    try:
        return pd.read_csv(path, sep="\t", na_values="-")[TAKEN].fillna(0.0).mean()
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: no benchmark ({type(error).__name__}); build the item first") from None


def as_markdown(costs: pd.DataFrame) -> str:
    return str(costs.set_axis(HEADER, axis=1).to_markdown(floatfmt=("", ".1f", ".1f", ".1f", ".0f", "")))
