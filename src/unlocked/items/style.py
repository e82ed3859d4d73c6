"""How figures look: one place for sizes, fonts, colours and markers, so that a method looks the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

matplotlib.use("agg")

COLUMN, PAGE = 3.3, 6.8  # inches: widths of one and of two columns of a conference paper
RC = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "0.88",
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "unlocked",
    "pdf.fonttype": 42,
}
# Okabe and Ito's palette, told apart by colour-blind readers
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
METHOD = {"allreduce": BLACK, "baseline": BLUE, "acid": RED}
METHOD_NAME = {"allreduce": "AR-SGD", "baseline": "async. baseline", "acid": "A²CiD²"}
VERDICT = {  # colour and marker: told apart by either
    "supported": (GREEN, "o"),
    "not supported": (RED, "X"),
    "inconclusive": (ORANGE, "D"),
    "not run": ("0.5", "s"),
}
DASH = {0.5: ":", 1.0: "-", 2.0: "--"}  # by communication rate


def new(rows: int = 1, columns: int = 1, *, width: float = PAGE, height: float = 2.2, **options: Any) -> tuple:
    """A figure and its axes (an array unless there is one) in the house style."""
    matplotlib.rcParams.update(RC)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def curve(ax: Axes, data: pd.DataFrame, x: str = "epoch", *, band: bool = True, **options: Any) -> None:
    """A mean curve with the range over its seeds as a band."""
    (line,) = ax.plot(data[x], data["mean"], **options)
    if band and (data["runs"] > 1).any():
        ax.fill_between(data[x], data["low"], data["high"], color=line.get_color(), alpha=0.15, linewidth=0)


def shades(color: str, count: int) -> list[tuple[float, float, float]]:
    """From light to full: one colour in `count` steps, for a growing number of workers."""
    full = to_rgb(color)
    strength = [0.3 + 0.7 * (k + 1) / count for k in range(count)]
    return [tuple(1 - s * (1 - channel) for channel in full) for s in strength]


def panel(axes: Iterable[Axes], titles: Sequence[str]) -> None:
    """Letters (a), (b), ... before the titles."""
    for letter, ax, title in zip("abcdefgh", axes, titles, strict=False):
        ax.set_title(f"({letter}) {title}", loc="left")


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    """One legend for all panels, under the figure's lower edge."""
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns)


def footer(figure: Figure, text: str) -> None:
    """Small print under everything else."""
    figure.draw_without_rendering()
    lowest = figure.get_tightbbox().y0  # inches
    figure.text(0.005, (lowest - 0.06) / figure.get_figheight(), text, fontsize=5, color="0.45", va="top")
