"""Claims: every statistic and every verdict on synthetic frames, the rows that others read, and the two items."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from unlocked import cli
from unlocked.artifact import config
from unlocked.artifact.build import build, context_of
from unlocked.artifact.plan import UNITS, Claim, ClaimConfig, Part, Plan
from unlocked.artifact.record import HISTORY
from unlocked.errors import SettingError
from unlocked.forward_gradient import guesses
from unlocked.items import latex
from unlocked.items.frames import Frames
from unlocked.papers import PAPERS
from unlocked.papers.run import Run
from unlocked.report import claims, inference, items, power, statistics
from unlocked.report.claims import INCONCLUSIVE, NO_DIFFERENCE, NOT_RUN, NOT_SUPPORTED, PIPELINE_CHECK, SUPPORTED
from unlocked.report.inference import Effect, Undefined
from unlocked.report.statistics import Evidence, NotRun
from unlocked.settings import flatten


@dataclass(frozen=True)
class Ran:
    """A run with the values of metrics by metric and index, a step being a unit of time, and final metrics."""

    run: Run
    series: Mapping[tuple[str, int], list[float]]
    final: Mapping[str, float]
    status: str | None = "completed"  # None: there is no record


def frames(*ran: Ran) -> Frames:
    """Of the runs that have a record."""
    there = [one for one in ran if one.status]
    runs = [{"status": one.status, "diverged": one.status == "diverged", **one.final} for one in there]
    history = [
        (one.run.id, k, float(k), float(k), 0.0, metric, index, value)
        for one in there for (metric, index), values in one.series.items() for k, value in enumerate(values)
    ]  # fmt: skip
    ids = pd.Index([one.run.id for one in there], dtype=str)
    return Frames(pd.DataFrame(runs, index=ids), pd.DataFrame(history, columns=["run", *HISTORY]).astype(HISTORY))


def evidence(*ran: Ran) -> Evidence:
    return Evidence.of({one.run.id: one.run for one in ran}, frames(*ran))


def effect(name: str, ran: list[Ran], **arguments: Any) -> Effect:
    return statistics.measured(name, evidence(*ran), arguments)


@functools.cache
def bases(paper: str) -> config.Bases:
    return config.Bases(PAPERS[paper], config.load_scale("quick"), {})


def make(series: Any = None, final: Any = None, *, paper: str = "acid", **settings: Any) -> Ran:
    """A run of the quick scale, changed by settings with double underscores for dots."""
    run = bases(paper).run({key.replace("__", "."): value for key, value in settings.items()})
    return Ran(run, series or {}, final or {})


def pairs(*values: tuple[float, float], **settings: Any) -> list[Ran]:
    """A baseline and an A²CiD² run per pair of consensus distances; the seeds are 0, 1, ..."""
    return [
        make({("consensus_distance", -1): [99.0, value, value, value]}, method=method, seed=seed, **settings)
        for seed, pair in enumerate(values)
        for method, value in zip(("baseline", "acid"), pair, strict=True)
    ]


def finals(metric: str, *cases: tuple[tuple[float, ...], dict[str, Any]]) -> list[Ran]:
    """Runs with a final metric by seed, and settings."""
    return [make(final={metric: x}, seed=s, **own) for values, own in cases for s, x in enumerate(values)]


def claim_of(ran: list[Ran], parts: int = 1, **changes: Any) -> Claim:
    """A claim about these runs whose parts are all `PART` with changes."""
    part = replace(PART, **changes)
    own = ClaimConfig("acid", claim="It falls.", source="abstract", conditions="Ring.")
    return Claim("A1", own, {f"part {k}": part for k in range(parts)}, {one.run.id: one.run for one in ran})


def judge(ran: list[Ran], **changes: Any) -> list[dict[str, Any]]:
    """The parts of `claim_of` these runs."""
    return claims.judged(claim_of(ran, **changes), evidence(*ran))


def losses(values: list[float], **settings: Any) -> list[Ran]:
    return [make({("train_loss", -1): values}, seed=seed, **settings) for seed in (0, 1)]


ACID, BASELINE = {"method": "acid"}, {"method": "baseline"}
OF_ACID: dict[str, Any] = {"measure": "consensus_distance", "of": ACID, "to": BASELINE}
PART = Part(says="distance", statistic="ratio", arguments=OF_ACID, below=1.0)
TIMES: dict[str, Any] = {"measure": "time_to_loss", "of": {"method": "allreduce"}, "to": BASELINE}


def within() -> list[Ran]:
    a, b = (f"expected_error/random/{space}" for space in ("activity", "weight"))
    series = [{(a, 0): [7.0, 1.0], (a, 1): [7, 100], (b, 0): [7, 4.0], (b, 1): [1, last]} for last in (100.0, 400.0)]
    return [make(own, paper="forward_gradient", study="estimator_error", seed=seed) for seed, own in enumerate(series)]


def aligned() -> list[Ran]:
    a, b = (f"alignment/{guess}/weight" for guess in ("local", "ntk"))
    series = [{(a, 0): [0.0, 0.5], (a, 1): [9, last], (b, 0): [9, 0.1], (b, 1): [0, 0.2]} for last in (0.6, 0.8)]
    return [make(own, paper="forward_gradient", study="estimator_error", seed=seed) for seed, own in enumerate(series)]


def cosines() -> list[Ran]:
    return [
        make({("cosine", 0): [9, 9, a, a], ("cosine", 1): [9, 9, a, b]}, paper="forward_gradient", guess=guess, seed=s)
        for guess, values in {"local": ((0.5, 0.7), (0.6, 0.8)), "ntk": ((0.1, 0.3),) * 2}.items()
        for s, (a, b) in enumerate(values)
    ]


def stragglers() -> list[Ran]:
    waits = {(0, "allreduce"): 2, (0, "baseline"): 0, (1, "allreduce"): 14, (1, "baseline"): 0}
    cases = [({"clock__slow_workers": slow, "method": method}, wait) for (slow, method), wait in waits.items()]
    return [one for own, wait in cases for one in losses([1.0] * (2 + wait) + [0.0], clock__law="gamma", **own)]


def ranked() -> list[Ran]:
    """Of 4, 8, 16 and 32 workers; the second metric has the first two the wrong way round."""
    values = {4: (1, 2, 0.1), 8: (2, 1, 0.2), 16: (3, 3, 0.3), 32: (4, 4, 0.4)}
    keys = ("test_accuracy", "worker_test_accuracy_mean", "test_loss")
    return [
        make(final=dict(zip(keys, own, strict=True)), workers=n, seed=s) for s in (0, 1) for n, own in values.items()
    ]


Case = tuple[str, Callable[[], list[Ran]], dict[str, Any], float]
EFFECTS: dict[str, Case] = {
    "within a run: the geometric mean over blocks, of the last evaluation alone": (
        "ratio", within,
        {"of": {}, "to": {}, "measure": "error_random_activity", "against": "error_random_weight"},
        math.sqrt(0.5 * 0.25),
    ),
    "two measures of a run: the difference of the means over blocks, of the last evaluation alone": (
        "difference", aligned,
        {"measure": "alignment_local_weight", "against": "alignment_ntk_weight", "of": {}, "to": {}}, 0.45,
    ),
    "cosines: the mean over blocks and the second half": (
        "difference", cosines, {"measure": "cosine", "of": {"guess": "local"}, "to": {"guess": "ntk"}}, 0.45,
    ),
    "a slope is an exponent, here -1/2 and -1/4": (
        "ratio_slope", lambda: [one for n in (4, 16, 64) for one in pairs((1, n**-0.5), (1, n**-0.25), workers=n)],
        OF_ACID | {"along": "workers"}, -0.375,
    ),
    "rank correlation: all pairs in order, minus five of six and one not": (
        "rank_correlation", ranked,
        {"measure": "test_accuracy", "minus": "worker_test_accuracy", "to": "test_loss",
         "runs": [{"workers": n} for n in (4, 8, 16, 32)]}, 1 - 4 / 6,
    ),
    "rank correlation: all pairs in order": (
        "rank_correlation", ranked,
        {"measure": "test_accuracy", "to": "test_loss", "runs": [{"workers": n} for n in (4, 8, 16, 32)]}, 1.0,
    ),
    "times to 2 % above the higher of the two lowest losses, interpolated": (
        "ratio",
        lambda: losses([3.0, 1.8, 1.0, 0.2], **BASELINE) + losses([3.0, 2.5, 2.0, 1.5, 1.0], method="allreduce"),
        TIMES, (3 + 0.48 / 0.5) / (1 + 0.78 / 0.8),
    ),
    "a ratio of times that grows from two to eight by a straggler": (
        "ratio_growth", stragglers,
        TIMES | {"before": {"clock.slow_workers": 0}, "after": {"clock.slow_workers": 1}}, 4.0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EFFECTS)
def test_effects(case: str) -> None:
    name, runs, arguments, expected = EFFECTS[case]
    mean = effect(name, runs(), **arguments)
    assert (mean.value, mean.n) == (pytest.approx(expected, abs=0.01 if "cosine" in case else None), 2)


def test_effects_without_a_value_are_said_to_be_so() -> None:
    """A slope through one point, a loss that is there at once; what has no logarithm."""
    with pytest.raises(Undefined, match="two values of workers"):
        effect("ratio_slope", pairs((1.0, 0.5)), **OF_ACID, along="workers")
    with pytest.raises(Undefined, match=r"is at .* from the start"):
        effect("ratio", losses([0.2, 0.2], **BASELINE) + losses([1.0, 0.2], method="allreduce"), **TIMES)
    for value in (0.0, math.inf, math.nan):
        with pytest.raises(Undefined, match="effects are"):
            inference.summarise([value, 1.0], log=True)


@pytest.mark.parametrize(("quantity", "power"), [("chi1", 2.0), ("root", 1.0)])
def test_exponents_of_graphs_have_the_interval_of_their_fit(quantity: str, power: float) -> None:
    """On the ring chi1 grows as n², the root of chi1 chi2 as n, on a line nearly straight; no run is needed."""
    fit = effect("graph_exponent", [], graph="ring", quantity=quantity, sizes=[16, 32, 64, 128])
    assert fit.value == pytest.approx(power, abs=0.03)
    assert fit.low < fit.value < fit.high < fit.low + 0.1
    assert (fit.high - fit.value, fit.value - fit.low) == pytest.approx((4.302653 * fit.error,) * 2)  # 95 %, 2 freedoms
    assert (fit.n, fit.note) == (4, "interval of a fit; n: graph sizes")


def test_runs_are_named_when_they_are_missing() -> None:
    """Every seed, each run once; the seeds that are there do not decide alone."""
    runs = pairs((1.0, 0.5), (1.0, 0.5), (1.0, 0.5))
    runs[1], runs[2] = replace(runs[1], status=None), replace(runs[2], status=None)
    with pytest.raises(NotRun) as caught:
        effect("ratio", runs, **OF_ACID)
    assert str(caught.value) == "; ".join(f"{one.run.id} has no record" for one in runs[1:3])


def diverging(method: str, count: int, of: int = 10) -> list[Ran]:
    """Pairs whose A²CiD² is better, but for seeds in which a method diverged."""
    runs = pairs(*[(1.0, 0.5 + seed / 100) for seed in range(of)])
    lost = [one for one in runs if flatten(one.run.identity())["method"] == method][:count]
    return [replace(one, status="diverged") if one in lost else one for one in runs]


@pytest.mark.parametrize(
    ("method", "count", "verdict"),
    [
        ("acid", 10, NOT_SUPPORTED),
        ("acid", 9, NOT_SUPPORTED),
        ("acid", 4, INCONCLUSIVE),
        ("acid", 1, SUPPORTED),
        ("baseline", 1, SUPPORTED),
        ("baseline", 10, SUPPORTED),
    ],
)
def test_divergence_is_evidence_against_the_method(method: str, count: int, verdict: str) -> None:
    """A seed in which a method diverged is a vote against it in a sign test, and the runs are named."""
    runs = diverging(method, count)
    [part] = judge(runs)
    assert part["verdict"] == verdict
    assert part["reason"].startswith(f"sign test: {count} seed")
    assert sum(one.run.id in part["reason"] for one in runs) == count
    votes = 10 - count if method == "acid" else 10
    assert part["p"] == pytest.approx(scipy.stats.binomtest(votes, 10, alternative="greater").pvalue)


def test_a_run_that_diverged_never_comes_to_a_loss() -> None:
    slow, fast = losses([3.0, 2.0, 1.0], method="allreduce")[0], losses([3.0, 1.0, 0.2], **BASELINE)[0]
    lost_slow, lost_fast = replace(slow, status="diverged"), replace(fast, status="diverged")
    assert statistics.ratio(evidence(lost_slow, fast), **TIMES) == math.inf
    assert statistics.ratio(evidence(slow, lost_fast), **TIMES) == 0
    assert math.isnan(statistics.ratio(evidence(lost_slow, lost_fast), **TIMES))


def test_a_seed_in_which_both_diverged_has_no_vote() -> None:
    """Nine votes for and none against, of ten; with all ten lost there is no effect."""
    runs = diverging("acid", 1)
    both = [replace(one, status="diverged") if one.run.seed == 0 else one for one in runs]
    [part] = judge(both)
    assert part["p"] == pytest.approx(scipy.stats.binomtest(9, 10, alternative="greater").pvalue)
    [none] = judge([replace(one, status="diverged") for one in runs])
    assert (none["verdict"], math.isnan(none["effect"])) == (INCONCLUSIVE, True)


RATIOS = ((10.0, 5.0), (100.0, 40.0), (1.0, 0.55), (2.0, 1.3))  # seeds differ tenfold, their ratios do not
SHARES = ((0.9, 0.916), (0.8, 0.814), (0.85, 0.867))


@pytest.mark.parametrize(
    ("name", "metric", "pairs_", "tested"),
    [("ratio", "test_loss", RATIOS, [math.log(b / a) for a, b in RATIOS]),
     ("difference", "test_accuracy", SHARES, [1.6, 1.4, 1.7])],
)  # fmt: skip
def test_effects_are_paired_by_seed_and_tested_as_by_scipy(name: str, metric: str, pairs_: Any, tested: Any) -> None:
    """Ratios by their logarithms, accuracies in points: t intervals and one-sided t tests, which agree with them."""
    before, after = zip(*pairs_, strict=True)
    here = effect(name, finals(metric, (before, BASELINE), (after, ACID)), **OF_ACID | {"measure": metric})
    back, there = (math.exp, math.log) if name == "ratio" else (float, float)
    ends = scipy.stats.ttest_1samp(tested, 0).confidence_interval(0.95)
    assert (here.value, here.low, here.high) == pytest.approx(tuple(map(back, (np.mean(tested), *ends))))
    assert here.n == len(tested)
    for threshold, (above, word) in itertools.product((0.4, 0.5, 1.55), ((True, "greater"), (False, "less"))):
        expected = scipy.stats.ttest_1samp(tested, there(threshold), alternative=word).pvalue
        assert here.chance(threshold, above=above) == pytest.approx(expected)
        assert (expected < inference.LEVEL) == (here.low > threshold if above else here.high < threshold)
    assert here.inside(-math.inf, 0.5) == here.chance(0.5, above=False)


def test_holm_corrects_for_the_best_of_several() -> None:
    """An example worked out by hand: smallest times three, then times two, never below the one before."""
    assert inference.holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert inference.holm([0.9, 0.8]) == [1.0, 1.0]


def test_power_is_the_share_of_experiments_that_find_the_effect() -> None:
    """Against simulated experiments; the number of seeds is the first with a power of .8."""
    draws = np.random.default_rng(0).normal(1.0, 1.2, (20_000, 8))
    passed = scipy.stats.ttest_1samp(draws, 0.0, axis=1, alternative="greater").pvalue < inference.LEVEL
    assert inference.power(1.0, 1.2, 8) == pytest.approx(passed.mean(), abs=0.01)
    needed = inference.seeds_for(1.0, 1.2)
    assert needed is not None
    assert inference.power(1.0, 1.2, needed) >= inference.POWER > inference.power(1.0, 1.2, needed - 1)
    assert inference.seeds_for(0.001, 10.0) is None
    assert inference.power(inference.detectable(1.2, 8), 1.2, 8) == pytest.approx(inference.POWER)
    centred = draws - 1.0
    within = [scipy.stats.ttest_1samp(centred + 2 * side, 0.0, axis=1, alternative=word).pvalue < inference.LEVEL
              for side, word in ((1, "greater"), (-1, "less"))]  # fmt: skip
    assert inference.power_of_equivalence(2.0, 1.2, 8) == pytest.approx((within[0] & within[1]).mean(), abs=0.02)


def test_the_table_of_power_says_how_many_seeds_each_part_needs() -> None:
    """By the spread over the seeds that are there, for effect and margin; a part without runs is left out."""
    runs = pairs((1.0, 0.5), (1.0, 0.7), (1.0, 0.6), (1.0, 9.0))
    claim = claim_of(runs, margin=0.1)
    head = config.ScaleHead(seeds=(0, 1, 2, 3), more_seeds=(4, 5), undecided=("A1",))
    [row] = power.table({"A1": claim}, frames(*runs[:-1]), head).itertuples(index=False)
    logs = np.log([0.5, 0.7, 0.6])
    assert row[2:5] == pytest.approx((3, math.exp(logs.mean()), logs.std(ddof=1)))
    assert row[5] == inference.seeds_for(-logs.mean(), logs.std(ddof=1))
    assert row[6] == inference.seeds_for(math.log(1.1), logs.std(ddof=1), inference.power_of_equivalence)
    assert row[7] == pytest.approx(inference.detectable(logs.std(ddof=1), 6))
    assert power.table({"A1": claim}, frames(), head).empty


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("ratio", {"of": {"method": "allreduce"}}, "must be one of those it needs, but are none"),
        ("ratio", {"of": {}}, "must be one of those it needs, but are baseline-"),
        ("ratio", {"measure": "mood"}, "measure = 'mood': must be one of"),
        ("ratio", {"colour": "red"}, "arguments of ratio.*unexpected keyword argument 'colour'"),
        ("median", {}, "statistic = 'median': must be one of"),
    ],
)
def test_a_wrong_entry_is_refused(name: str, changes: dict[str, Any], problem: str) -> None:
    """Arguments that do not fit the claim's runs, or a statistic that is none, are mistakes and no verdicts."""
    with pytest.raises(SettingError, match=problem):
        effect(name, pairs((1.0, 0.5)), **OF_ACID | changes)


