"""What the papers assert, judged: effect, 95 % interval and verdict of every claim. Pure functions of run records.

On the road configs -> plan -> train -> record -> item -> claims -> report; no trainer and no torch here. The claims
stand in `configs/claims.yaml`. Each has parts, each part a statistic of the claim's runs and a threshold. Statistics
are paired by seed: runs with the same seed share initialisation, batches and events, so that an effect is computed
within each seed and varies less than the runs do.

Intervals are Student's t over the seeds' effects (for ratios: over their logarithms, the result transformed back), not
bootstrap: with the 2 to 5 seeds of a scale a bootstrap of the mean can draw a handful of distinct samples only and its
intervals are far too narrow, whereas t pays for the unknown deviation (factor 12.7 at 2 seeds, 4.3 at 3, 2.8 at 5)
under the assumption that effects are about normal. With one seed, or if all seeds give the very same number, there is
no estimate of the deviation, hence no interval, and the verdict is inconclusive.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate

import numpy as np
import pandas as pd
import scipy.stats
from omegaconf import DictConfig, OmegaConf

from unlocked import measures
from unlocked.errors import SettingError, choose
from unlocked.gossip import topology
from unlocked.plan import Claim, PartConfig
from unlocked.record import Record

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE, NOT_RUN = "supported", "not supported", "inconclusive", "not run"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE, NOT_RUN)
CONFIDENCE = 0.95
COLUMNS = (
    "id", "paper", "part", "claim", "source", "statistic", "conditions", "effect", "low", "high", "n", "threshold",
    "verdict", "reason", "claim_verdict", "unit",
)  # fmt: skip
Settings = Mapping[str, Any]


class NotRun(Exception):
    """A record that a statistic needs is missing, or its run diverged; the message says which."""


class Undefined(Exception):
    """The records are there, but the statistic has no value on them; the message says why."""


@dataclass(frozen=True)
class Effect:
    """A statistic's value with its interval; `low` and `high` are NaN where there is none."""

    value: float
    low: float
    high: float
    n: int  # seeds, or points of a fit
    note: str = ""

    @property
    def has_interval(self) -> bool:
        """Whether there are two finite ends."""
        return math.isfinite(self.low) and math.isfinite(self.high)


NO_EFFECT = Effect(math.nan, math.nan, math.nan, 0)


@dataclass(frozen=True)
class Evidence:
    """The runs that a claim wants, and the records that there are of them, both by run id."""

    runs: Mapping[str, DictConfig]
    records: Mapping[str, Record]

    @property
    def seeds(self) -> list[int]:
        """Of the wanted runs."""
        return sorted({int(run.seed) for run in self.runs.values()})

    def matching(self, settings: Settings) -> list[str]:
        """Ids of the wanted runs that have these values (dotted settings); `SettingError` if there is none."""
        found = [
            name for name, run in self.runs.items()
            if all(OmegaConf.select(run, key) == value for key, value in settings.items())
        ]  # fmt: skip
        if not found:
            raise SettingError("claim: runs with", dict(settings), "are not among the runs that the claim needs")
        return found

    def one(self, settings: Settings, **more: Any) -> Record:
        """The record of the one run with these values. `NotRun` if there is none or it diverged."""
        names = self.matching({**settings, **more})
        if len(names) > 1:
            raise SettingError("claim: runs with", {**settings, **more}, f"must be one, but are {', '.join(names)}")
        record = self.records.get(names[0])
        if record is None:
            raise NotRun(f"{names[0]} has no record")
        if record.diverged:
            raise NotRun(f"{names[0]} diverged")
        return record

    def along(self, settings: Settings, key: str) -> list[Any]:
        """The values of a setting among the wanted runs with `settings`, in order; `Undefined` unless there are two."""
        values = sorted({OmegaConf.select(self.runs[name], key) for name in self.matching(settings)})
        if len(values) < 2:
            raise Undefined(f"a slope needs two values of {key} or more, and there is only {values[0]}")
        return values


Statistic = Callable[Concatenate[Evidence, ...], Effect]


