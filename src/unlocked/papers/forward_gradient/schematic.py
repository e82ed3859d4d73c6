"""The schematic of the method: blocks, a local guess, a Jacobian-vector product, and a projection."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from unlocked.items import style
from unlocked.items.context import Context
from unlocked.items.output import Figure

SYMBOLS = {
    "G": "guess: gradient of the local loss a_j at the output of block j",
    "T": "target: gradient of the global loss at the output of block j, never formed",
    "<T, G>": "Jacobian-vector product of the later blocks along G",
    "c G": "estimate, c = <T, G> / <G, G>",
}
CHAIN = (  # place, width and text of the boxes
    (0.0, 1.2, "images"), (2.0, 1.6, "blocks < j"), (4.2, 1.4, "block j"), (6.6, 1.7, "block j+1"), (8.6, 0.8, "…"),
    (10.2, 1.6, "block K"), (12.2, 1.2, "loss L"),
)  # fmt: skip


def figure_1(_: Context) -> Figure:
    """The schematic: local guess at block j, the later blocks' Jacobian-vector product, and the projection."""
    figure, (left, right) = style.new(1, 2, height=2.1, width_ratios=[3.4, 1])
    draw_chain(left)
    draw_projection(right)
    style.panel((left, right), ["target and guess at block j", "the update"])
    for ax in (left, right):
        ax.axis("off")
        ax.set_aspect("equal")
    return Figure(figure, pd.DataFrame({"symbol": SYMBOLS.keys(), "meaning": SYMBOLS.values()}))


def box(ax: Axes, x: float, y: float, text: str, wide: float, color: str = "0.95", edge: str = "0.3") -> None:
    """A rounded box with its centre at (x, y)."""
    corner, shape = (x - wide / 2, y - 0.32), "round,pad=0,rounding_size=0.08"
    ax.add_patch(FancyBboxPatch(corner, wide, 0.64, boxstyle=shape, facecolor=color, edgecolor=edge, linewidth=0.8))
    ax.text(x, y, text, ha="center", va="center")


def arrow(ax: Axes, start: Any, end: Any, color: str, width: float = 1.2) -> None:
    """An arrow between two points."""
    look: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(start, end, color=color, linewidth=width, **look))


def draw_chain(ax: Axes) -> None:
    """The blocks in a row, the auxiliary net above block j, and the Jacobian-vector product below the later ones."""
    for x, wide, text in CHAIN:
        box(ax, x, 0, text, wide, *(("#FDE9D0", style.ORANGE) if text == "block j" else ()))
    for (a, wide_a, _), (b, wide_b, _) in pairwise(CHAIN):
        arrow(ax, (a + wide_a / 2, 0), (b - wide_b / 2, 0), "0.3")
    box(ax, 5.4, 1.75, "auxiliary net: local loss $a_j$", 4.4, "#FBE3DA", style.RED)
    arrow(ax, (5.22, 0.05), (5.22, 1.43), "0.3")
    arrow(ax, (5.5, 1.43), (5.5, 0.05), style.RED)
    ax.text(5.65, 0.85, "guess $G=\\nabla a_j$", color=style.RED, va="center")
    ax.plot([5.4, 5.4, 12.2], [0, -0.75, -0.75], color=style.BLUE, linewidth=1.2)
    arrow(ax, (12.2, -0.75), (12.2, -0.32), style.BLUE)
    pushed = "$G$ pushed forward: $\\langle T, G\\rangle$ by a Jacobian-vector product"
    ax.text(8.8, -1.15, pushed, color=style.BLUE, ha="center", va="center")
    ax.plot([12.2, 12.2, 4.2], [-0.75, -1.6, -1.6], color=style.BLACK, linewidth=1)
    arrow(ax, (4.2, -1.6), (4.2, -0.34), style.BLACK)
    update = "update of block j: $c\\,G$,  $c=\\langle T,G\\rangle\\,/\\,\\Vert G\\Vert^2$"
    ax.text(8.2, -1.9, update, ha="center", va="center")
    ax.set(xlim=(-0.8, 13), ylim=(-2.2, 2.2))


def draw_projection(ax: Axes) -> None:
    """The target, the guess, and the projection of the first on the second."""
    target, guess = np.array([1.5, 2.1]), np.array([3.0, 0.9])
    onto = guess * (target @ guess) / (guess @ guess)
    arrow(ax, (0, 0), guess, style.RED)
    arrow(ax, (0, 0), target, style.GREEN)
    arrow(ax, (0, 0), onto, style.BLACK, width=2.2)
    ax.plot(*zip(target, onto, strict=True), color="0.5", linestyle=":", linewidth=1)
    ax.text(target[0] - 0.1, target[1] + 0.1, "$T$ (not formed)", color=style.GREEN, ha="center", va="bottom")
    ax.text(guess[0] + 0.1, guess[1], "$G$", color=style.RED, va="center")
    ax.text(onto[0] / 2 + 0.15, onto[1] / 2 - 0.15, "$c\\,G$", va="top", ha="left")
    ax.set(xlim=(-0.3, 3.6), ylim=(-0.6, 2.9))
