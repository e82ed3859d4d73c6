"""What a paper's training offers the loop that drives it, and the arithmetic of a budget that all share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Measurement:
    """What an evaluation gave, and when: numbers, or one number per worker or block."""

    metrics: dict[str, Any]
    step: int  # gradients so far, over all workers
    epoch: float
    virtual_time: float


class Training(Protocol):
    """A run under way. Made by `Trainer(run, data)`; a training with processes of its own also has `close()`."""

    spans: int  # parts of the run, each followed by an evaluation

    def length(self, span: int) -> int:
        """The number of steps of a span."""

    def advance(self, span: int, skip: int) -> Iterator[None]:
        """Do the steps of a span from the `skip`-th on, one per `next`."""

    def healthy(self) -> bool:
        """Whether the loss is still a finite number."""

    def measure(self, spans: int) -> Measurement:
        """Evaluate after that many spans."""

    def counts(self) -> dict[str, Any]:
        """The `counts` of the record."""

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs: tensors and plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""


def evaluation_points(total: int, points: int) -> list[int]:
    """Steps at which a run is evaluated, besides the start; the last is `total`."""
    return sorted({max(1, round(total * k / points)) for k in range(1, points + 1)})


def spans(total: int, points: int) -> list[range]:
    """The steps between two evaluations."""
    bounds = evaluation_points(total, points)
    return [range(a, b) for a, b in zip([0, *bounds], bounds, strict=False)]


def total_gradients(epochs: float, images: int, batch_size: int, workers: int = 1) -> int:
    """Gradients over all workers: `epochs * floor(images / batch)`, cut to a multiple of the workers."""
    return int(epochs * (images // batch_size)) // workers * workers
