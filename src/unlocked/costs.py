"""`unlocked costs`: what every table and figure took, from the benchmark files that Snakemake leaves with each job.

Last on the road: reads `results/<scale>/<paper>/benchmarks/*.tsv` of a finished scale and nothing else. A training job
serves all items that need one of its runs. So an item has two costs: all jobs that it waits for, which is what building
it alone takes, and its share, every job split evenly over the items that wait for it, which adds up to the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from unlocked import resources
from unlocked.errors import DataError
from unlocked.plan import Plan
from unlocked.units import plural

COLUMNS = {
    "alone_minutes": "minutes, alone",
    "share_minutes": "minutes, share",
    "core_minutes": "core minutes, share",
    "memory_mb": "memory, MB",
    "on": "on",
}


def table(plan: Plan, results: Path) -> pd.DataFrame:
    """One row per item, the last one the total; `DataError` where a job has not run."""
    scale = plan.scale.name
    jobs = {key: benchmark(results / scale / batch.paper, key) for key, batch in plan.batches.items()}
    sharing = {key: len(plan.items_of(batch)) for key, batch in plan.batches.items()}
    rows = {}
    for name, item in plan.items.items():
        drawing = benchmark(results / scale / item.paper, item.id)
        rows[name] = item_costs(drawing, {key: jobs[key] for key in plan.batches_of(item)}, sharing)
        rows[name]["on"] = devices(plan, item.runs)
    found = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))
    found.loc["everything"] = total(found, jobs.values())
    return found.rename_axis("item")


def benchmark(folder: Path, job: str) -> pd.Series:
    """What a job took: `s` (seconds), `cpu_time` (seconds), `max_rss` (MB)."""
    path = folder / "benchmarks" / f"{job}.tsv"
    try:
        return pd.read_csv(path, sep="\t", na_values="-")[["s", "cpu_time", "max_rss"]].fillna(0.0).mean()
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: no benchmark ({type(error).__name__}); build the item first") from None


def item_costs(drawing: pd.Series, jobs: Mapping[str, pd.Series], sharing: Mapping[str, int]) -> dict[str, float | str]:
    """Of one item: its own job, and the training jobs that it waits for."""
    every = [drawing, *jobs.values()]
    shares = [drawing, *(job / sharing[key] for key, job in jobs.items())]
    return {
        "alone_minutes": sum(job["s"] for job in every) / 60,
        "share_minutes": sum(job["s"] for job in shares) / 60,
        "core_minutes": sum(job["cpu_time"] for job in shares) / 60,
        "memory_mb": max(job["max_rss"] for job in every),
    }


def total(rows: pd.DataFrame, jobs: Iterable[pd.Series]) -> dict[str, float | str]:
    """The whole: shares add up, and every job is counted once."""
    share = rows["share_minutes"].sum()
    return {
        "alone_minutes": share,
        "share_minutes": share,
        "core_minutes": rows["core_minutes"].sum(),
        "memory_mb": rows["memory_mb"].max(),
        "on": ", ".join(sorted({name for names in rows["on"] for name in str(names).split(", ") if name})),
    }


def devices(plan: Plan, names: Iterable[str]) -> str:
    """What an item's runs are computed on: a GPU, or so many cores per job."""
    asked = resources.most(resources.of_job([plan.runs[name]]) for name in names)
    return "GPU" if asked.gpu else plural(max(1, asked.threads), "core")


def as_markdown(rows: pd.DataFrame) -> str:
    """The table for a README."""
    printed = rows.rename(columns=COLUMNS)
    return printed.to_markdown(floatfmt=("", ".1f", ".1f", ".1f", ".0f", ""))
