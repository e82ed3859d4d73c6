"""What every table and figure took: from the benchmark files that Snakemake leaves with each job, or a table of runs.

An item has two costs: its runs, which is what building it alone takes, and its share of them, every run split evenly
over the items that read it, which adds up to the whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

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
    drawn = pd.DataFrame({name: benchmark(folder / item.paper, item.id) for name, item in plan.items.items()}).T
    drawn = drawn.assign(cpu_time=drawn["s"], max_rss=math.nan)  # in a process that was no child of the job
    took = pd.concat([drawn, *(split(batch, plan, folder) for batch in wanted)])
    costs = by_item(took, {name: [name, *item.runs] for name, item in plan.items.items()})
    asked = [resources.of_job([plan.runs[run] for run in item.runs]) for item in plan.items.values()]
    places = ["GPU" if job.gpu else plural(job.threads, "core") for job in asked]
    return costs.assign(on=[*places, ", ".join(sorted(set(places)))])


def of_runs(sources: Sources) -> pd.DataFrame:
    """The same from a table of runs, without what drawing took."""
    took = sources.runs.runs[["wall_seconds", "memory_mb"]].set_axis(["s", "max_rss"], axis=1).assign(cpu_time=0.0)
    needs = {name: list(sources.runs_of(item).index) for name, item in sources.plan.items.items()}
    return by_item(took, needs).drop(columns="core_minutes")


def by_item(took: pd.DataFrame, needs: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """What items cost, by what each part that one or several of them need took (`TAKEN`)."""
    readers = pd.Series(list(itertools.chain(*needs.values()))).value_counts()
    share, rows = took.div(readers.reindex(took.index), axis=0), {}
    for name, parts in needs.items():
        own, part = took.loc[parts], share.loc[parts]
        rows[name] = (own["s"].sum() / 60, part["s"].sum() / 60, part["cpu_time"].sum() / 60, own["max_rss"].max())
    spent = took["s"].sum() / 60
    rows["everything"] = (spent, spent, took["cpu_time"].sum() / 60, took["max_rss"].max())
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(HEADER)).rename_axis("item")


def split(batch: Batch, plan: Plan, folder: Path) -> pd.DataFrame:
    """What every run of a job took: its time by the plan's estimates, all its memory."""
    took = benchmark(folder / batch.paper, batch.id)
    costs = pd.Series({name: plan.runs[name].estimate().seconds for name in batch.runs})
    parts = costs / (costs.sum() or 1.0)
    return pd.DataFrame({"s": took["s"] * parts, "cpu_time": took["cpu_time"] * parts, "max_rss": took["max_rss"]})


def benchmark(folder: Path, job: str) -> pd.Series:
    """What a job took: `TAKEN`."""
    path = folder / "benchmarks" / f"{job}.tsv"
    try:
        return pd.read_csv(path, sep="\t", na_values="-")[TAKEN].fillna(0.0).mean()
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: no benchmark ({type(error).__name__}); build the item first") from None


def as_markdown(costs: pd.DataFrame) -> str:
    """Rounded, a dash where nothing was trained."""
    shown = costs.astype(object)
    for name in set(FORMATS) & set(costs):
        shown[name] = costs[name].map(FORMATS[name].format, na_action="ignore")
    align = ("left", *("right" if name in FORMATS else "left" for name in costs))
    return str(shown.rename(columns=HEADER).fillna(NONE).to_markdown(disable_numparse=True, colalign=align))
