"""Targets: the gradient that an update should point along, as it stands at every block's output."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlocked.registry import check

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Target:
    """A target, with all that training, tables and figures need of it.

    function(whole, own): the target at a block's output (N, ...), from the gradients there of the net's loss and of the
    block's own loss. Those that `uses_net`, `uses_heads` do not ask for may be None.
    loss: whose gradient the target is, `net` or `head`; None: of neither, and forward mode cannot find it.
    """

    name: str
    label: str  # in tables and legends
    colour: str  # #RRGGBB in figures
    exact: str = ""  # name of the method whose guess is this target itself
    function: Callable[[Tensor, Tensor], Tensor] = lambda whole, _own: whole
    uses_net: bool = False
    uses_heads: bool = False
    loss: str | None = None


TARGETS: dict[str, Target] = {}  # in the order in which they were registered


def shown(entry: Any) -> tuple[tuple[object, str], ...]:
    """What keeps an entry out of tables and figures, and out of an estimate, for `registry.check`."""
    return (
        (not str(entry.label or "").strip(), "needs a label, which tables and legends show"),
        (not re.fullmatch(r"#[0-9A-Fa-f]{6}", str(entry.colour)), "needs a colour for figures, like #0072B2"),
        (not callable(entry.function), "needs a function that can be called"),
    )


def register(target: Target) -> None:
    """Add a target; `SettingError` if it cannot stand."""
    losses = [None, *["net"] * target.uses_net, *["head"] * target.uses_heads]
    check(
        "target", target.name, TARGETS, *shown(target),
        (len(losses) == 1, "must come from somewhere: uses_net, uses_heads"),
        (target.loss not in losses, "needs as loss: net, head (one that it uses), or None"),
    )  # fmt: skip
    TARGETS[target.name] = target


names, get = TARGETS.keys, TARGETS.__getitem__

register(Target("global", "global", "#000000", "backpropagation", uses_net=True, loss="net"))
register(Target("local", "local", "#CC79A7", "local learning", lambda _whole, own: own, uses_heads=True, loss="head"))
