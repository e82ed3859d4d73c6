"""Trainings driven without the loop."""

from __future__ import annotations

from typing import Any


def advance_all(training: Any) -> Any:
    """All steps of a training without evaluating; what holds its state at the end."""
    for span in range(training.spans):
        for _ in training.advance(span, 0):
            pass
    return getattr(training, "engine", training)


def history(training: Any, first: int = 0) -> list[Any]:
    """Train to the end from a span on: all measurements."""
    result = [] if first else [training.measure(0)]
    for span in range(first, training.spans):
        for _ in training.advance(span, 0):
            pass
        result.append(training.measure(span + 1))
    return result
