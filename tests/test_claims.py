"""Claims: every statistic and every verdict on synthetic records, the rows that others read, and the two items."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib import image

from unlocked import claims, cli, config, plan, record
from unlocked.claims import INCONCLUSIVE, NOT_RUN, NOT_SUPPORTED, SUPPORTED, Effect, Evidence, NotRun, Undefined
from unlocked.errors import SettingError
from unlocked.items.build import build, context_of
from unlocked.plan import Claim, ClaimConfig, PartConfig, Plan
from unlocked.record import Record

Make = Callable[..., Record]
Distances = Mapping[int, tuple[float, float]]  # by seed: of the baseline, and of A²CiD²


def history(series: Mapping[tuple[str, int], list[float]]) -> pd.DataFrame:
    """Metrics by (name, index) at steps 0, 10, 20, ..., at virtual times 0, 1, 2, ..."""
    rows = [
        {"step": 10 * k, "epoch": float(k), "virtual_time": float(k), "wall_time": 0.0, "metric": metric,
         "index": index, "value": value}
        for (metric, index), values in series.items() for k, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(record.HISTORY)).astype(record.HISTORY)


@pytest.fixture(scope="module")
def bases() -> dict[str, Any]:
    """Settings of both papers at the quick scale."""
    scale = config.load_scale("quick")
    return {paper: config.defaults(paper, scale) for paper in config.RUNS}


@pytest.fixture(scope="module")
def make(bases: dict[str, Any]) -> Make:
    """A synthetic record: settings, history and final metrics as given; a step is 10 gradients and one unit of time."""

    def make(
        series: Mapping[tuple[str, int], list[float]] | None = None,
        final: Mapping[str, float] | None = None,
        status: str = "completed",
        paper: str = "acid",
        **settings: Any,
    ) -> Record:
        run = config.resolve(bases[paper], {key.replace("__", "."): value for key, value in settings.items()})
        provenance = {"commit": None, "dirty": False}
        summary = {"status": status, "metrics": dict(final or {}), "provenance": provenance}
        return Record(Path(config.run_id(run)), run, history(series or {}), summary)

    return make


def evidence(*records: Record, missing: tuple[Record, ...] = ()) -> Evidence:
    """The runs of `records` and of `missing` are wanted; only the first have records."""
    wanted = {r.run_id: r.config for r in (*records, *missing)}
    return Evidence(wanted, {r.run_id: r for r in records})


@pytest.fixture(scope="module")
def distances(make: Make) -> Callable[..., list[Record]]:
    """A baseline and an A²CiD² run per seed, with a consensus distance that settles at the given values."""

    def runs(values: Distances, **settings: Any) -> list[Record]:
        return [
            make({("consensus_distance", -1): [99.0, value, value, value]}, method=method, seed=seed, **settings)
            for seed, pair in values.items()
            for method, value in zip(("baseline", "acid"), pair, strict=True)
        ]

    return runs


OF_ACID: dict[str, Any] = {"measure": "consensus_distance", "of": {"method": "acid"}, "to": {"method": "baseline"}}
PART = PartConfig(says="distance", statistic="ratio", arguments=OF_ACID, below=1.0)
ACCURACY: dict[str, Any] = OF_ACID | {"measure": "test_accuracy"}


# effects


def test_a_ratio_is_paired_by_seed(distances: Callable[..., list[Record]]) -> None:
    """Seeds that differ tenfold and whose ratios agree give a narrow interval: t on logarithms, transformed back."""
    found = claims.ratio(evidence(*distances({0: (10.0, 5.0), 1: (100.0, 40.0), 2: (1.0, 0.55)})), **OF_ACID)
    logs = np.log([0.5, 0.4, 0.55])
    half = scipy.stats.t.ppf(0.975, 2) * logs.std(ddof=1) / math.sqrt(3)
    assert found.value == pytest.approx(math.exp(logs.mean()))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))
    assert found.n == 3
    assert found.high < 1


def test_a_difference_of_accuracies_is_in_points(make: Make) -> None:
    """Mean over seeds of the difference of the final values, in percentage points, with the textbook interval."""
    values = {0: (0.90, 0.92), 1: (0.80, 0.81), 2: (0.85, 0.88)}
    runs = [
        make(final={"test_accuracy": value}, method=method, seed=seed)
        for seed, pair in values.items()
        for method, value in zip(("baseline", "acid"), pair, strict=True)
    ]
    found = claims.difference(evidence(*runs), **ACCURACY)
    expected = scipy.stats.ttest_1samp([2.0, 1.0, 3.0], 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, expected.low, expected.high))


def test_a_ratio_within_a_run_takes_the_geometric_mean_over_blocks(make: Make) -> None:
    """Errors of two spaces in the same record: every block counts alike, and the last evaluation alone."""
    names = [f"relative_error/random/{space}/1" for space in ("activity", "weight")]
    runs = [
        make(
            {(names[0], 0): [7.0, 1.0], (names[0], 1): [7.0, 100.0], (names[1], 0): [7.0, 4.0], (names[1], 1): [1, k]},
            paper="forward_gradient", study="estimator_error", seed=seed,
        )
        for seed, k in enumerate((100.0, 400.0))
    ]  # fmt: skip
    arguments = {"runs": {}, "measure": "error_random_activity", "against": "error_random_weight"}
    found = claims.ratio_within(evidence(*runs), **arguments)
    assert found.value == pytest.approx(math.sqrt(0.5 * 0.25))


def test_the_cosine_is_a_mean_over_blocks_and_the_second_half(make: Make) -> None:
    """Of four evaluations at steps 0 to 30 the last two count."""
    runs = [
        make({("cosine", 0): [9.0, 9.0, a, a], ("cosine", 1): [9.0, 9.0, a, a + 0.2]}, paper="forward_gradient",
             guess=guess, seed=seed)
        for seed, pair in enumerate(((0.5, 0.1), (0.6, 0.1)))
        for guess, a in zip(("local", "ntk"), pair, strict=True)
    ]  # fmt: skip
    arguments = {"measure": "cosine", "of": {"guess": "local"}, "to": {"guess": "ntk"}}
    assert claims.difference(evidence(*runs), **arguments).value == pytest.approx(0.45)


def test_slopes_are_exponents(distances: Callable[..., list[Record]]) -> None:
    """A ratio that falls as n^-1/2 (seed 0) and n^-1/4 (seed 1)."""
    runs = [
        r
        for n in (4, 16, 64)
        for r in distances({0: (1.0, n**-0.5), 1: (1.0, n**-0.25)}, workers=n)
    ]  # fmt: skip
    found = claims.ratio_slope(evidence(*runs), **OF_ACID, along="workers")
    assert (found.value, found.n) == (pytest.approx(-0.375), 2)
    with pytest.raises(Undefined, match="two values of workers"):
        claims.ratio_slope(evidence(*runs[:4]), **OF_ACID, along="workers")


def test_the_share_of_a_gap(make: Make) -> None:
    """Halfway from the ring to the complete graph is .5; without a gap there is no share."""

    def runs(ring: float, seed: int) -> list[Record]:
        cases = (("acid", "ring", 0.7), ("baseline", "ring", ring), ("baseline", "complete", 0.8))
        return [
            make(final={"worker_test_accuracy_mean": value}, method=method, graph=graph, seed=seed)
            for method, graph, value in cases
        ]

    arguments = {
        "measure": "worker_test_accuracy",
        "of": {"method": "acid"},
        "low": {"method": "baseline", "graph": "ring"},
        "high": {"graph": "complete"},
    }
    found = claims.share_closed(evidence(*runs(0.6, 0), *runs(0.65, 1)), **arguments)
    assert found.value == pytest.approx((0.5 + 1 / 3) / 2)
    with pytest.raises(Undefined, match="no gap to close with seed 1"):
        claims.share_closed(evidence(*runs(0.6, 0), *runs(0.8, 1)), **arguments)


def test_times_to_a_loss_that_both_reach(make: Make) -> None:
    """The level is 2 % above the higher of the two lowest losses, interpolated between evaluations."""
    fast = [make({("train_loss", -1): [3.0, 2.0, 1.0, 0.2]}, method="baseline", seed=seed) for seed in (0, 1)]
    slow = [make({("train_loss", -1): [3.0, 2.5, 2.0, 1.5, 1.0]}, method="allreduce", seed=seed) for seed in (0, 1)]
    sides = {"of": {"method": "allreduce"}, "to": {"method": "baseline"}}
    found = claims.time_ratio(evidence(*fast, *slow), **sides)
    assert found.value == pytest.approx((3 + 0.48 / 0.5) / (1 + 0.98))
    assert not found.has_interval
    with pytest.raises(Undefined, match="from the start"):
        claims.times(fast[0], make({("train_loss", -1): [0.2, 0.2]}))


def test_the_growth_of_a_time_ratio(make: Make) -> None:
    """Twice the time without a straggler, eight times with one: a factor of four."""
    runs = [
        make({("train_loss", -1): [1.0, 1.0, *[1.0] * wait, 0.0]}, method=method, seed=seed, clock__law="gamma",
             clock__slow_workers=slow)
        for seed in (0, 1)
        for slow, method, wait in ((0, "allreduce", 2), (0, "baseline", 0), (1, "allreduce", 14), (1, "baseline", 0))
    ]  # fmt: skip
    arguments = {
        "of": {"method": "allreduce"},
        "to": {"method": "baseline"},
        "before": {"clock.slow_workers": 0},
        "after": {"clock.slow_workers": 1},
    }
    assert claims.time_ratio_growth(evidence(*runs), **arguments).value == pytest.approx(16 / 4)


def test_exponents_of_graphs_have_the_interval_of_their_fit() -> None:
    """On the ring chi1 grows as n², the root of chi1 chi2 as n, on a line nearly straight; no record is needed."""
    sizes = [16, 32, 64, 128]
    for quantity, power in (("chi1", 2.0), ("root", 1.0)):
        found = claims.graph_exponent(evidence(), graph="ring", quantity=quantity, sizes=sizes)
        assert found.value == pytest.approx(power, abs=0.03)
        assert found.low < found.value < found.high < found.low + 0.1
        assert (found.n, found.note) == (4, "interval of a fit; n: graph sizes")
    with pytest.raises(SettingError, match="quantity"):
        claims.graph_exponent(evidence(), graph="ring", quantity="chi3", sizes=sizes)


def test_values_without_a_logarithm_are_no_effect() -> None:
    """A ratio of zero and an infinite time are said to be so."""
    for values in ([0.0, 1.0], [math.inf, 1.0], [math.nan, 1.0]):
        with pytest.raises(Undefined, match="effects are"):
            claims.summarise(values, log=True)


# which runs


def test_runs_are_named_when_they_are_missing_or_diverged(distances: Callable[..., list[Record]]) -> None:
    """Both reasons, every seed, each run once; the seeds that are there do not decide alone."""
    found = distances({0: (1.0, 0.5), 1: (1.0, 0.5), 2: (1.0, 0.5)})
    lost = dataclasses.replace(found[1], summary={"status": "diverged"})
    with pytest.raises(NotRun) as caught:
        claims.ratio(evidence(found[0], lost, *found[3:], missing=(found[2],)), **OF_ACID)
    assert str(caught.value) == f"{lost.run_id} diverged; {found[2].run_id} has no record"


def test_settings_that_name_no_run_or_several_are_refused(distances: Callable[..., list[Record]]) -> None:
    """A claim whose arguments do not fit its runs is a mistake in its entry, not a verdict."""
    there = evidence(*distances({0: (1.0, 0.5)}))
    with pytest.raises(SettingError, match="not among the runs"):
        claims.ratio(there, **OF_ACID | {"of": {"method": "allreduce"}})
    with pytest.raises(SettingError, match="must be one, but are"):
        claims.ratio(there, **OF_ACID | {"of": {}})


@pytest.mark.parametrize("name", ["median", "unlocked.claims.median", "unlocked.nowhere.median"])
def test_an_unknown_statistic_is_refused(name: str) -> None:
    """By its name or its path."""
    with pytest.raises(SettingError, match="statistic"):
        claims.statistic(name)


def test_a_statistic_can_be_a_dotted_path() -> None:
    """As the `build` of an item."""
    assert claims.statistic("unlocked.claims.difference") is claims.difference


# verdicts

BELOW = (-math.inf, 1.0)
CASES: dict[str, tuple[Distances, str]] = {
    "all below": ({0: (1.0, 0.5), 1: (2.0, 1.1), 2: (3.0, 1.4)}, SUPPORTED),
    "all above": ({0: (1.0, 2.0), 1: (2.0, 4.2), 2: (3.0, 5.8)}, NOT_SUPPORTED),
    "across": ({0: (1.0, 0.5), 1: (1.0, 1.4), 2: (1.0, 0.8)}, INCONCLUSIVE),
    "one seed": ({0: (1.0, 0.1)}, INCONCLUSIVE),
    "one value": ({0: (1.0, 0.5), 1: (1.0, 0.5)}, INCONCLUSIVE),
}


@pytest.mark.parametrize("case", CASES)
def test_verdicts_of_synthetic_records(distances: Callable[..., list[Record]], case: str) -> None:
    """The whole interval on the claimed side, on the other, or across; no interval decides nothing, and says why."""
    values, expected = CASES[case]
    found = claims.judge_part(PART, evidence(*distances(values)))
    assert found.verdict == expected
    assert found.effect.n == len(values)
    assert found.effect.has_interval == (case not in ("one seed", "one value"))
    reasons = {"one seed": "one seed gives no interval", "one value": "no interval: all 2 seeds give one value"}
    assert found.reason == reasons.get(case, "")


@pytest.mark.parametrize("trouble", ["missing", "diverged"])
def test_what_was_not_run_has_no_effect(distances: Callable[..., list[Record]], trouble: str) -> None:
    """The verdict is not run, the reason names the run, and there is no number."""
    first, second = distances({0: (1.0, 0.5)})
    if trouble == "missing":
        there = evidence(first, missing=(second,))
    else:
        there = evidence(first, dataclasses.replace(second, summary={"status": "diverged"}))
    found = claims.judge_part(PART, there)
    assert (found.verdict, found.effect.n) == (NOT_RUN, 0)
    assert math.isnan(found.effect.value)
    assert second.run_id in found.reason


def test_an_undefined_statistic_is_inconclusive(distances: Callable[..., list[Record]]) -> None:
    """Records without an effect: no verdict on the claim, and the reason in words."""
    part = dataclasses.replace(PART, statistic="ratio_slope", arguments=OF_ACID | {"along": "workers"})
    found = claims.judge_part(part, evidence(*distances({0: (1.0, 0.5), 1: (1.0, 0.4)})))
    assert (found.verdict, found.effect.n) == (INCONCLUSIVE, 0)
    assert "two values of workers" in found.reason


@pytest.mark.parametrize(
    ("interval", "bounds", "expected"),
    [
        ((0.5, 0.9), BELOW, SUPPORTED),
        ((0.5, 1.0), BELOW, INCONCLUSIVE),
        ((1.0, 1.2), BELOW, NOT_SUPPORTED),
        ((0.1, 0.2), (0.0, math.inf), SUPPORTED),
        ((-0.2, -0.1), (0.0, math.inf), NOT_SUPPORTED),
        ((-0.1, 0.1), (0.0, math.inf), INCONCLUSIVE),
        ((0.9, 1.1), (0.8, 1.25), SUPPORTED),
        ((0.7, 1.1), (0.8, 1.25), INCONCLUSIVE),
        ((0.5, 2.0), (0.8, 1.25), INCONCLUSIVE),
        ((0.5, 0.7), (0.8, 1.25), NOT_SUPPORTED),
        ((1.3, 2.0), (0.8, 1.25), NOT_SUPPORTED),
        ((math.nan, math.nan), BELOW, INCONCLUSIVE),
    ],
)
def test_verdicts_of_intervals(interval: tuple[float, float], bounds: tuple[float, float], expected: str) -> None:
    """Below, above and between, with an interval inside, outside, across one end and across both."""
    assert claims.verdict(Effect(1.0, *interval, 3), *bounds) == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([SUPPORTED, SUPPORTED], SUPPORTED),
        ([SUPPORTED, INCONCLUSIVE], INCONCLUSIVE),
        ([SUPPORTED, NOT_RUN, INCONCLUSIVE], NOT_RUN),
        ([SUPPORTED, NOT_RUN, NOT_SUPPORTED], NOT_SUPPORTED),
        ([INCONCLUSIVE, NOT_SUPPORTED], NOT_SUPPORTED),
    ],
)
def test_a_claim_is_the_sum_of_its_parts(parts: list[str], expected: str) -> None:
    """One refuted part refutes, one part that was not run leaves it open, all must be supported."""
    assert claims.combined(parts) == expected


def test_thresholds_as_text_and_numbers() -> None:
    """One side, the other, or both; a threshold of 0 is one."""
    for part, text, ends in (
        (PartConfig(below=1.0), "< 1", BELOW),
        (PartConfig(above=0.0), "> 0", (0.0, math.inf)),
        (PartConfig(between=[0.8, 1.25]), "0.8 to 1.25", (0.8, 1.25)),
    ):
        assert (claims.threshold(part), claims.bounds(part)) == (text, ends)


# rows


def test_rows_have_the_columns_that_others_read(distances: Callable[..., list[Record]]) -> None:
    """One row per part, columns in order; conditions name settings of the runs; records of other runs stay out."""
    runs = distances({0: (1.0, 0.5), 1: (1.0, 0.4)})
    entry = ClaimConfig(
        paper="acid", claim="It falls.", source="abstract", conditions="On the\nring.",
        settings=["workers", "optim.lr"],
        parts={"ratio": PART, "rise": dataclasses.replace(PART, below=None, above=1.0)},
    )  # fmt: skip
    claim = Claim("A9", entry, {r.run_id: r.config for r in runs})
    found = claims.table({"A9": claim}, [*runs, *distances({7: (1.0, 9.0)})])
    assert list(found) == [
        "id", "paper", "part", "claim", "source", "statistic", "conditions", "effect", "low", "high", "n", "threshold",
        "verdict", "reason", "claim_verdict", "unit",
    ]  # fmt: skip
    assert list(found["part"]) == ["ratio", "rise"]
    assert set(found["claim_verdict"]) == {claims.combined(found["verdict"])}
    assert set(found["conditions"]) == {"On the ring. Settings: workers 64; optim.lr 0.02."}
    assert set(found["n"]) == {2}
    with pytest.raises(SettingError, match=r"A9.settings.*optim.colour"):
        claims.setting(claim, "optim.colour")


def test_text_of_intervals() -> None:
    """Three digits, a real minus sign, a dash for nothing."""
    rows = pd.DataFrame(
        [(-0.61234, -0.7, -0.5), (2.0, math.nan, math.nan), (math.nan,) * 3], columns=["effect", "low", "high"]
    )
    assert [claims.interval_text(row) for row in rows.itertuples()] == ["−0.612 [−0.7, −0.5]", "2", "–"]


# the claims of the papers


@pytest.fixture(scope="module")
def quick() -> Plan:
    """The claims at the quick scale."""
    return Plan("quick", only=["claims_verdicts", "claims_effects"])


def test_every_claim_can_be_judged(quick: Plan) -> None:
    """Without records the trained ones are not run and name runs of theirs; the one about a formula is judged."""
    found = claims.table(quick.claims, [])
    verdicts = found.groupby("id")["claim_verdict"].first()
    assert verdicts["A6"] == SUPPORTED
    assert set(verdicts.drop("A6")) == {NOT_RUN}
    for row in found[found["verdict"] == NOT_RUN].itertuples():
        assert any(name in row.reason for name in quick.claims[row.id].runs)
    assert not (found[["claim", "source", "statistic", "conditions", "threshold"]] == "").any().any()
    assert set(found["unit"]) <= set(plan.UNITS)


def synthetic(quick: Plan, rng: np.random.Generator) -> list[Record]:
    """A record of every run that the claims want, with metrics drawn at random."""
    made = []
    for name in quick.item("claims_verdicts").runs:
        run = quick.runs[name]
        series = {("train_loss", -1): [2.0, 1.0, 0.5, 0.4 + rng.uniform(0, 0.1)]}
        series[("consensus_distance", -1)] = [0.0, *rng.uniform(1, 2, 3)]
        for metric in (
            "cosine",
            *(f"relative_error/random/{s}/1" for s in ("activity", "weight", "weight_per_sample")),
        ):
            series |= {(metric, block): list(rng.uniform(0.1, 1, 4)) for block in range(3)}
        final = {"test_accuracy": rng.uniform(0.5, 1), "worker_test_accuracy_mean": rng.uniform(0.5, 1)}
        summary = {"status": "completed", "metrics": final, "provenance": {"commit": None, "dirty": False}}
        made.append(Record(Path(name), run, history(series), summary))
    return made


def test_every_part_finds_its_runs(quick: Plan) -> None:
    """With all records there, no part is not run, and every effect has both seeds (or says why it has no value)."""
    found = claims.table(quick.claims, synthetic(quick, np.random.default_rng(0)))
    assert NOT_RUN not in set(found["verdict"])
    undefined = found["reason"].str.contains("no gap to close")
    assert (found.loc[~undefined & (found["id"] != "A6"), "n"] == 2).all()
    assert set(found.loc[undefined, "part"]) <= {"share"}


def test_the_items_show_every_part(quick: Plan, tmp_path: Path) -> None:
    """The table has all claims, parts, sources and conditions; the figure draws them, its numbers are the table's."""
    empty = context_of(quick.item("claims_verdicts"), quick, tmp_path)
    assert empty.records == []
    context = dataclasses.replace(empty, records=synthetic(quick, np.random.default_rng(1)))
    from unlocked.items import claims as items
    from unlocked.items import output

    table, figure = items.verdicts(context), items.effects(context)
    pd.testing.assert_frame_equal(table.numbers, figure.numbers)
    assert len(table.printed) == len(quick.claims) + len(table.numbers)
    assert [note.split(":")[0] for note in table.notes] == list(quick.claims)
    assert len(figure.canvas.axes) == table.numbers["unit"].nunique()
    assert set(items.AXIS) == set(plan.UNITS)
    labels = [label.get_text() for ax in figure.canvas.axes for label in ax.get_yticklabels()]
    assert len(labels) == len(table.numbers)
    files = {path.suffix: path for path in output.save(figure, tmp_path / "effects", context)}
    pixels = image.imread(files[".png"])[..., :3]
    assert 0.01 < (pixels < 0.9).any(-1).mean() < 0.9
    assert pixels.shape[1] > 1000
    tex = next(path for path in output.save(table, tmp_path / "verdicts", context) if path.suffix == ".tex").read_text()
    assert r"\begin{tabular}{lp{8cm}rrll}" in tex
    assert "Fournier et al. 2023, abstract" in tex.partition(r"\end{tabular}")[2].partition(r"\end{table}")[0]


