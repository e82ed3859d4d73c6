"""The items about the claims of all papers: the table of verdicts, and the figure of effects against thresholds."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from unlocked.items import style
from unlocked.items.context import Context
from unlocked.items.output import Figure
from unlocked.items.table import Table
from unlocked.report import claims

AXIS = {
    "ratio": "ratio",
    "percentage points": "difference in percentage points",
    "exponent": "exponent (slope on logarithmic axes)",
    "cosine": "difference of cosines",
    "rank correlation": "rank correlation",
}  # labels by unit, in the panels' order
LOOKS = {  # colour and marker of a verdict: told apart by either
    claims.SUPPORTED: (style.GREEN, "o"),
    claims.NOT_SUPPORTED: (style.RED, "X"),
    claims.NO_DIFFERENCE: (style.BLUE, "P"),
    claims.INCONCLUSIVE: (style.ORANGE, "D"),
    claims.PIPELINE_CHECK: (style.SKY, "v"),
    claims.NOT_RUN: ("0.5", "s"),
}
DASHED: dict[str, Any] = {"color": "0.35", "linestyle": (0, (2, 1.2)), "linewidth": 0.9}
SYMBOLS = {"√(χ₁χ₂)": r"$\sqrt{\chi_1\chi_2}$", "χ₁": r"$\chi_1$", "χ₂": r"$\chi_2$"}  # the font lacks the indices


def verdicts(context: Context) -> Table:
    """Every claim with its verdict, and below it every part with effect, interval and threshold."""
    return claims.as_table(claims.table(context.claims, context.frames))


def effects(context: Context) -> Figure:
    """A row per part: mean, interval, threshold and claimed side; a panel per unit."""
    frame = claims.table(context.claims, context.frames)
    sides = [claims.bounds(context.claims[row.id].parts[row.part]) for row in frame.itertuples()]
    drawn = frame.assign(least=[low for low, _ in sides], most=[high for _, high in sides])
    panels = {unit: drawn[drawn["unit"] == unit] for unit in AXIS if unit in set(drawn["unit"])}
    height, ratios = 0.15 * len(drawn) + 0.36 * len(panels), [len(rows) + 0.4 for rows in panels.values()]
    figure, axes = style.new(len(panels), 1, height=height, squeeze=False, height_ratios=ratios)
    for ax, (unit, rows) in zip(axes[:, 0], panels.items(), strict=True):
        draw_panel(ax, rows, unit)
    handles: dict[str, Any] = {
        name: Line2D([], [], color=color, marker=marker, markersize=4.5)
        for name, (color, marker) in LOOKS.items()
        if name in set(frame["verdict"]) - {claims.NOT_RUN}  # which is a word in the figure
    }
    handles |= {"threshold": Line2D([], [], **DASHED), "where the claim lies": Patch(color="0.93")}
    style.legend_below(figure, list(handles.values()), list(handles), 6)
    return Figure(figure, frame)


def draw_panel(ax: Axes, rows: pd.DataFrame, unit: str) -> None:
    """All parts with one unit, the first on top."""
    span = limits(rows, log=unit == "ratio")
    if unit == "ratio":
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.minorticks_off()
    labels = "\n".join(rows["id"] + "  " + rows["statistic"])
    for symbol, mathematics in SYMBOLS.items():
        labels = labels.replace(symbol, mathematics)
    ax.set(xlim=span, ylim=(len(rows) - 0.4, -0.6))
    ax.set_xlabel(AXIS[unit], fontsize=7, labelpad=1)
    ax.set_yticks(range(len(rows)), labels.splitlines())
    ax.tick_params(axis="y", length=0, pad=6)  # room for an arrow
    ax.tick_params(labelsize=6)
    ax.grid(False, axis="y")
    for y, row in enumerate(rows.itertuples()):
        draw_row(ax, y, row, span)


def draw_row(ax: Axes, y: int, row: Any, span: tuple[float, float]) -> None:
    """One part: claimed side, thresholds, interval (an arrow where it leaves the panel), mean, and the numbers."""
    edges = [y - 0.42, y + 0.42]
    ax.fill_betweenx(edges, max(row.least, span[0]), min(row.most, span[1]), color="0.93", linewidth=0, zorder=0)
    for threshold in filter(math.isfinite, (row.least, row.most)):
        ax.plot([threshold] * 2, edges, **DASHED)
    color, marker = LOOKS[row.verdict]
    ax.plot([max(row.low, span[0]), min(row.high, span[1])], [y, y], color=color, linewidth=1.3)
    for edge, arrow, leaves in ((span[0], "<", row.low < span[0]), (span[1], ">", row.high > span[1])):
        if leaves:
            ax.plot(edge, y, arrow, color=color, markersize=4, clip_on=False)
    ax.plot(row.effect, y, marker, color=color, markersize=4.5, markeredgecolor="white", markeredgewidth=0.4)
    text = row.verdict if math.isnan(row.effect) else claims.interval_text(row.effect, row.low, row.high)
    ax.text(1.03, y, text, transform=ax.get_yaxis_transform(), fontsize=6, va="center", color="0.2")


def limits(rows: pd.DataFrame, log: bool) -> tuple[float, float]:
    """A panel's range: all effects and thresholds with room around, and intervals as far as they do not dwarf them."""
    scale = math.log if log else float
    points = [scale(x) for column in ("effect", "least", "most") for x in rows[column] if math.isfinite(x)]
    reach = max(max(points) - min(points), 0.2)
    whole = [scale(x) for column in ("low", "high") for x in rows[column].dropna() if not log or x > 0]
    left = max(min([*points, *whole]), min(points) - 0.5 * reach) - 0.08 * reach
    right = min(max([*points, *whole]), max(points) + 0.5 * reach) + 0.08 * reach
    return (math.exp(left), math.exp(right)) if log else (left, right)
