"""The items about the claims of both papers: the table of verdicts, and the figure of effects against thresholds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from unlocked import claims
from unlocked.items import style
from unlocked.items.output import Context, Figure, Table

AXIS = {
    "ratio": "ratio",
    "percentage points": "difference in percentage points",
    "exponent": "exponent (slope on logarithmic axes)",
    "share": "share",
    "cosine": "difference of cosines",
}  # labels by unit, in the panels' order


def verdicts(context: Context) -> Table:
    """Every claim with its verdict, and below it every part with effect, interval and threshold."""
    frame = claims.table(context.claims, context.records)
    printed, notes = [], []
    for name, parts in frame.groupby("id", sort=False):
        first = parts.iloc[0]
        printed.append({"id": name, "statement": first["claim"], "verdict": first["claim_verdict"]})
        printed += [
            {"id": "", "statement": f"· {row.statistic}", "effect [95 % interval]": claims.interval_text(row),
             "n": str(row.n), "claimed": row.threshold.replace("-", "−"), "verdict": row.verdict}
            for row in parts.itertuples()
        ]  # fmt: skip
        reasons = [f"{row.part}: {row.reason}" for row in parts.itertuples() if row.reason]
        because = f" Note on {'; '.join(reasons)}." if reasons else ""
        notes.append(f"{name}: {first['source']}. {first['conditions']}{because}")
    order = ["statement", "effect [95 % interval]", "n", "claimed", "verdict"]
    table = pd.DataFrame(printed).set_index("id")[order].fillna("")
    return Table(table, frame, notes, columns="lp{8cm}rrll")


def effects(context: Context) -> Figure:
    """A row per part: mean, interval, threshold and claimed side; a panel per unit."""
    frame = claims.table(context.claims, context.records)
    sides = [claims.bounds(context.claims[row.id].config.parts[row.part]) for row in frame.itertuples()]
    drawn = frame.assign(least=[low for low, _ in sides], most=[high for _, high in sides])
    units = [unit for unit in AXIS if unit in set(frame["unit"])]
    counts = [int((frame["unit"] == unit).sum()) for unit in units]
    height = sum(0.15 * count + 0.36 for count in counts)
    figure, axes = style.new(
        len(units), 1, height=height, squeeze=False, gridspec_kw={"height_ratios": [count + 0.4 for count in counts]}
    )
    for ax, unit in zip(axes[:, 0], units, strict=True):
        draw_panel(ax, drawn[drawn["unit"] == unit], unit)
    style.legend_below(figure, *legend(frame["verdict"]), 6)
    return Figure(figure, frame)


def draw_panel(ax: Axes, rows: pd.DataFrame, unit: str) -> None:
    """All parts with one unit, the first on top."""
    log = unit == "ratio"
    left, right = limits(rows, log)
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlim=(left, right), ylim=(len(rows) - 0.4, -0.6))
    ax.set_xlabel(AXIS[unit], fontsize=7, labelpad=1)
    ax.set_yticks(range(len(rows)), [f"{row.id}  {for_figure(row.statistic)}" for row in rows.itertuples()])
    ax.tick_params(axis="y", length=0, pad=6)  # room for an arrow
    ax.tick_params(labelsize=6)
    ax.grid(False, axis="y")
    for y, row in enumerate(rows.itertuples()):
        draw_row(ax, y, row, (left, right))


def draw_row(ax: Axes, y: int, row: Any, span: tuple[float, float]) -> None:
    """One part: claimed side, thresholds, interval (an arrow where it leaves the panel), mean, and the numbers."""
    inside = (max(row.least, span[0]), min(row.most, span[1]))
    ax.fill_betweenx([y - 0.42, y + 0.42], *inside, color="0.93", linewidth=0, zorder=0)
    for threshold in (row.least, row.most):
        if math.isfinite(threshold):
            ax.plot([threshold] * 2, [y - 0.42, y + 0.42], color="0.35", linestyle=(0, (2, 1.2)), linewidth=0.9)
    color, marker = style.VERDICT[row.verdict]
    if not math.isnan(row.low):
        ax.plot([max(row.low, span[0]), min(row.high, span[1])], [y, y], color=color, linewidth=1.3)
        for edge, arrow, leaves in ((span[0], "<", row.low < span[0]), (span[1], ">", row.high > span[1])):
            if leaves:
                ax.plot(edge, y, arrow, color=color, markersize=4, clip_on=False)
    if not math.isnan(row.effect):
        ax.plot(row.effect, y, marker, color=color, markersize=4.5, markeredgecolor="white", markeredgewidth=0.4)
    text = claims.interval_text(row) if not math.isnan(row.effect) else row.verdict
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


def for_figure(text: str) -> str:
    """Indices as mathematics: the serif font lacks them."""
    return text.replace("√(χ₁χ₂)", r"$\sqrt{\chi_1\chi_2}$").replace("χ₁", r"$\chi_1$").replace("χ₂", r"$\chi_2$")


def legend(found: Iterable[str]) -> tuple[Sequence[Any], Sequence[str]]:
    """Handles and labels of the verdicts that occur, of the threshold and of the claimed side."""
    present = set(found)
    names = [name for name in style.VERDICT if name in present and name != claims.NOT_RUN]  # that is a word
    handles: list[Any] = [
        Line2D([], [], color=style.VERDICT[name][0], marker=style.VERDICT[name][1], markersize=4.5) for name in names
    ]
    handles += [Line2D([], [], color="0.35", linestyle=(0, (2, 1.2)), linewidth=0.9), Patch(color="0.93")]
    return handles, [*names, "threshold", "where the claim lies"]
