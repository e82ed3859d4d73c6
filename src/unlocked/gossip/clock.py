"""How long a gradient, a message and an all-reduce take: the model behind virtual time.

Beside topology, upstream of schedules; without torch. Durations are in gradient times (the mean duration of one
gradient of an ordinary worker); `gradient_seconds` turns them into seconds. Every worker has its own seeded stream of
durations, which depends on the seed and the clock alone: methods that are compared, the synchronous one included, meet
the same fast and slow gradients.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unlocked import seeding
from unlocked.errors import SettingError, choose


@dataclass
class Clock:
    """The time model of a run."""

    law: str = "exponential"  # of gradient durations: exponential (Poisson clocks), constant, gamma, trace
    variation: float = 0.3  # gamma: coefficient of variation (deviation / mean)
    trace: str | None = None  # trace: a text file of measured durations in seconds, resampled with replacement
    slow_workers: int = 0  # the first so many workers are slow
    slow_factor: float = 2.0  # a slow worker's gradients take so many times as long
    gradient_seconds: float = 0.1  # mean duration of a gradient of an ordinary worker
    latency: float = 0.0  # seconds per message
    bandwidth: float | None = None  # bytes per second of a worker's link; null: unlimited
    away_share: float = 0.0  # share of the time that a worker is away (neither computes nor talks)
    away_time: float = 20.0  # mean length of an absence, in gradient times


def exponential(clock: Clock, draws: np.random.Generator, count: int) -> np.ndarray:
    """Memoryless durations: gradients form a Poisson process, as in the theory."""
    return draws.exponential(1.0, count)


def constant(clock: Clock, draws: np.random.Generator, count: int) -> np.ndarray:
    """Every gradient takes one unit."""
    return np.ones(count)


def gamma(clock: Clock, draws: np.random.Generator, count: int) -> np.ndarray:
    """Mean 1 and the given coefficient of variation."""
    shape = clock.variation**-2
    return draws.gamma(shape, 1 / shape, count)


def trace(clock: Clock, draws: np.random.Generator, count: int) -> np.ndarray:
    """Measured durations, resampled and scaled to mean 1."""
    measured = read_trace(str(clock.trace))
    return draws.choice(measured / measured.mean(), count)


def read_trace(path: str) -> np.ndarray:
    """The durations of a trace, in seconds; `SettingError` unless they are positive numbers, white space between."""
    try:
        measured = np.array([float(word) for word in Path(path).read_text().split()])
    except ValueError as error:
        raise SettingError("clock.trace", path, f"must hold durations in seconds ({error})") from None
    if not len(measured) or not (measured > 0).all() or not np.isfinite(measured).all():
        raise SettingError("clock.trace", path, "must hold one positive duration in seconds or more")
    return measured


LAWS: dict[str, Callable[[Clock, np.random.Generator, int], np.ndarray]] = {
    f.__name__: f for f in (exponential, constant, gamma, trace)
}


def check(clock: Clock, workers: int) -> None:
    """Refuse a clock that cannot run: `SettingError` on the first setting that is wrong."""
    choose("clock.law", clock.law, LAWS)
    if clock.law == "trace" and not (clock.trace and Path(clock.trace).is_file()):
        raise SettingError("clock.trace", clock.trace, "law: trace needs a text file of durations in seconds")
    if clock.law == "trace":
        read_trace(clock.trace)
    for name in ("variation", "slow_factor", "gradient_seconds", "away_time"):
        if not 0 < getattr(clock, name) < float("inf"):
            raise SettingError(f"clock.{name}", getattr(clock, name), "must be positive and finite")
    if not 0 <= clock.slow_workers <= workers:
        raise SettingError("clock.slow_workers", clock.slow_workers, f"must be between 0 and the {workers} workers")
    if not 0 <= clock.latency < float("inf"):
        raise SettingError("clock.latency", clock.latency, "must be a number of seconds, 0 or more")
    if clock.bandwidth is not None and not clock.bandwidth > 0:
        raise SettingError("clock.bandwidth", clock.bandwidth, "must be positive (bytes per second), or null")
    if not 0 <= clock.away_share < 1:
        raise SettingError("clock.away_share", clock.away_share, "must be a share of the time, at least 0 and below 1")


BLOCK = 256  # durations drawn at a time
NEVER = (float("inf"), float("inf"))


def durations(clock: Clock, worker: int, seed: int) -> Iterator[float]:
    """The endless durations of one worker's gradients, in gradient times."""
    draws = seeding.generator(seed, "gradient durations", worker)
    factor = clock.slow_factor if worker < clock.slow_workers else 1.0
    while True:
        yield from (factor * LAWS[clock.law](clock, draws, BLOCK)).tolist()


