"""How figures look: one place for sizes, fonts, colours and markers, so that a method looks the same everywhere; and
mean curves over time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from unlocked.items.frames import Frames

matplotlib.use("agg")

COLUMN, PAGE = 3.3, 6.8  # inches: widths of one and of two columns of a conference paper
RC = {
    "font.family": "serif", "font.serif": ["STIXGeneral", "DejaVu Serif"], "mathtext.fontset": "stix",
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.linewidth": 0.4, "grid.color": "0.88",
    "lines.linewidth": 1.3, "legend.frameon": False, "legend.handlelength": 2.2,
    "svg.fonttype": "none", "svg.hashsalt": "unlocked", "pdf.fonttype": 42,
}  # fmt: skip
# Okabe and Ito's palette, told apart by colour-blind readers
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip


def new(
    rows: int = 1, columns: int = 1, *, width: float = PAGE, height: float = 2.2, **options: Any
) -> tuple[Figure, Any]:
    """A figure and its axes (an array unless there is one) in the house style."""
    matplotlib.rcParams.update(RC)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def log_ticks(ax: Axes, values: Sequence[float]) -> None:
    """Exactly these values on a logarithmic x axis."""
    ax.set_xticks(values, [f"{value:g}" for value in values])
    for label in ax.get_xticklabels() if len(values) > 6 else ():
        label.set(rotation=45, rotation_mode="anchor", horizontalalignment="right")
    ax.xaxis.set_minor_locator(NullLocator())


def panel(axes: Iterable[Axes], titles: Sequence[str]) -> None:
    """Letters (a), (b), ... before the titles."""
    for letter, ax, title in zip("abcdefgh", axes, titles, strict=False):
        ax.set_title(f"({letter}) {title}", loc="left")


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str], columns: int) -> None:
    """One legend for all panels, under the figure's lower edge."""
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns)


def shared_legend(figure: Figure, columns: int) -> None:
    """The labels of all panels in one legend."""
    handles: dict[str, Any] = {}
    for ax in figure.axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        if own := ax.get_legend():
            own.remove()
    legend_below(figure, list(handles.values()), list(handles), columns)


def plain(axis: Axis) -> None:
    """Numbers that can be read on a logarithmic axis: 0.2, 0.5, 1, ... where it spans less than two decades."""
    low, high = sorted(axis.get_view_interval())
    fixed = isinstance(axis.get_major_locator(), FixedLocator)
    if axis.get_scale() != "log" or low <= 0 or high / low > 100 or fixed:
        return
    inside = sum(low <= digit * 10.0**power <= high for digit in (1, 2, 5) for power in range(-12, 12))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if inside > 2 else MaxNLocator(4, steps=[1, 2, 5, 10]))
    axis.set_major_formatter("{x:.10g}")
    axis.set_minor_locator(NullLocator())


def percent(*axes: Axes) -> None:
    """Shares on the y axes as percent."""
    for ax in axes:
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))


def footer(figure: Figure, text: str) -> None:
    """Small print under everything else."""
    for ax in figure.axes:
        plain(ax.xaxis)
        plain(ax.yaxis)
    figure.draw_without_rendering()
    lowest = figure.get_tightbbox().y0  # inches
    figure.text(0.005, (lowest - 0.06) / figure.get_figheight(), text, fontsize=5, color="0.45", va="top")


def curve(ax: Axes, x: Any, data: pd.DataFrame, look: Mapping[str, Any], *, band: bool = True) -> None:
    """The column `mean` against x, and a band from `low` to `high`. look: options of `Axes.plot`."""
    (line,) = ax.plot(x, data["mean"], **look)
    if band:
        ax.fill_between(x, data["low"], data["high"], color=line.get_color(), alpha=0.15, linewidth=0)


Panel = tuple[Axes, str, str]  # where, which metric, against what


def draw(
    frames: Frames,
    panels: Sequence[Panel],
    by: Sequence[str],
    look: Callable[..., dict[str, Any]],
    *,
    band: bool = True,
) -> pd.DataFrame:
    """In every panel a curve for each group of runs: their mean after the start, and their range as a band.

    Runs that diverged are not in it; the label counts them. by: the settings that make a group. look: from their values
    to options of `Axes.plot`, the label among them. Returns what is drawn, one row per point, as `Frames.curve` has it.
    """
    numbers = []
    for key, group in frames.runs.groupby(list(by), dropna=False, sort=False):
        own, style = frames.where(frames.runs.index.isin(group.index)), look(*key)
        if lost := len(own.diverged):
            style = style | {"label": f"{style['label']} ({lost} of {len(group)} diverged)"}
        kept = own.completed
        for ax, metric, x in panels:
            data = kept.curve(metric, by, x).query("step > 0")
            curve(ax, data[x], data, style, band=band)
            numbers.append(data)
    return pd.concat(numbers)
