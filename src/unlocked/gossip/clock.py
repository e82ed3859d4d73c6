"""How long a gradient, a message and an all-reduce take: the model behind virtual time.

Durations are in gradient times, the mean duration of one gradient of an ordinary worker. Every worker has its own
seeded stream of them, which depends on the seed and the clock alone: compared methods meet the same fast and slow
gradients. A new law of gradient times is one function with the decorator `law`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from unlocked import seeding
from unlocked.registry import name_of
from unlocked.settings import Settings, setting


@dataclass(frozen=True)
class Slowdown(Settings):
    """Workers that are slower than others."""

    slow_workers: int = setting(0, "the first so many workers are slow", least=0, most=1_000_000)
    slow_factor: float = setting(
        2.0, "a slow worker's gradients take so many times as long; processes sleep", least=1, most=1e6
    )

    def check(self) -> None:
        self.refuse_idle("slow_factor", self.slow_workers > 0, "slow_workers > 0")

    def check_workers(self, workers: int) -> None:
        """Refuse more slow workers than there are workers."""
        self.refuse_unless(self.slow_workers <= workers, "slow_workers", f"must be between 0 and the {workers} workers")


@dataclass(frozen=True)
class Clock(Slowdown):
    """The time model of a run."""

    law: str = setting("exponential", "of gradient durations; exponential: Poisson clocks", names=lambda: LAWS)
    variation: float = setting(0.3, "gamma: coefficient of variation (deviation / mean)", above=0, most=100)
    gradient_seconds: float = setting(0.1, "mean duration of a gradient of an ordinary worker", above=1e-9, most=1e6)
    latency: float = setting(0.0, "seconds per message", least=0, most=1e6)
    bandwidth: float | None = setting(
        None, "bytes per second of a worker's link; null: unlimited", above=1e-6, most=1e15
    )

    def check(self) -> None:
        super().check()
        self.refuse_idle("variation", self.law == "gamma", "law = gamma")

    def refuse_links(self, reason: str) -> None:
        """Refuse links that take time."""
        for name in ("latency", "bandwidth"):
            self.refuse_unless(not getattr(self, name), name, reason)


Law = Callable[[Clock, np.random.Generator, int], np.ndarray]
LAWS: dict[str, Law] = {}


def law(function: Law) -> Law:
    """Register a function `(clock, draws, count) -> durations` of mean 1 as a law of the function's name."""
    LAWS[name_of("law", function, LAWS, ("clock", "draws", "count"))] = function
    return function


@law
def exponential(_clock: Clock, draws: np.random.Generator, count: int) -> np.ndarray:
    """Memoryless durations: gradients form a Poisson process, as in the theory."""
    return draws.exponential(1.0, count)


@law
def constant(_clock: Clock, _draws: np.random.Generator, count: int) -> np.ndarray:
    """Every gradient takes one unit."""
    return np.ones(count)


@law
def gamma(clock: Clock, draws: np.random.Generator, count: int) -> np.ndarray:
    """Mean 1 and the given coefficient of variation."""
    shape = clock.variation**-2
    return draws.gamma(shape, 1 / shape, count)


BLOCK = 256  # durations drawn at a time


def durations(clock: Clock, worker: int, seed: int) -> Iterator[float]:
    """The endless durations of one worker's gradients, in gradient times."""
    draws = seeding.generator(seed, "gradient durations", worker)
    factor = clock.slow_factor if worker < clock.slow_workers else 1.0
    while True:
        yield from (factor * LAWS[clock.law](clock, draws, BLOCK)).tolist()


def message_time(clock: Clock, size: int) -> float:
    """Time to exchange `size` bytes each way between two workers, in gradient times."""
    return (clock.latency + (size / clock.bandwidth if clock.bandwidth else 0.0)) / clock.gradient_seconds


def allreduce_time(clock: Clock, workers: int, size: int) -> float:
    """Time of a ring all-reduce of `size` bytes, in gradient times.

    2(n-1) messages of size/n each (Patarasuk and Yuan 2009).
    """
    seconds = 2 * (workers - 1) * (clock.latency + (size / workers / clock.bandwidth if clock.bandwidth else 0.0))
    return seconds / clock.gradient_seconds


def gradient_events(clock: Clock, workers: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` gradients over all workers, none of whom ever waits: (times, workers), in order of time."""
    ends = [
        zip(itertools.accumulate(durations(clock, worker, seed)), itertools.repeat(worker)) for worker in range(workers)
    ]
    times, computes = zip(*itertools.islice(heapq.merge(*ends), count), strict=True)
    return np.array(times), np.array(computes)


def synchronous_steps(clock: Clock, workers: int, seed: int, size: int, overlap: float = 0.0) -> Iterator[float]:
    """The endless times at which synchronous steps end: the slowest gradient, then an all-reduce of `size` bytes.

    overlap: the share of the slowest gradient behind which the all-reduce is hidden, because it sends the gradients of
    the last layers while those of the first are computed.
    """
    cost, now = allreduce_time(clock, workers, size), 0.0
    for step in zip(*(durations(clock, worker, seed) for worker in range(workers)), strict=True):
        slowest = max(step)
        now = now + slowest + max(0.0, cost - overlap * slowest)
        yield now
