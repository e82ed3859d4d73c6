"""The pilot's choice: of every method in every regime the learning rate with the best accuracy, written for the scale.

Where the best is at an end of the grid the file gets one rate more there, and the next `pilot` trains it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from unlocked.artifact import config
from unlocked.artifact.pilot import RULE, Cell
from unlocked.artifact.plan import Plan
from unlocked.errors import SettingError
from unlocked.items.frames import Frames
from unlocked.items.output import write_text
from unlocked.items.table import NONE
from unlocked.units import plural

HEAD = "# Written by `python3 reproduce.py pilot --config scale={scale}`.\n# {rule}\n"


def chosen(cell: Cell, names: list[str], frames: Frames) -> dict[str, Any]:
    """What the file says of a cell. names: its runs, seeds innermost; those without a record leave it unsettled."""
    shape = len(cell.rates), -1
    runs = frames.runs.reindex(names)
    there = runs["status"].notna().to_numpy().reshape(shape).all(axis=1)
    lost = runs["status"].eq("diverged").to_numpy().reshape(shape).any(axis=1)
    means = 100 * runs["test_accuracy"].astype(float).to_numpy().reshape(shape).mean(axis=1)
    means = np.where(there & ~lost, means, np.nan)
    grid: dict[float, Any] = {
        rate: "diverged" if gone else None if np.isnan(mean) else round(float(mean), 2)
        for rate, mean, gone in zip(cell.rates, means, lost, strict=True)
    }
    if np.isnan(means).all():
        return {"lr": None, "settled": False, "grid": grid}
    best = int(np.nanargmax(means))
    further = beyond(cell.rates, best)
    return {
        "lr": cell.rates[best],
        "settled": bool(there.all()) and further is None,
        "grid": dict(sorted((grid | ({} if further is None else {further: None})).items())),
    }


def beyond(rates: tuple[float, ...], best: int) -> float | None:
    """The rate to try next where the best is the lowest or the highest, as far from it as its neighbour."""
    if 0 < best < len(rates) - 1:
        return None
    if len(rates) == 1:
        raise SettingError("pilot.rates", list(rates), "must be two or more")
    end, neighbour = (rates[0], rates[1]) if best == 0 else (rates[-1], rates[-2])
    return float(f"{end * end / neighbour:.2g}")


def write(plan: Plan, frames: Frames) -> tuple[Path, str]:
    """Write the file, cells by paper; returns its path, and what a reader should know."""
    made = {
        paper: {cell.name: chosen(cell, plan.pilot[paper][cell.name], frames) for cell in cells}
        for paper, cells in plan.scale.cells.items()
        if cells
    }
    if not made:
        raise SettingError("scale", plan.scale.name, "has no pilot: its runs have the rates that it names")
    text = HEAD.format(scale=plan.scale.name, rule=RULE) + yaml.safe_dump(made, sort_keys=False, width=1000)
    return write_text(config.pilot_file(plan.scale.name), text), report(made)


def report(made: dict[str, dict[str, Any]]) -> str:
    """The table, and which cells are not settled."""
    rows, open_cells = [], []
    for paper, cells in made.items():
        for name, choice in cells.items():
            grid = ", ".join(f"{rate:g}: {NONE if value is None else value}" for rate, value in choice["grid"].items())
            rows.append((paper, name, choice["lr"], grid))
            open_cells += [] if choice["settled"] else [f"{paper}/{name}"]
    table = pd.DataFrame(rows, columns=["paper", "method", "rate", "accuracy (%) by rate"]).to_markdown(index=False)
    if not open_cells:
        return f"{table}\n\nall {plural(len(rows), 'choice')} are settled"
    waiting = "runs are missing, or the best rate is at an end of the grid, which is now longer: run the pilot again"
    names = ", ".join(open_cells)
    return f"{table}\n\n{len(open_cells)} of {plural(len(rows), 'choice')} not settled ({waiting}): {names}"