BELOW, ABOVE = {"margin": 0.1}, {"below": None, "above": 1.0}
BETWEEN = {"below": None, "between": (0.8, 1.25)}


@pytest.mark.parametrize(
    ("ratios", "part", "verdict", "reason"),
    [
        ((0.5, 0.55, 0.47), BELOW, SUPPORTED, ""),
        ((2.0, 2.1, 1.93), BELOW, NOT_SUPPORTED, ""),
        ((0.5, 1.4, 0.8), BELOW, INCONCLUSIVE, ""),
        ((0.99, 1.02, 1.0), BELOW, NO_DIFFERENCE, "smaller than the margin"),
        ((0.94, 0.95, 0.96), BELOW, SUPPORTED, "smaller than the margin"),
        ((0.1,), BELOW, PIPELINE_CHECK, "one seed gives no interval"),
        ((0.5, 0.55), BELOW, PIPELINE_CHECK, "2 seeds, and a verdict needs 3"),
        ((0.5, 0.5, 0.5), BELOW, INCONCLUSIVE, "no interval: all 3 seeds give one value"),
        ((1.1, 1.15, 1.2), ABOVE, SUPPORTED, ""),
        ((0.9, 0.85, 0.8), ABOVE, NOT_SUPPORTED, ""),
        ((0.97, 1.0, 1.03), BETWEEN, SUPPORTED, ""),
        ((0.82, 0.85, 0.88), BETWEEN, INCONCLUSIVE, ""),
        ((0.67, 0.7, 0.73), BETWEEN, NOT_SUPPORTED, ""),
        ((1.37, 1.4, 1.43), BETWEEN, NOT_SUPPORTED, ""),
    ],
)
def test_verdicts(ratios: tuple[float, ...], part: dict[str, Any], verdict: str, reason: str) -> None:
    """On the claimed side, on the other, across, or so near that nothing differs; too few seeds decide nothing."""
    [judged] = judge(pairs(*[(1.0, ratio) for ratio in ratios]), **part)
    assert (judged["verdict"], judged["n"], judged["reason"]) == (verdict, len(ratios), reason)


