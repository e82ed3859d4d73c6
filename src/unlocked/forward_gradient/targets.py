"""Targets: the gradient that an update should point along, at every block's output and inside the block.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `estimator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from unlocked.errors import choose
from unlocked.forward_gradient.passes import BlockPass, HeadPass, pull

Wanted = Callable[[BlockPass], Sequence[Tensor | GradientEdge]]


@dataclass
class Arrival:
    """A gradient that reached a block: at its output (N, ...), and at the places wanted inside it."""

    output: Tensor
    inside: tuple[Tensor | None, ...]


def names() -> tuple[str, ...]:
    """The targets that `build` knows."""
    return tuple(_TARGETS)


def build(name: str, passes: Sequence[BlockPass], heads: Sequence[HeadPass], wanted: Wanted) -> list[Arrival]:
    """The target `name` at every block.

    passes, heads: one per block; `global` needs the passes chained, and every head that a target starts from needs its
    output gradient. wanted: the places inside a block whose gradients are taken on the same way back.
    """
    return _TARGETS[choose("target", name, names())](passes, heads, wanted)


def global_(passes: Sequence[BlockPass], heads: Sequence[HeadPass], wanted: Wanted) -> list[Arrival]:
    """The gradient of the whole net's loss: backpropagated from the classifier through all blocks."""
    arrivals: list[Arrival] = []
    cotangent = heads[-1].output_gradient
    for step in reversed(passes):
        places = list(wanted(step))
        if step.index == 0:
            arrivals.append(Arrival(cotangent, pull(step.outputs, cotangent, places)))
            continue
        upstream, *inside = pull(step.outputs, cotangent, [step.inputs, *places])
        arrivals.append(Arrival(cotangent, tuple(inside)))
        cotangent = torch.zeros_like(step.inputs) if upstream is None else upstream
    return arrivals[::-1]


def local(passes: Sequence[BlockPass], heads: Sequence[HeadPass], wanted: Wanted) -> list[Arrival]:
    """The gradient of each block's own auxiliary loss; for the last block that is the whole net's loss."""
    return [
        Arrival(own.output_gradient, pull(step.outputs, own.output_gradient, list(wanted(step))))
        for step, own in zip(passes, heads, strict=True)
    ]


_TARGETS: dict[str, Callable[[Sequence[BlockPass], Sequence[HeadPass], Wanted], list[Arrival]]] = {
    "global": global_,
    "local": local,
}