def student(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % t interval; the ends are NaN for one value or for equal ones."""
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return mean, math.nan, math.nan
    low, high = scipy.stats.t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=scipy.stats.sem(values))
    return mean, float(low), float(high)


def summarise(values: Sequence[float], log: bool) -> Effect:
    """Mean over seeds and interval; with `log` of the logarithms, transformed back (a geometric mean)."""
    if not np.isfinite(values).all() or (log and min(values) <= 0):
        raise Undefined(f"the seeds' effects are {', '.join(f'{v:.4g}' for v in values)}")
    ends = student(np.log(values) if log else values)
    value, low, high = (float(np.exp(x)) if log else x for x in ends)
    note = ""
    if not math.isfinite(low):
        note = (
            "one seed gives no interval" if len(values) == 1 else f"no interval: all {len(values)} seeds give one value"
        )
    return Effect(value, low, high, len(values), note)


def paired(*, log: bool = False) -> Callable[[Callable[Concatenate[Evidence, int, ...], float]], Statistic]:
    """Make a statistic of one seed's runs `(evidence, seed, **arguments) -> float` one of all seeds."""

    def decorate(of_seed: Callable[Concatenate[Evidence, int, ...], float]) -> Statistic:
        @functools.wraps(of_seed)
        def over_seeds(evidence: Evidence, **arguments: Any) -> Effect:
            values, missing = [], []
            for seed in evidence.seeds:
                try:
                    values.append(of_seed(evidence, seed, **arguments))
                except NotRun as problem:
                    missing.append(str(problem))
            if missing:  # the other seeds alone would be a selection by outcome
                raise NotRun("; ".join(dict.fromkeys(missing)))
            return summarise(values, log)

        return over_seeds

    return decorate


MEASURES: dict[str, Callable[[Record], float]] = {
    "consensus_distance": measures.consensus,
    "test_accuracy": lambda record: 100 * measures.final(record, "test_accuracy"),
    "worker_test_accuracy": lambda record: 100 * measures.final(record, "worker_test_accuracy_mean"),
    "cosine": lambda record: measures.settled_mean(record, "cosine"),
    **{
        f"error_random_{space}": functools.partial(measures.geometric_mean, metric=f"relative_error/random/{space}/1")
        for space in ("activity", "weight", "weight_per_sample")
    },
}  # numbers of one run, by name; accuracies in percent


def measured(name: str) -> Callable[[Record], float]:
    """The measure of that name."""
    return MEASURES[choose("claim: measure", name, MEASURES)]


@paired(log=True)
def ratio(evidence: Evidence, seed: int, *, measure: str, of: Settings, to: Settings) -> float:
    """A measure of the run `of` over that of the run `to`."""
    value = measured(measure)
    return value(evidence.one(of, seed=seed)) / value(evidence.one(to, seed=seed))


@paired(log=True)
def ratio_within(evidence: Evidence, seed: int, *, runs: Settings, measure: str, against: str) -> float:
    """A measure of a run over another measure of the same run."""
    record = evidence.one(runs, seed=seed)
    return measured(measure)(record) / measured(against)(record)


@paired()
def difference(evidence: Evidence, seed: int, *, measure: str, of: Settings, to: Settings) -> float:
    """A measure of the run `of` minus that of the run `to`."""
    value = measured(measure)
    return value(evidence.one(of, seed=seed)) - value(evidence.one(to, seed=seed))


@paired()
def ratio_slope(evidence: Evidence, seed: int, *, measure: str, of: Settings, to: Settings, along: str) -> float:
    """Least-squares slope of the logarithm of `ratio` in the logarithm of the setting `along`."""
    value = measured(measure)
    return slope(evidence, seed, of, to, along, lambda a, b: value(a) / value(b))


def slope(
    evidence: Evidence, seed: int, of: Settings, to: Settings, along: str, compare: Callable[[Record, Record], float]
) -> float:
    """Least-squares slope of log(compare(of, to)) in log(along)."""
    xs = evidence.along(of, along)
    ys = [compare(*(evidence.one(side, seed=seed, **{along: x}) for side in (of, to))) for x in xs]
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


@paired()
def share_closed(evidence: Evidence, seed: int, *, measure: str, of: Settings, low: Settings, high: Settings) -> float:
    """How much of the way from the run `low` to the run `high` the run `of` is. `Undefined` where there is no gap."""
    value = measured(measure)
    mine, lower, upper = (value(evidence.one(side, seed=seed)) for side in (of, low, high))
    if upper <= lower:
        raise Undefined(f"there is no gap to close with seed {seed}: {lower:.4g} against {upper:.4g}")
    return (mine - lower) / (upper - lower)


SLACK = 1.02  # on the lowest loss that both of two runs reach


def times(slow: Record, fast: Record) -> float:
    """Virtual time of `slow` over that of `fast` until the training loss is at a level that both reach.

    The level is within 2 % of the higher of the two runs' lowest losses, so that neither is cut off.
    """
    level = SLACK * max(measures.lowest(slow), measures.lowest(fast))
    needed = measures.time_to(fast, level)
    if needed == 0:
        raise Undefined(f"{fast.run_id} is at the training loss {level:.4g} from the start")
    return measures.time_to(slow, level) / needed


@paired(log=True)
def time_ratio(evidence: Evidence, seed: int, *, of: Settings, to: Settings) -> float:
    """Time to a training loss of the run `of` over that of the run `to`."""
    return times(evidence.one(of, seed=seed), evidence.one(to, seed=seed))


@paired()
def time_ratio_slope(evidence: Evidence, seed: int, *, of: Settings, to: Settings, along: str) -> float:
    """Least-squares slope of the logarithm of `time_ratio` in the logarithm of the setting `along`."""
    return slope(evidence, seed, of, to, along, times)


@paired(log=True)
def time_ratio_growth(
    evidence: Evidence, seed: int, *, of: Settings, to: Settings, before: Settings, after: Settings
) -> float:
    """`time_ratio` under the settings `after` over that under the settings `before`."""
    found = [times(*(evidence.one({**side, **case}, seed=seed) for side in (of, to))) for case in (after, before)]
    return found[0] / found[1]


def graph_exponent(evidence: Evidence, *, graph: str, quantity: str, sizes: Sequence[int]) -> Effect:
    """Exponent of a graph's constant in n: slope of logarithms over `sizes`, with the slope's t interval.

    `quantity`: chi1, or root for sqrt(chi1 chi2). A formula has no seeds: the interval says how straight the line is.
    """
    choose("claim: quantity", quantity, ("chi1", "root"))
    pairs = [topology.chi(topology.build(graph, n)) for n in sizes]
    values = [chi1 if quantity == "chi1" else math.sqrt(chi1 * chi2) for chi1, chi2 in pairs]
    fit = scipy.stats.linregress(np.log(sizes), np.log(values))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(sizes) - 2) * fit.stderr)
    return Effect(float(fit.slope), fit.slope - half, fit.slope + half, len(sizes), "interval of a fit; n: graph sizes")