def test_what_was_not_run_or_is_undefined_has_no_effect() -> None:
    """The reason names the run, or says what is missing, and there is no number."""
    first, second = pairs((1.0, 0.5))
    [missing] = judge([first, replace(second, status=None)])
    [undefined] = judge([first, second], statistic="ratio_slope", arguments=OF_ACID | {"along": "workers"})
    assert (missing["verdict"], undefined["verdict"]) == (NOT_RUN, INCONCLUSIVE)
    assert second.run.id in missing["reason"]
    assert "two values of workers" in undefined["reason"]
    assert math.isnan(missing["effect"])
    assert math.isnan(undefined["effect"])


def test_a_claim_is_the_sum_of_its_parts() -> None:
    """The worst part decides."""
    assert claims.combined([SUPPORTED, SUPPORTED]) == SUPPORTED
    assert claims.combined([SUPPORTED, INCONCLUSIVE]) == INCONCLUSIVE
    assert claims.combined([SUPPORTED, NOT_RUN, INCONCLUSIVE]) == NOT_RUN
    assert claims.combined([INCONCLUSIVE, NOT_RUN, NOT_SUPPORTED]) == NOT_SUPPORTED
    assert claims.combined([NO_DIFFERENCE, SUPPORTED, INCONCLUSIVE]) == NO_DIFFERENCE


