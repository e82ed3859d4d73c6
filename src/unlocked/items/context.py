"""What an item's function gets to know, and what readers are told of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from unlocked.items.frames import Frames
from unlocked.items.table import NONE
from unlocked.units import human_bytes, human_time, plural
from unlocked.vision.data import DATASETS


@dataclass(frozen=True)
class Context:
    """Of one item at one scale."""

    name: str  # e.g. acid_figure_5
    title: str
    caption: str
    scale: str
    frames: Frames
    seeds: tuple[int, ...] = ()
    settings: Any = None  # the scale's values for the item's paper
    claims: Mapping[str, Any] = field(default_factory=dict)  # of the plan, for the items that judge them
    planned: int = 0  # runs that the item should have
    rates: str = "the scale's own"  # why runs have the learning rates that they have
    label: str | None = None  # the paper's own number, with which the title begins

    def learning_rates(self, frames: Frames, *by: str) -> str:
        """A table's note: which learning rates its rows used, and why; by: columns of the runs that name a row."""
        each = frames.runs.groupby(list(by), sort=False, dropna=False)["optim.lr"].unique()
        texts = {key: ", ".join(f"{rate:g}" for rate in sorted(rates)) for key, rates in each.items()}
        if len({*texts.values()}) == 1:
            return f"Learning rate ({self.rates}): {next(iter(texts.values()))}."
        names = (", ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in texts)
        listed = "; ".join(f"{name}: {text}" for name, text in zip(names, texts.values(), strict=True))
        return f"Learning rates ({self.rates}): {listed}."

    @property
    def footer(self) -> str:
        """One line: scale, data, seeds, runs, commit."""
        runs = self.frames.runs
        if runs.empty:
            return f"scale {self.scale} · computed without training"
        commits = sorted({str(commit)[:8] for commit in runs["commit"].astype(object).fillna("unknown")})
        dirty = " (modified)" if runs["dirty"].any() else ""
        return (
            f"scale {self.scale} · {data_titles(runs)} · {plural(runs['seed'].nunique(), 'seed')} · "
            f"{plural(len(runs), 'run')}{lost(runs)} · commit {', '.join(commits[:3])}{dirty}"
        )

    @property
    def unnumbered(self) -> str:
        """The title for LaTeX, which counts tables itself: the paper's number at its end."""
        title = self.title.removeprefix(f"{self.label}: ")
        return f"{title[:1].upper()}{title[1:]}" + (f" ({self.label} of the paper)" if self.label else "")

    @property
    def facts(self) -> dict[str, str]:
        """Scale, data, seeds, number of runs and their cost, in words."""
        return facts(self.frames.runs, self.scale, self.planned)


def facts(runs: pd.DataFrame, scale: str, planned: int, origin: str = "") -> dict[str, str]:
    """Scale, data, seeds, number of runs and their cost, of the runs that are there."""
    if not planned:
        return {"Scale": scale, "Runs": "none: computed without training"}
    known = {"Scale": scale, "Data": NONE, "Seeds": NONE, "Runs": counted(runs, planned, origin)}
    if len(runs):
        memory = human_bytes(runs["memory_mb"].max() * 2**20)
        known |= {"Data": data_titles(runs), "Seeds": ", ".join(map(str, sorted(runs["seed"].unique())))}
        known["Cost"] = f"{human_time(runs['wall_seconds'].sum())} in all, at most {memory} of memory"
    return known


def counted(runs: pd.DataFrame, planned: int, origin: str = "") -> str:
    """`30`, or `20 of 30 recorded`, and how many diverged; where runs are from that are not recorded here."""
    if origin:
        return f"{len(runs)}{lost(runs)}, {origin}"
    return (str(planned) if len(runs) == planned else f"{len(runs)} of {planned} recorded") + lost(runs)


def data_titles(runs: pd.DataFrame) -> str:
    """The data sets of runs, as in captions."""
    names = runs.get("data.name", [None])
    return ", ".join(sorted({DATASETS[name].title if name in DATASETS else "no data set" for name in names}))


def lost(runs: pd.DataFrame) -> str:
    """` (2 diverged)`; empty if none did."""
    count = int(runs["diverged"].sum()) if len(runs) else 0
    return f" ({count} diverged)" if count else ""
