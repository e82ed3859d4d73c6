"""Targets: the gradient that an update should point along, as it stands at every block's output.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `estimator`, which takes it on into
the block.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from unlocked.errors import choose
from unlocked.forward_gradient.passes import HeadPass


def names() -> tuple[str, ...]:
    """The targets that `cotangent` knows."""
    return tuple(_TARGETS)


def cotangent(name: str, whole: Tensor, own: HeadPass) -> Tensor:
    """The target `name` at a block's output (N, ...).

    whole: the gradient of the whole net's loss there. own: the block's auxiliary net, with its gradient there.
    """
    return _TARGETS[choose("target", name, names())](whole, own)


_TARGETS: dict[str, Callable[[Tensor, HeadPass], Tensor]] = {
    "global": lambda whole, own: whole,
    "local": lambda whole, own: own.output_gradient,
}