def absences(clock: Clock, worker: int, seed: int) -> Iterator[tuple[float, float]]:
    """The endless (start, end) of one worker's absences; presences and absences are exponential."""
    draws = seeding.generator(seed, "absences", worker)
    mean_present = clock.away_time * (1 - clock.away_share) / clock.away_share
    now = 0.0
    while True:
        start = now + draws.exponential(mean_present)
        now = start + draws.exponential(clock.away_time)
        yield start, now


class Worker:
    """One worker's time: when its gradients end, and when it is away. Asked forward in time only."""

    def __init__(self, clock: Clock, worker: int, seed: int) -> None:
        self._durations = durations(clock, worker, seed)
        self._absences = absences(clock, worker, seed) if clock.away_share else iter(())
        self._gap = next(self._absences, NEVER)

    def _absence_after(self, time: float) -> tuple[float, float]:
        """The current or next absence at `time`."""
        while self._gap[1] <= time:
            self._gap = next(self._absences)
        return self._gap

    def gradient(self, start: float) -> float:
        """When the worker's next gradient ends if it starts at `start`; absences stretch it."""
        now, left = start, next(self._durations)
        while True:
            away, back = self._absence_after(now)
            if now + left <= away:
                return now + left
            left -= max(0.0, away - now)
            now = back

    def back(self, time: float) -> float:
        """`time` if the worker is there, else the moment of its return."""
        away, back = self._absence_after(time)
        return back if away <= time else time


def message_time(clock: Clock, size: int) -> float:
    """Time to exchange `size` bytes each way between two workers, in gradient times: latency + size/bandwidth."""
    seconds = clock.latency + (size / clock.bandwidth if clock.bandwidth else 0.0)
    return seconds / clock.gradient_seconds


def allreduce_time(clock: Clock, workers: int, size: int) -> float:
    """Time of a ring all-reduce of `size` bytes, in gradient times.

    2(n-1) messages of size/n each (Patarasuk and Yuan 2009).
    """
    seconds = 2 * (workers - 1) * (clock.latency + (size / workers / clock.bandwidth if clock.bandwidth else 0.0))
    return seconds / clock.gradient_seconds


def gradient_events(clock: Clock, workers: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` gradients over all workers, none of whom ever waits: (times, workers), in order of time."""

    def ends(worker: int) -> Iterator[tuple[float, int]]:
        own, now = Worker(clock, worker, seed), 0.0
        while True:
            now = own.gradient(now)
            yield now, worker

    first = list(itertools.islice(heapq.merge(*map(ends, range(workers))), count))
    return np.array([time for time, _ in first]), np.array([worker for _, worker in first])


def synchronous_steps(clock: Clock, workers: int, seed: int, size: int) -> Iterator[float]:
    """The endless times at which synchronous steps end: the slowest gradient, then an all-reduce of `size` bytes.

    Nobody can go on while one worker is away.
    """
    own = [Worker(clock, worker, seed) for worker in range(workers)]
    cost, now = allreduce_time(clock, workers, size), 0.0
    while True:
        now = max(worker.gradient(now) for worker in own) + cost
        yield now
