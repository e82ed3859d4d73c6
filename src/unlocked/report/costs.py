"""What every table and figure took, from the benchmark files that Snakemake leaves with each job of a finished scale.

A training job holds runs of many items. What it took is split over its runs as the plan's estimates are. So an item has
two costs: its runs, which is what building it alone takes, and its share of them, every run split evenly over the items
that read it, which adds up to the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from unlocked.artifact import resources
from unlocked.artifact.plan import Batch, Plan
from unlocked.errors import DataError
from unlocked.items.table import NONE
from unlocked.report.sources import Sources
from unlocked.units import plural

TAKEN = ["s", "cpu_time", "max_rss"]  # columns of a benchmark file: seconds, seconds of all cores, MB
HEADER = {
    "alone_minutes": "minutes, alone", "share_minutes": "minutes, share", "core_minutes": "core minutes, share",
    "memory_mb": "memory, MB",
}  # fmt: skip
FORMATS = dict.fromkeys(HEADER, "{:.1f}") | {"memory_mb": "{:.0f}"}


def table(plan: Plan, results: Path) -> pd.DataFrame:
    """One row per item, the last one the total, where every job counts once; `DataError` where one has not run."""
    folder = results / plan.scale.name
    wanted = [batch for batch in plan.batches.values() if any(map(plan.wanted_by.get, batch.runs))]
    runs = {name: cost for batch in wanted for name, cost in split(batch, plan, folder)}
    shares = {name: cost / len(plan.wanted_by[name]) for name, cost in runs.items() if plan.wanted_by[name]}
    rows: dict[str, dict[str, Any]] = {}
    for name, item in plan.items.items():
        drawing = benchmark(folder / item.paper, item.id)
        whole, share = (pd.DataFrame([drawing, *map(of.get, item.runs)]) for of in (runs, shares))
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


def of_runs(sources: Sources) -> pd.DataFrame:
    """The same from the table of runs that was shipped: runs, each split evenly over its items, and no drawing."""
    runs, rows = sources.runs.runs, {}
    share = runs["wall_seconds"] / runs["items"].map(len)
    for name, item in sources.plan.items.items():
        own = sources.runs_of(item)
        minutes = {"alone_minutes": own["wall_seconds"].sum() / 60, "share_minutes": share[own.index].sum() / 60}
        rows[name] = minutes | {"memory_mb": own["memory_mb"].max()}
    costs = pd.DataFrame.from_dict(rows, orient="index")
    spent = runs["wall_seconds"].sum() / 60
    costs.loc["everything"] = (spent, spent, costs["memory_mb"].max())
    return costs.rename_axis("item")


def split(batch: Batch, plan: Plan, folder: Path) -> Iterator[tuple[str, pd.Series]]:
    """What every run of a job took."""
    took, costs = benchmark(folder / batch.paper, batch.id), [plan.runs[name].estimate().seconds for name in batch.runs]
    whole = sum(costs) or 1.0
    for name, cost in zip(batch.runs, costs, strict=True):
        part = took * cost / whole
        part["max_rss"] = took["max_rss"]
        yield name, part


def benchmark(folder: Path, job: str) -> pd.Series:
    """What a job took: `TAKEN`."""
    path = folder / "benchmarks" / f"{job}.tsv"
    try:
        return pd.read_csv(path, sep="\t", na_values="-")[TAKEN].fillna(0.0).mean()
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: no benchmark ({type(error).__name__}); build the item first") from None


def as_markdown(costs: pd.DataFrame) -> str:
    """Rounded, a dash where nothing was trained."""
    shown = {HEADER.get(name, name): costs[name] for name in costs}
    shown |= {
        HEADER[name]: costs[name].map(form.format, na_action="ignore")
        for name, form in FORMATS.items()
        if name in costs
    }
    align = ("left", *("right" if name in FORMATS else "left" for name in costs))
    return str(pd.DataFrame(shown).fillna(NONE).to_markdown(disable_numparse=True, colalign=align))