def test_claims_can_be_drawn_before_anything_is_trained(quick: Plan, tmp_path: Path) -> None:
    """The files are there, and say not run."""
    for name, count in (("claims_verdicts", 3), ("claims_effects", 4)):
        files = build(quick.item(name), quick, tmp_path / "results", tmp_path / "figures")
        assert len(files) == count
        assert {path.parent for path in files} == {tmp_path / "figures" / "quick" / "claims"}
    numbers = pd.read_csv(tmp_path / "figures" / "quick" / "claims" / "verdicts.csv")
    assert set(numbers["verdict"]) == {NOT_RUN, SUPPORTED}


def test_panels_hold_effects_and_thresholds() -> None:
    """A panel's range holds every effect and threshold, and an enormous interval does not dwarf them."""
    from unlocked.items import claims as items

    rows = pd.DataFrame(
        {"effect": [0.5, 2.0], "low": [0.4, 1e-9], "high": [0.6, 1e9], "least": [-math.inf, 0.8], "most": [1.0, 1.25]}
    )
    low, high = items.limits(rows, log=True)
    assert 0.05 < low < 0.5
    assert 2.0 < high < 20


def test_the_command_prints_table_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A line per claim and part for people; rows whose missing numbers are null for programs."""
    arguments = ["claims", "--results", str(tmp_path)]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(not line.startswith(" ") for line in lines) == 10
    assert "A6  supported: " in "\n".join(lines)
    assert cli.main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == len(lines) - 10
    assert all(tuple(row) == claims.COLUMNS for row in rows)
    assert {row["effect"] for row in rows if row["verdict"] == NOT_RUN} == {None}


def test_the_readme_shows_the_verdicts_that_are_kept() -> None:
    """Its table is, line by line, the one beside the reduced scale's figures."""
    kept = (config.ROOT / "paper_figures" / "reduced" / "claims" / "verdicts.md").read_text().splitlines()
    table = [line for line in kept if line.startswith("|")]
    assert table
    assert "\n".join(table) in (config.ROOT / "README.md").read_text()