def test_where_one_part_can_decide_its_chance_is_corrected() -> None:
    """Any part can refute a claim: with two of them the p-values that they fail are doubled; all must hold."""
    worse = pairs((1.0, 1.13), (1.0, 1.28), (1.0, 1.2))  # p = .018 that it fails
    one, two = (claims.judged(claim_of(worse, parts=count), evidence(*worse)) for count in (1, 2))
    assert [part["verdict"] for part in (*one, *two)] == [NOT_SUPPORTED, INCONCLUSIVE, INCONCLUSIVE]
    assert len({part["p"] for part in (*one, *two)}) == 1


def test_thresholds_and_intervals_as_text() -> None:
    """A threshold of 0 is one; three digits, a real minus sign, a dash for nothing."""
    rise = Part(above=0.0, unit="percentage points", margin=0.3)
    parts = (PART, replace(rise, margin=None), rise, Part(between=(0.8, 1.25)))
    assert [claims.threshold(part) for part in parts] == ["< 1", "> 0", "> 0 (margin 0.3)", "0.8 to 1.25"]
    assert claims.margins(replace(PART, margin=0.25)) == pytest.approx((0.8, 1.25))
    assert claims.margins(rise) == (-0.3, 0.3)
    assert claims.interval_text(-0.61234, -0.7, -0.5) == "−0.612 [−0.7, −0.5]"
    assert [claims.interval_text(x, math.nan, math.nan) for x in (2.0, math.nan)] == ["2", "–"]