STATISTICS: dict[str, Statistic] = {
    "ratio": ratio,
    "ratio_within": ratio_within,
    "ratio_slope": ratio_slope,
    "difference": difference,
    "share_closed": share_closed,
    "time_ratio": time_ratio,
    "time_ratio_slope": time_ratio_slope,
    "time_ratio_growth": time_ratio_growth,
    "graph_exponent": graph_exponent,
}


def statistic(name: str) -> Statistic:
    """A statistic by its name in `STATISTICS`, or by its dotted path; `SettingError` if there is none."""
    if "." not in name:
        return STATISTICS[choose("claim: statistic", name, STATISTICS)]
    module, function = name.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError):
        raise SettingError("claim: statistic", name, "does not exist") from None


def bounds(part: PartConfig) -> tuple[float, float]:
    """Between which values the effect should lie; one of them may be infinite."""
    if part.between is not None:
        return part.between[0], part.between[1]
    return (-math.inf, part.below) if part.below is not None else (float(part.above or 0), math.inf)


def threshold(part: PartConfig) -> str:
    """`< 1`, `> 0`, `0.8 to 1.25`."""
    low, high = bounds(part)
    if math.isinf(low):
        return f"< {high:g}"
    return f"> {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def verdict(effect: Effect, low: float, high: float) -> str:
    """Supported if the whole interval lies in (low, high), not supported if wholly outside, else inconclusive."""
    if not effect.has_interval:
        return INCONCLUSIVE
    if low < effect.low and effect.high < high:
        return SUPPORTED
    return NOT_SUPPORTED if effect.high <= low or effect.low >= high else INCONCLUSIVE


