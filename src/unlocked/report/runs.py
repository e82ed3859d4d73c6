"""The table of runs: one row per finished run of a scale, with what it was made of and a digest of all its numbers.

It stands beside the figures of its scale and is small enough to be kept with them, so that a run that somebody trains
again can be compared with it: to the last bit on the same kind of processor with the same versions, else by the spread
over the seeds that the table has, because rounding differs and training amplifies it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from pathlib import Path

import pandas as pd
import scipy.stats

from unlocked.errors import DataError
from unlocked.items.output import atomically
from unlocked.papers.run import Run
from unlocked.report.inference import FEWEST
from unlocked.report.sources import COLUMNS, RENAMED, Sources, read_runs
from unlocked.units import plural

METRICS = ["test_accuracy", "train_loss", "consensus_distance"]  # those of the last measurement; the digest has all
MEASURED_TIME = ("seconds", "bytes")  # metrics that are measurements of the machine begin like this
MACHINE = ["processor", "threads", "python", "torch"]  # what decides the rounding
ERROR = 0.05  # chance that anything is said to differ in a comparison in which nothing does
DIGESTED = ["step", "epoch", "virtual_time", "metric", "index", "value"]


def digest(history: pd.DataFrame) -> str:
    """16 hex digits of SHA-256 over every step, epoch, virtual time, metric, index and value; not over seconds."""
    kept = history.loc[~history["metric"].str.startswith(MEASURED_TIME), DIGESTED]
    return hashlib.sha256(kept.to_csv(index=False).encode()).hexdigest()[:16]


def group(run: Run) -> str:
    """8 hex digits that runs share which differ in the seed alone."""
    return dataclasses.replace(run, seed=0).hash[:8]


def table(sources: Sources) -> pd.DataFrame:
    """One row per finished run of the plan, in the plan's order."""
    plan, frames = sources.plan, sources.frames
    frames = frames.assign(
        history=pd.Series({name: digest(rows) for name, rows in frames.history.groupby("run")}, dtype=object),
        config=[plan.runs[name].hash[:16] for name in frames.runs.index],
        group=[group(plan.runs[name]) for name in frames.runs.index],
        items=[" ".join(plan.items_of(name)) for name in frames.runs.index],
        processor=frames.column("hardware").str.get("processor"),
        **{name: frames.column("versions").str.get(name) for name in ("python", "torch")},
    )
    columns = {name: frames.column(RENAMED.get(name, name)) for name in COLUMNS}
    return pd.DataFrame(columns).fillna({"data": "none"}).rename_axis("run").reset_index()


def write(sources: Sources, path: Path) -> Path:
    """Write the table; one that was shipped is not replaced by an empty one."""
    if sources.frames.runs.empty and path.is_file():
        raise DataError(f"{path}: stays as it is, because no run of this scale is recorded in {sources.results}")
    return atomically(path, lambda whole: table(sources).to_csv(whole, index=False, lineterminator="\n"))


def compare(runs: pd.DataFrame, path: Path) -> str:
    """What became of runs that were trained again, against the table in `path`; `DataError` if none can be compared.

    `same`: to the last bit. `differs`: not so on the same kind of machine, or beyond what other seeds would give.
    `agrees`: within that.
    """
    known = read_runs(path)
    now = runs[runs["run"].isin(known.index)].set_index("run")
    if now.empty:
        raise DataError(f"{path}: none of the runs here is in it; to train one: unlocked train --runs ID --results DIR")
    level = ERROR / (len(now) * len(METRICS))
    found = {name: judged(row, known, level) for name, row in now.iterrows()}
    lines = [machines("there", known.loc[now.index]), machines("here", now)]
    lines += [f"{name}: {word}{more}" for name, (word, more) in found.items()]
    counts = Counter(word for word, _ in found.values())
    each = ", ".join(f"{counts[word]} {word}" for word in ("same", "agrees", "differs"))
    return "\n".join([*lines, f"{plural(len(now), 'run')} compared: {each}"])


def machines(where: str, runs: pd.DataFrame) -> str:
    """`here: Intel(R) Xeon(R) Processor, 1 threads, python 3.11.7, torch 2.14.1`; several joined by `and`."""
    kinds = runs[MACHINE].drop_duplicates().itertuples(index=False)
    return f"{where}: " + " and ".join(
        f"{k.processor}, threads {k.threads}, python {k.python}, torch {k.torch}" for k in kinds
    )


def judged(row: pd.Series, known: pd.DataFrame, level: float) -> tuple[str, str]:
    """What became of one run, and what is to be said of it; level: of each metric's test."""
    then = known.loc[row.name]
    if row["history"] == then["history"]:
        return "same", ""
    shown = [key for key in METRICS if pd.notna(row[key]) or pd.notna(then[key])]
    changes = ", ".join(f"{key} {then[key]:.6g} -> {row[key]:.6g}" for key in shown)
    if [str(row[key]) for key in MACHINE] == [str(then[key]) for key in MACHINE]:
        return "differs", f", though the machine and the versions are alike: {changes}"
    seeds = known[known["group"] == then["group"]]
    within = all(within_spread(row[key], seeds[key], level) for key in shown)
    return "agrees" if within else "differs", f", by the spread of {plural(len(seeds), 'seed')}: {changes}"


def within_spread(value: float, seeds: pd.Series, level: float) -> bool:
    """Whether a number lies in the prediction interval for one more seed (Student's t); never with fewer than 3."""
    count = seeds.notna().sum()
    if count < FEWEST:
        return False
    reach = scipy.stats.t.isf(level / 2, count - 1) * seeds.std() * math.sqrt(1 + 1 / count)
    return bool(abs(value - seeds.mean()) <= reach)