def test_rows_have_the_columns_that_others_read(tmp_path: Path) -> None:
    """One row per part; conditions name settings of the runs; other runs stay out; a file is read back as it was."""
    runs = pairs((1.0, 0.5), (1.0, 0.4))
    parts = {"ratio": PART, "rise": replace(PART, below=None, above=1.0)}
    entry = ClaimConfig(
        paper="acid", claim="It falls.", source="abstract", conditions="On the\nring.", settings=("workers", "optim.lr")
    )
    claim = Claim("A9", entry, parts, {one.run.id: one.run for one in runs})
    rows = claims.table({"A9": claim}, frames(*runs, *pairs((1.0, 9.0), workers=16)))
    assert list(rows) == [
        "id", "paper", "kind", "part", "claim", "source", "statistic", "conditions", "effect", "low", "high", "n",
        "threshold", "p", "verdict", "reason", "claim_verdict", "unit",
    ]  # fmt: skip
    assert list(rows["part"]) == ["ratio", "rise"]
    assert set(rows["claim_verdict"]) == {claims.combined(rows["verdict"])}
    assert set(rows["conditions"]) == {"On the ring. Settings: workers 64; optim.lr 0.02."}
    assert set(rows["n"]) == {2}
    assert claims.as_table(rows).notes[0].count("All parts must hold.") == 1
    assert "must hold" not in claims.as_table(rows[:1]).notes[0]
    rows = rows.assign(reason="")
    rows.to_csv(tmp_path / "verdicts.csv", index=False)
    pd.testing.assert_frame_equal(claims.read(tmp_path / "verdicts.csv"), rows)
    with pytest.raises(SettingError, match=r"A9.settings.*optim.colour"):
        claims.conditions(replace(claim, config=replace(entry, settings=("optim.colour",))))