def combined(verdicts: Iterable[str]) -> str:
    """A claim's verdict: refuted by one part; else not run if one is not; supported if all are; else inconclusive."""
    found = set(verdicts)
    for deciding in (NOT_SUPPORTED, NOT_RUN, INCONCLUSIVE):
        if deciding in found:
            return deciding
    return SUPPORTED


@dataclass(frozen=True)
class Judgement:
    """A part of a claim, measured."""

    part: PartConfig
    effect: Effect
    verdict: str
    reason: str


def judge_part(part: PartConfig, evidence: Evidence) -> Judgement:
    """Effect and verdict of a part, and in `reason` what explains a verdict that is not the interval's alone."""
    try:
        effect = statistic(part.statistic)(evidence, **part.arguments)
    except NotRun as problem:
        return Judgement(part, NO_EFFECT, NOT_RUN, str(problem))
    except Undefined as problem:
        return Judgement(part, NO_EFFECT, INCONCLUSIVE, str(problem))
    return Judgement(part, effect, verdict(effect, *bounds(part)), effect.note)


def judge(claim: Claim, records: Iterable[Record]) -> dict[str, Judgement]:
    """Every part of a claim, judged by those of `records` that are runs of the claim."""
    evidence = Evidence(claim.runs, {r.run_id: r for r in records if r.run_id in claim.runs})
    return {name: judge_part(part, evidence) for name, part in claim.config.parts.items()}


def conditions(claim: Claim) -> str:
    """The conditions as stated, and the values of the claim's `settings` in its runs."""
    stated = " ".join(claim.config.conditions.split())
    values = [f"{key} {setting(claim, key)}" for key in claim.config.settings]
    return f"{stated} Settings: {'; '.join(values)}." if values else stated


def setting(claim: Claim, key: str) -> str:
    """The values of a setting in a claim's runs; `SettingError` if they do not have it."""
    found = {OmegaConf.select(run, key, default=None) for run in claim.runs.values()}
    if None in found:
        raise SettingError(f"configs/claims.yaml: {claim.id}.settings", key, "is not a setting of the claim's runs")
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in sorted(found))


def rows(claim: Claim, judgements: Mapping[str, Judgement]) -> list[dict[str, Any]]:
    """A claim as rows with `COLUMNS`, one per part."""
    whole = combined(j.verdict for j in judgements.values())
    shared = {"id": claim.id, "paper": claim.config.paper, "claim": claim.config.claim, "source": claim.config.source}
    shared |= {"conditions": conditions(claim), "claim_verdict": whole}
    found = []
    for name, j in judgements.items():
        numbers = {"effect": j.effect.value, "low": j.effect.low, "high": j.effect.high, "n": j.effect.n}
        own = {"part": name, "statistic": j.part.says, "threshold": threshold(j.part), "unit": j.part.unit}
        row = shared | numbers | own | {"verdict": j.verdict, "reason": j.reason}
        found.append({column: row[column] for column in COLUMNS})
    return found


def table(claims: Mapping[str, Claim], records: Iterable[Record]) -> pd.DataFrame:
    """All claims, one row per part, with `COLUMNS`."""
    records = list(records)
    found = [row for claim in claims.values() for row in rows(claim, judge(claim, records))]
    return pd.DataFrame(found, columns=list(COLUMNS))


def interval_text(row: Any) -> str:
    """`0.61 [0.58, 0.64]`: effect and interval of a row of `table`, as printed."""
    if math.isnan(row.effect):
        return "–"
    text = f"{row.effect:.3g}" if math.isnan(row.low) else f"{row.effect:.3g} [{row.low:.3g}, {row.high:.3g}]"
    return text.replace("-", "−")


def as_text(found: pd.DataFrame) -> str:
    """The rows of `table` for a terminal: a claim and its verdict, and a line per part."""
    lines = []
    for name, parts in found.groupby("id", sort=False):
        first = parts.iloc[0]
        lines.append(f"{name}  {first['claim_verdict']}: {first['claim']}")
        for row in parts.itertuples():
            numbers = f"{interval_text(row)}, n = {row.n}, claimed {row.threshold}"
            lines.append(f"      {row.verdict}: {row.statistic}: {numbers}" + f" ({row.reason})" * bool(row.reason))
    return "\n".join(lines)
