"""The effects that claims are judged by: statistics of runs, with intervals over the seeds.

Runs with the same seed share initialisation, batches and events: an effect is computed within each seed. Intervals are
Student's t over the seeds' effects (for ratios: over their logarithms, the result transformed back), not bootstrap,
which is far too narrow with 2 to 5 seeds: t pays for the unknown deviation (factor 12.7 at 2 seeds, 4.3 at 3, 2.8 at
5). With one seed, or one number for all seeds, there is no estimate of the deviation, hence no interval.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import scipy.stats

from unlocked.errors import SettingError, choose
from unlocked.gossip import topology
from unlocked.items import measures
from unlocked.items.frames import Frames
from unlocked.papers.run import Run
from unlocked.registry import name_of
from unlocked.settings import flatten

CONFIDENCE = 0.95
SLACK = 1.02  # on the lowest loss that both of two runs reach
Settings = Mapping[str, Any]  # by dotted name
Function = TypeVar("Function", bound=Callable[..., Any])
chi = functools.cache(lambda graph, n: topology.chi(topology.build(graph, n)))  # eigenvalues of an n x n matrix


class NotRun(Exception):
    """A run that a statistic needs has no record, or diverged; the message says which."""


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


MEASURES: dict[str, Callable[[Frames], pd.Series]] = {
    "consensus_distance": measures.consensus,
    "test_accuracy": lambda frames: 100 * frames.column("test_accuracy").astype(float),  # in percent
    "worker_test_accuracy": lambda frames: 100 * frames.column("worker_test_accuracy_mean").astype(float),
    "cosine": functools.partial(measures.settled, metric="cosine"),
    **{  # of the estimate from one random direction
        f"error_random_{space}": functools.partial(measures.geometric_mean, metric=f"relative_error/random/{space}/1")
        for space in ("activity", "weight", "weight_per_sample")
    },
}  # numbers of runs, by run


@dataclass(frozen=True)
class Evidence:
    """The runs that a claim wants, as frames: what was measured is missing for runs that have no record."""

    frames: Frames

    @classmethod
    def of(cls, runs: Mapping[str, Run], frames: Frames) -> Evidence:
        """These runs, with what the frames of finished runs know of them."""
        wanted = pd.DataFrame([flatten(run.identity()) for run in runs.values()], index=list(runs))
        measured = frames.runs[[name for name in frames.runs if name not in wanted]]
        return cls(Frames(wanted.join(measured), frames.history[frames.history["run"].isin(runs)]))

    def one(self, settings: Settings) -> Frames:
        """The one run with these values. `NotRun` if it has no record or diverged."""
        chosen = self.frames.select(**settings)
        if len(chosen.runs) != 1:
            names = ", ".join(chosen.runs.index) or "none"
            raise SettingError("claim: runs with", dict(settings), f"must be one of those it needs, but are {names}")
        name, status = chosen.runs.index[0], chosen.column("status").iloc[0]
        if status != "completed":
            raise NotRun(f"{name} diverged" if status == "diverged" else f"{name} has no record")
        return chosen

    def value(self, measure: str, settings: Settings) -> float:
        """A measure of the one run with these values."""
        return MEASURES[choose("claim: measure", measure, MEASURES)](self.one(settings)).iloc[0]


STATISTICS: dict[str, Callable[..., Effect]] = {}


def statistic(*, paired: bool = True, log: bool = False) -> Callable[[Function], Function]:
    """Register a function under its name; `SettingError` if it cannot stand.

    Paired, it is `(evidence, **arguments) -> float` of one seed, and what is registered gives the mean over all seeds;
    otherwise it is `(evidence, **arguments) -> Effect`.
    """

    def register(function: Function) -> Function:
        _, *arguments = inspect.signature(function).parameters or [""]
        name = name_of("statistic", function, STATISTICS, ("evidence", *arguments))
        of_all = functools.update_wrapper(functools.partial(over_seeds, function, log), function)
        STATISTICS[name] = of_all if paired else function
        return function

    return register


def over_seeds(function: Callable[..., float], log: bool, evidence: Evidence, **arguments: Any) -> Effect:
    values, missing = [], []
    for seed in evidence.frames.values("seed"):
        try:
            values.append(function(Evidence(evidence.frames.select(seed=seed)), **arguments))
        except NotRun as problem:
            missing.append(str(problem))
    if missing:  # the other seeds alone would be a selection by outcome
        raise NotRun("; ".join(dict.fromkeys(missing)))
    return summarise(values, log)


def summarise(values: Sequence[float], log: bool) -> Effect:
    """Mean over seeds and its 95 % t interval; with `log` of the logarithms, transformed back (a geometric mean)."""
    count = len(values)
    if not np.isfinite(values).all() or (log and min(values) <= 0):
        raise Undefined(f"the seeds' effects are {', '.join(f'{v:.4g}' for v in values)}")
    xs = [math.log(v) for v in values] if log else values
    ends, note = (math.nan, math.nan), ""
    if count == 1 or np.ptp(xs) == 0:
        note = "one seed gives no interval" if count == 1 else f"no interval: all {count} seeds give one value"
    else:
        ends = scipy.stats.t.interval(CONFIDENCE, count - 1, loc=float(np.mean(xs)), scale=scipy.stats.sem(xs))
    value, low, high = (float(np.exp(x) if log else x) for x in (np.mean(xs), *ends))
    return Effect(value, low, high, count, note)


def measured(name: str, evidence: Evidence, arguments: Settings) -> Effect:
    """The effect of a registered statistic."""
    chosen = STATISTICS[choose("claim: statistic", name, STATISTICS)]
    try:
        inspect.signature(chosen).bind(evidence, **arguments)
    except TypeError as error:
        raise SettingError(f"claim: arguments of {name}", dict(arguments), str(error)) from None
    return chosen(evidence, **arguments)


@statistic(log=True)
def ratio(evidence: Evidence, *, measure: str, of: Settings, to: Settings) -> float:
    """A measure of the run `of` over that of the run `to`.

    `time_to_loss` is a measure of the two together: the virtual time until the training loss is at a level that both
    reach, within 2 % of the higher of their lowest losses.
    """
    if measure != "time_to_loss":
        return evidence.value(measure, of) / evidence.value(measure, to)
    slow, fast = evidence.one(of), evidence.one(to)
    level = SLACK * max(measures.lowest(run).iloc[0] for run in (slow, fast))  # neither is cut off
    waited, needed = (measures.time_to(run, level).iloc[0] for run in (slow, fast))
    if needed == 0:
        raise Undefined(f"{fast.runs.index[0]} is at the training loss {level:.4g} from the start")
    return waited / needed


@statistic(log=True)
def ratio_within(evidence: Evidence, *, runs: Settings, measure: str, against: str) -> float:
    """Two measures of the same run."""
    return evidence.value(measure, runs) / evidence.value(against, runs)


@statistic(log=True)
def ratio_growth(
    evidence: Evidence, *, measure: str, of: Settings, to: Settings, before: Settings, after: Settings
) -> float:
    """`ratio` under the settings `after` over that under the settings `before`."""
    late, early = (ratio(evidence, measure=measure, of={**of, **case}, to={**to, **case}) for case in (after, before))
    return late / early


@statistic()
def ratio_slope(evidence: Evidence, *, measure: str, of: Settings, to: Settings, along: str) -> float:
    """Least-squares slope of the logarithm of `ratio` in the logarithm of the setting `along`."""
    xs = evidence.frames.select(**of).values(along)
    if len(xs) < 2:
        raise Undefined(f"a slope needs two values of {along} or more, and there are {xs}")
    ys = [ratio(evidence, measure=measure, of={**of, along: x}, to={**to, along: x}) for x in xs]
    return measures.exponent(xs, ys)


@statistic()
def difference(evidence: Evidence, *, measure: str, of: Settings, to: Settings) -> float:
    """A measure of the run `of` minus that of the run `to`."""
    return evidence.value(measure, of) - evidence.value(measure, to)


@statistic()
def share_closed(evidence: Evidence, *, measure: str, of: Settings, low: Settings, high: Settings) -> float:
    """How much of the way from the run `low` to the run `high` the run `of` is. `Undefined` where there is no gap."""
    mine, lower, upper = (evidence.value(measure, side) for side in (of, low, high))
    if upper <= lower:
        raise Undefined(f"there is no gap to close: {lower:.4g} against {upper:.4g}")
    return (mine - lower) / (upper - lower)


@statistic(paired=False)
def graph_exponent(_evidence: Evidence, *, graph: str, quantity: str, sizes: Sequence[int]) -> Effect:
    """Exponent of a graph's constant in n: slope of logarithms over `sizes`, with the slope's t interval.

    `quantity`: chi1, or root for sqrt(chi1 chi2). A formula has no seeds: the interval says how straight the line is.
    """
    choose("claim: quantity", quantity, ("chi1", "root"))
    values = [chi1 if quantity == "chi1" else math.sqrt(chi1 * chi2) for chi1, chi2 in (chi(graph, n) for n in sizes)]
    fit = scipy.stats.linregress(np.log(sizes), np.log(values))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(sizes) - 2) * fit.stderr)
    return Effect(float(fit.slope), fit.slope - half, fit.slope + half, len(sizes), "interval of a fit; n: graph sizes")