@pytest.fixture(scope="module")
def quick() -> Plan:
    """The claims at the quick scale."""
    return Plan("quick", only=["claims_verdicts", "claims_effects"])


@pytest.fixture(scope="module")
def drawn(quick: Plan) -> Frames:
    """Every run that the claims want, with metrics drawn at random."""
    rng = np.random.default_rng(1)
    by_block = ["cosine", *(f"expected_error/random/{s}" for s in ("activity", "weight", "weight_per_sample"))]
    by_block += [f"alignment/{guess}/{s}" for guess in guesses.names() for s in ("activity", "weight")]
    ran = []
    for name in quick.item("claims_verdicts").runs:
        series: dict[tuple[str, int], list[float]] = {
            ("train_loss", -1): [2.0, 1.0, 0.5, 0.4 + rng.uniform(0, 0.1)],
            ("consensus_distance", -1): [0.0, *rng.uniform(1, 2, 3)],
            ("loss_difference", -1): [0.0, *rng.uniform(1, 2, 3)],
            **{(metric, block): list(rng.uniform(0.1, 1, 4)) for metric in by_block for block in range(3)},
        }
        final = dict(
            zip(("test_accuracy", "worker_test_accuracy_mean", "test_loss"), rng.uniform(0.5, 1, 3), strict=True)
        )
        ran.append(Ran(quick.runs[name], series, final))
    return frames(*ran)


