"""The effects that claims are judged by: statistics of runs, paired by seed.

Runs with the same seed share initialisation, batches and events: an effect is computed within each seed, and
`inference` makes intervals and tests of the seeds' effects. A run that diverged has the worst value that there is: its
method loses every comparison of that seed.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from unlocked.report.inference import CONFIDENCE, Effect, Undefined, summarise
from unlocked.settings import flatten
from unlocked.units import plural

SLACK = 1.02  # on the lowest loss that both of two runs reach
Settings = Mapping[str, Any]  # by dotted name
Function = TypeVar("Function", bound=Callable[..., Any])
chi = functools.cache(lambda graph, n: topology.chi(topology.build(graph, n)))  # eigenvalues of an n x n matrix


class NotRun(Exception):
    """A run that a statistic needs has no record; the message says which."""


def final(frames: Frames, metric: str, scale: float = 1.0) -> pd.Series:
    """A final metric; a share in percent."""
    return scale * frames.column(metric).astype(float)


Measure = Callable[[Frames], pd.Series]  # a number by run
HIGH: dict[str, Measure] = {  # of these a run that diverged has infinitely much
    "consensus_distance": measures.consensus,
    "loss_difference": partial(measures.settled, metric="loss_difference"),
    "test_loss": partial(final, metric="test_loss"),
    **{  # of the estimate from one random direction, over all that may be drawn
        f"error_random_{space}": partial(measures.geometric_mean, metric=f"expected_error/random/{space}")
        for space in ("activity", "weight", "weight_per_sample")
    },
}
LOW: dict[str, Measure] = {  # and of these infinitely little
    "test_accuracy": partial(final, metric="test_accuracy", scale=100),
    "worker_test_accuracy": partial(final, metric="worker_test_accuracy_mean", scale=100),
    "cosine": partial(measures.settled, metric="cosine"),
    **{  # of target and guess, all guesses at the same weights
        f"alignment_{guess}_{space}": partial(measures.mean, metric=f"alignment/{guess}/{space}")
        for guess in ("local", "ntk", "fixed_ntk", "random")
        for space in ("activity", "weight")
    },
}


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
        """The one run with these values. `NotRun` if it has no record."""
        chosen = self.frames.select(**settings)
        if len(chosen.runs) != 1:
            names = ", ".join(chosen.runs.index) or "none"
            raise SettingError("claim: runs with", dict(settings), f"must be one of those it needs, but are {names}")
        if chosen.column("status").isna().iloc[0]:
            raise NotRun(f"{chosen.runs.index[0]} has no record")
        return chosen

    def value(self, measure: str, settings: Settings) -> float:
        """A measure of the one run with these values; infinite if it diverged."""
        worst, run = math.inf if measure in HIGH else -math.inf, self.one(settings)
        of = (HIGH | LOW)[choose("claim: measure", measure, HIGH | LOW)]
        return worst if run.diverged else float(of(run).iloc[0])


STATISTICS: dict[str, Callable[..., Effect]] = {}


def statistic(*, paired: bool = True, log: bool = False) -> Callable[[Function], Function]:
    """Register a function under its name; `SettingError` if it cannot stand.

    Paired, it is `(evidence, **arguments) -> float` of one seed, and what is registered gives the mean over all seeds;
    otherwise it is `(evidence, **arguments) -> Effect`.
    """

    def register(function: Function) -> Function:
        _, *arguments = inspect.signature(function).parameters or [""]
        name = name_of("statistic", function, STATISTICS, ("evidence", *arguments))
        of_all = functools.update_wrapper(partial(over_seeds, function, log), function)
        STATISTICS[name] = of_all if paired else function
        return function

    return register


def over_seeds(function: Callable[..., float], log: bool, evidence: Evidence, **arguments: Any) -> Effect:
    values, missing, diverged = [], [], []
    for seed in evidence.frames.values("seed"):
        own = evidence.frames.select(seed=seed)
        try:
            values.append(function(Evidence(own), **arguments))
        except NotRun as problem:
            missing.append(str(problem))
        else:
            lost = not math.isfinite(values[-1]) or values[-1] == 0  # a ratio to an infinite number
            diverged += [own.diverged] if lost and own.diverged else []
    if missing:  # the other seeds alone would be a selection by outcome
        raise NotRun("; ".join(dict.fromkeys(missing)))
    if not diverged:
        return summarise(values, log)
    names = ", ".join(itertools.chain(*diverged))
    note = f"sign test: {plural(len(diverged), 'seed')} of {len(values)} with runs that diverged: {names}"
    return dataclasses.replace(summarise(values, log, signs=True), note=note)


def measured(name: str, evidence: Evidence, arguments: Settings) -> Effect:
    """The effect of a registered statistic."""
    chosen = STATISTICS[choose("claim: statistic", name, STATISTICS)]
    try:
        inspect.signature(chosen).bind(evidence, **arguments)
    except TypeError as error:
        raise SettingError(f"claim: arguments of {name}", dict(arguments), str(error)) from None
    return chosen(evidence, **arguments)


@statistic(log=True)
def ratio(evidence: Evidence, *, measure: str, of: Settings, to: Settings, against: str | None = None) -> float:
    """A measure of the run `of` over that (or the measure `against`) of the run `to`.

    `time_to_loss` is a measure of the two together: the virtual time until the training loss is at a level that both
    reach, within 2 % of the higher of their lowest losses.
    """
    if measure != "time_to_loss":
        return quotient(evidence.value(measure, of), evidence.value(against or measure, to))
    slow, fast = evidence.one(of), evidence.one(to)
    if slow.diverged or fast.diverged:
        return quotient(*(math.inf if run.diverged else 1.0 for run in (slow, fast)))
    level = SLACK * max(measures.lowest(run).iloc[0] for run in (slow, fast))  # neither is cut off
    waited, needed = (measures.time_to(run, level).iloc[0] for run in (slow, fast))
    if needed == 0:
        raise Undefined(f"{fast.runs.index[0]} is at the training loss {level:.4g} from the start")
    return waited / needed


def quotient(upper: float, lower: float) -> float:
    """Of two measures, either of which may be infinite; NaN if both are."""
    return math.nan if math.isinf(upper) and math.isinf(lower) else upper / lower


@statistic(log=True)
def ratio_growth(
    evidence: Evidence, *, measure: str, of: Settings, to: Settings, before: Settings, after: Settings
) -> float:
    """`ratio` under the settings `after` over that under the settings `before`."""
    late, early = (ratio(evidence, measure=measure, of={**of, **case}, to={**to, **case}) for case in (after, before))
    return quotient(late, early)


@statistic()
def ratio_slope(evidence: Evidence, *, measure: str, of: Settings, to: Settings, along: str) -> float:
    """Least-squares slope of the logarithm of `ratio` in the logarithm of the setting `along`."""
    xs = evidence.frames.select(**of).values(along)
    if len(xs) < 2:
        raise Undefined(f"a slope needs two values of {along} or more, and there are {xs}")
    ys = [ratio(evidence, measure=measure, of={**of, along: x}, to={**to, along: x}) for x in xs]
    return measures.exponent(xs, ys) if np.isfinite(ys).all() else math.nan


@statistic()
def difference(evidence: Evidence, *, measure: str, of: Settings, to: Settings, against: str | None = None) -> float:
    """A measure of the run `of` minus that (or the measure `against`) of the run `to`."""
    return evidence.value(measure, of) - evidence.value(against or measure, to)


@statistic()
def rank_correlation(
    evidence: Evidence, *, measure: str, to: str, runs: Sequence[Settings], minus: str | None = None
) -> float:
    """Kendall's tau of two measures over several runs, minus that of a third with the same."""

    def tau(name: str) -> float:
        values = [(evidence.value(name, run), evidence.value(to, run)) for run in runs]
        return float(scipy.stats.kendalltau(*zip(*values, strict=True)).statistic)

    return tau(measure) - (tau(minus) if minus else 0.0)


@statistic(paired=False)
def graph_exponent(_evidence: Evidence, *, graph: str, quantity: str, sizes: Sequence[int]) -> Effect:
    """Exponent of a graph's constant in n: slope of logarithms over `sizes`, with the slope's t interval.

    `quantity`: chi1, or root for sqrt(chi1 chi2). A formula has no seeds: the interval says how straight the line is.
    """
    choose("claim: quantity", quantity, ("chi1", "root"))
    values = [chi1 if quantity == "chi1" else math.sqrt(chi1 * chi2) for chi1, chi2 in (chi(graph, n) for n in sizes)]
    fit, freedom = scipy.stats.linregress(np.log(sizes), np.log(values)), len(sizes) - 2
    low, high = scipy.stats.t.interval(CONFIDENCE, freedom, loc=fit.slope, scale=fit.stderr)
    numbers = (float(fit.slope), float(low), float(high), len(sizes))
    return Effect(*numbers, "interval of a fit; n: graph sizes", error=float(fit.stderr), freedom=freedom)
