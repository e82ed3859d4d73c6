"""From effects by seed to tests: difference, equivalence, several parts at once, and how many seeds a test needs.

Every test is one-sided at 2.5 %, so that it decides what the 95 % interval shows: Student's t over the seeds' effects
(of ratios: over their logarithms). Where a run diverged its effect is infinite and t has no meaning: then the sign test
counts on which side of the threshold the seeds are, and divergence is a vote against the method that diverged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.stats

CONFIDENCE = 0.95
LEVEL = (1 - CONFIDENCE) / 2  # of each one-sided test
FEWEST = 3  # seeds for a verdict: with two, one deviation of one number decides
POWER = 0.8  # that a test should have
MOST = 1000  # seeds that anybody would run


class Undefined(Exception):
    """The runs are there, but the statistic has no value on them; the message says why."""


@dataclass(frozen=True)
class Effect:
    """A statistic's value with its interval; numbers are NaN where there are none."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0  # seeds, or points of a fit
    note: str = ""
    log: bool = False  # tested on logarithms
    error: float = math.nan  # standard error of the value, as tested
    freedom: int = 0  # degrees of freedom of t
    seeds: tuple[float, ...] = ()  # effects by seed, none for a fit
    signs: bool = False  # the sign test

    def tested(self, value: float) -> float:
        """A value on the scale of the test."""
        return math.log(value) if self.log else value

    def chance(self, threshold: float, *, above: bool) -> float:
        """p-value of the test that the effect is above (or below) a threshold; 1 where nothing can be tested."""
        if math.isinf(threshold):
            return float(above == (threshold > 0))
        if self.freedom:
            statistic = (self.tested(self.value) - self.tested(threshold)) / self.error
            return float(scipy.stats.t.sf(statistic if above else -statistic, self.freedom))
        if not self.signs:
            return 1.0
        there = sum(x > threshold if above else x < threshold for x in self.seeds)  # NaN: both diverged, no vote
        return float(scipy.stats.binomtest(there, len(self.seeds), alternative="greater").pvalue)

    def inside(self, low: float, high: float) -> float:
        """p-value of two one-sided tests (Schuirmann 1987) that the effect is between two thresholds."""
        return max(self.chance(low, above=True), self.chance(high, above=False))

    def outside(self, low: float, high: float) -> float:
        """p-value of the tests that the effect is below the one or above the other."""
        return min(self.chance(low, above=False), self.chance(high, above=True))


def summarise(values: Sequence[float], log: bool, signs: bool = False) -> Effect:
    """Mean over seeds and its 95 % t interval; with `log` of the logarithms, transformed back (a geometric mean).

    signs: some seed diverged; the median, to be tested by signs, NaN being no vote.
    """
    count = len(values)
    if signs and not np.isnan(values).all():
        return Effect(float(np.nanmedian(values)), n=count, seeds=tuple(values), signs=True)
    if not np.isfinite(values).all() or (log and min(values) <= 0):
        raise Undefined(f"the seeds' effects are {', '.join(f'{v:.4g}' for v in values)}")
    xs = [math.log(v) for v in values] if log else list(values)
    center = float(np.mean(xs))
    back: Callable[[float], float] = math.exp if log else float
    if count == 1 or np.ptp(xs) == 0:
        note = "one seed gives no interval" if count == 1 else f"no interval: all {count} seeds give one value"
        return Effect(back(center), n=count, note=note, log=log, seeds=tuple(values))
    error = float(scipy.stats.sem(xs))
    low, high = (back(end) for end in scipy.stats.t.interval(CONFIDENCE, count - 1, loc=center, scale=error))
    return Effect(back(center), low, high, count, log=log, error=error, freedom=count - 1, seeds=tuple(values))


def holm(chances: Sequence[float]) -> list[float]:
    """p-values adjusted for the question whether any of several tests holds (Holm 1979)."""
    count, order = len(chances), np.argsort(chances, kind="stable")
    adjusted = np.empty(count)
    adjusted[order] = np.maximum.accumulate(np.asarray(chances)[order] * np.arange(count, 0, -1))
    return np.minimum(adjusted, 1.0).tolist()


def power(distance: float, deviation: float, seeds: int) -> float:
    """Probability that the one-sided test passes when the effect is beyond the threshold by a distance."""
    critical = scipy.stats.t.isf(LEVEL, seeds - 1)
    return float(scipy.stats.nct.sf(critical, seeds - 1, distance * math.sqrt(seeds) / deviation))


def power_of_equivalence(margin: float, deviation: float, seeds: int) -> float:
    """The least probability that both tests pass when the effect is in the middle of the margin (Bonferroni)."""
    return max(0.0, 2 * power(margin, deviation, seeds) - 1)


def seeds_for(distance: float, deviation: float, test: Callable[[float, float, int], float] = power) -> int | None:
    """The fewest seeds with which a test has the power wanted; None if even very many do not give it."""
    wanted = (n for n in range(FEWEST, MOST + 1) if test(distance, deviation, n) >= POWER)
    return next(wanted, None) if distance > 0 else None


def detectable(deviation: float, seeds: int) -> float:
    """The smallest distance from the threshold at which the one-sided test has the power wanted."""
    return float(scipy.optimize.brentq(lambda distance: power(distance, deviation, seeds) - POWER, 0, 100 * deviation))