def test_every_part_finds_its_runs(quick: Plan, drawn: Frames) -> None:
    """With all records there, no part is not run, and every effect has both seeds (or says why it has no value)."""
    rows = claims.table(quick.claims, drawn)
    assert NOT_RUN not in set(rows["verdict"])
    trained = rows[rows["kind"] != "check"]
    assert (trained["n"] == 2).all()
    assert set(trained["verdict"]) == {PIPELINE_CHECK}
    assert set(rows["unit"]) <= set(UNITS) == set(items.AXIS)


def test_the_items_show_every_part(quick: Plan, drawn: Frames, tmp_path: Path) -> None:
    """The table has all claims, parts, sources and conditions; the figure draws them, its numbers are the table's."""
    context = replace(context_of(quick.item("claims_verdicts"), quick, tmp_path), frames=drawn)
    table, figure = items.verdicts(context), items.effects(context)
    pd.testing.assert_frame_equal(table.numbers, figure.numbers)
    assert len(table.rows) == len(quick.claims) + len(table.numbers)
    assert [note.split(":")[0] for note in table.notes] == list(quick.claims)
    assert "Fournier et al. 2023, abstract" in " ".join(table.notes)
    assert r"\begin{longtable}" in latex.render(table, "caption", "verdicts")
    assert len(figure.canvas.axes) == table.numbers["unit"].nunique()
    assert sum(len(ax.get_yticklabels()) for ax in figure.canvas.axes) == len(table.numbers)


def test_claims_can_be_judged_before_anything_is_trained(quick: Plan, tmp_path: Path) -> None:
    """The files are there. What is trained is not run and names runs; the claim about a formula is judged."""
    for name in ("claims_verdicts", "claims_effects"):
        item = quick.item(name)
        files = build(item, quick, tmp_path / "results", tmp_path / "figures")
        assert {path.suffix[1:] for path in files} == set(item.suffixes)
        assert {path.parent for path in files} == {tmp_path / "figures" / "quick" / "claims"}
    rows = claims.read(tmp_path / "figures" / "quick" / "claims" / "verdicts.csv")
    verdicts = rows.groupby("id")["claim_verdict"].first()
    assert verdicts["A6"] == SUPPORTED
    assert set(verdicts.drop("A6")) == {NOT_RUN}
    for row in rows[rows["verdict"] == NOT_RUN].itertuples():
        assert any(name in row.reason for name in quick.claims[row.id].runs)
    assert not (rows[["claim", "source", "statistic", "conditions", "threshold"]] == "").any().any()


def test_the_command_prints_table_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A line per claim and part for people; rows whose missing numbers are null for programs."""
    arguments = ["claims", "--results", str(tmp_path)]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(not line.startswith(" ") for line in lines) == 17
    assert "A6  supported: " in "\n".join(lines)
    assert cli.main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(lines) - 17
    assert all(tuple(row) == claims.COLUMNS for row in rows)
    assert {row["effect"] for row in rows if row["verdict"] == NOT_RUN} == {None}
