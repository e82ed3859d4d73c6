"""What the artifact's own code costs, each as a ratio to a peer measured in the same run: `unlocked bench`.

All contestants of a ratio run in turns on the same work, on noise, and a ratio is the median over the turns. A new
measurement is a module with `measure(options) -> numbers` and `MEANINGS`, and its name in `BENCHES`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from unlocked.errors import choose

BENCHES = ("gossip", "processes", "forward_gradient")


@dataclass(frozen=True)
class Options:
    """How thoroughly to measure."""

    turns: int = 7  # timings of every contestant, after one that does not count
    gradients: int = 256  # per turn
    width: float = 1.0  # of the net of forward_gradient


def module(name: str) -> Any:
    """One bench."""
    return importlib.import_module(f"{__name__}.{choose('bench', name, BENCHES)}")


def table(name: str, numbers: Mapping[str, float]) -> str:
    """The numbers for a person."""
    meanings = module(name).MEANINGS
    return "\n".join(f"{key:<32} {value:>8.3f}  {meanings.get(key, '')}".rstrip() for key, value in numbers.items())


def race(contestants: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """CPU seconds of every contestant in every turn. The first turn warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns + 1):
        for name, go in contestants.items():
            start = time.process_time()
            go()
            times[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in times.items()}


def ratio(one: Iterable[float], other: Iterable[float]) -> float:
    """Median over the turns of how often `other` fits into `one`."""
    return median(a / b for a, b in zip(one, other, strict=True))
