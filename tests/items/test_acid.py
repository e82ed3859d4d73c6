"""Tables and figures of A²CiD² from real tiny runs: files, numbers that are those of the records, what diverged."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from omegaconf import OmegaConf

from unlocked import record, train
from unlocked.errors import DataError
from unlocked.gossip import topology
from unlocked.gossip.schedule import Schedule
from unlocked.items import acid, acid_beyond, output
from unlocked.items.build import build, context_of
from unlocked.plan import Plan

OVERRIDES = [
    "seeds=[0,1]",
    "acid.workers=[4]",
    "acid.largest=4",
    "acid.training.optim.epochs=1",
    "acid.training.evaluation.points=4",
    "acid.training.evaluation.train_limit=100",
    "acid.rates=[1.0,2.0]",
    "acid.straggler_workers=4",
    "acid.horizon=30",
    "acid.engine_epochs=1",
    "acid.large.workers=[4]",
    "acid.large.most_workers=4",
    "acid.large.epochs=1",
]
FIGURES = (*(f"figure_{k}" for k in range(1, 8)), "equivalent_rate", "pure_gossip", "exponents", "stragglers")
TABLES = (*(f"table_{k}" for k in range(1, 7)), "conditions", "quadratic", "heterogeneous_data", "engines")
# the settings of the runs of figures 1, 4, 5 and table 4, which other items vary
PLAIN = {
    "engine": "virtual",
    "clock.law": "exponential",
    "data.partition": "iid",
    "optim.momentum": 0.9,
    "dynamics": "exact",
}


@pytest.fixture(scope="module")
def small() -> Plan:
    """The quick plan with 4 workers, two seeds and one epoch."""
    return Plan("quick", OVERRIDES, {"wandb": "disabled"})


@pytest.fixture(scope="module")
def records(small: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All records of paper A in that plan."""
    results = tmp_path_factory.mktemp("results")
    train.train([run for run in small.runs.values() if run.paper == "acid"], results)
    return results


@pytest.fixture(scope="module")
def built(small: Plan, records: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Every item's files by name and suffix."""
    figures = tmp_path_factory.mktemp("figures")
    items = [item for item in small.items.values() if item.paper == "acid"]
    return {item.id: {p.suffix[1:]: p for p in build(item, small, records, figures)} for item in items}


@pytest.fixture
def spoilt(small: Plan, records: Path, tmp_path: Path) -> Callable[[str, int], output.Context]:
    """A context of an item in which all-reduce diverged for the first `count` seeds."""
    results = tmp_path / "results"
    shutil.copytree(records, results)

    def make(item: str, count: int) -> output.Context:
        for seed in range(count):
            (run,) = (
                r
                for r in small.runs.values()
                if (r.paper, r.study) == ("acid", "training")
                and r.method == "allreduce"
                and r.seed == seed
                and all(OmegaConf.select(r, k) == v for k, v in PLAIN.items())
            )
            folder = record.folder_of(results, run)
            found = record.load(folder)
            kept = found.history[found.history["step"] == 0]
            summary = found.summary | {"status": "diverged", "reason": "the training loss is not finite"}
            record.write(folder, run, kept, summary)
        return context_of(small.item(item), small, results)

    return make


def of(records: Path, **settings: object) -> list[record.Record]:
    """The plain trainings with these settings, by seed."""
    folders = sorted(p.parent for p in records.rglob("summary.json"))
    found = [record.load(folder) for folder in folders]
    wanted = PLAIN | {"study": "training", "model.name": "mlp"} | settings
    kept = [r for r in found if all(OmegaConf.select(r.config, k) == v for k, v in wanted.items())]
    return sorted(kept, key=lambda r: r.config.seed)


# files


def test_every_item_has_its_files(small: Plan, built: dict[str, dict[str, Path]]) -> None:
    """All suffixes, at their place, with content, and nothing temporary beside them."""
    assert set(built) == set(FIGURES) | set(TABLES)
    for name, files in built.items():
        assert tuple(sorted(files)) == tuple(sorted(small.item(f"acid_{name}").suffixes))
        assert all(p.stat().st_size > 50 for p in files.values())
        assert all(p.parts[-3:-1] == ("quick", "acid") for p in files.values())
    folder = built["figure_1"]["png"].parent
    assert {p.stem for p in folder.iterdir()} == set(built)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn(built: dict[str, dict[str, Path]], name: str) -> None:
    """The image is large, has ink and colour; the vector files are what their names say; the footer is in."""
    pixels = image.imread(built[name]["png"])[..., :3]
    assert min(pixels.shape[:2]) > 150
    ink = (pixels < 0.9).any(-1).mean()
    assert 0.01 < ink < 0.9
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    assert (np.ptp(pixels, axis=-1) > 0.2).any()
    assert built[name]["pdf"].read_bytes().startswith(b"%PDF")
    svg = built[name]["svg"].read_text()
    assert "<svg" in svg
    assert "scale quick" in svg


def test_figures_are_reproducible(
    small: Plan, records: Path, built: dict[str, dict[str, Path]], tmp_path: Path
) -> None:
    """Built again from the same records, every file has the same bytes."""
    again = {p.suffix[1:]: p for p in build(small.item("acid_figure_1"), small, records, tmp_path)}
    for suffix, path in again.items():
        assert path.read_bytes() == built["figure_1"][suffix].read_bytes(), suffix


# numbers


def check_curve(rows: pd.DataFrame, found: list[record.Record], metric: str) -> None:
    """A curve's numbers are mean, minimum and maximum over the records at every step but the start."""
    values = pd.concat([r.series(metric).set_index("step")["value"] for r in found], axis=1)
    values = values[values.index > 0]
    assert rows["step"].tolist() == values.index.tolist()
    assert len(rows) == 4
    np.testing.assert_allclose(rows["mean"], values.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(rows["low"], values.min(axis=1), rtol=1e-5)
    np.testing.assert_allclose(rows["high"], values.max(axis=1), rtol=1e-5)
    assert (rows["runs"] == len(found)).all()


@pytest.mark.parametrize("name", ["figure_1", "figure_5"])
def test_numbers_of_the_curves(built: dict[str, dict[str, Path]], records: Path, name: str) -> None:
    """Every plotted curve is the mean and the range of its records."""
    numbers = pd.read_csv(built[name]["csv"])
    curves = numbers.groupby(["metric", "method", "rate"])
    assert len(curves) == 6
    for (metric, method, rate), rows in curves:
        found = of(records, method=method, graph="ring", rate=rate, workers=4)
        assert len(found) == 2
        check_curve(rows, found, metric)


def test_numbers_of_the_graphs(built: dict[str, dict[str, Path]]) -> None:
    """The constants in figure 3 are those of the topology."""
    numbers = pd.read_csv(built["figure_3"]["csv"])
    assert len(numbers) == 6
    for row in numbers.itertuples():
        expected = topology.chi(topology.build(row.graph, row.workers))
        assert (row.chi1, row.chi2) == pytest.approx(expected, rel=1e-5)
        assert row.root == pytest.approx((expected[0] * expected[1]) ** 0.5, rel=1e-5)


def test_time_lines(built: dict[str, dict[str, Path]]) -> None:
    """Left: all wait at a barrier. Right: nobody is idle, and averagings join neighbours on the ring."""
    numbers = pd.read_csv(built["figure_2"]["csv"])
    assert (numbers["end"] >= numbers["start"]).all()
    together, alone = (numbers[numbers["panel"] == p] for p in ("synchronous", "asynchronous"))
    starts = together[together["kind"] == "communication"].groupby("start")["worker"].nunique()
    assert (starts == 6).all()
    assert len(starts) >= 1
    assert (together["kind"] == "idle").any()
    assert not (alone["kind"] == "idle").any()
    talks = alone[alone["kind"] == "averaging"]
    assert len(talks) > 3
    assert set((talks["worker"] - talks["peer"]) % 6) <= {1, 5}
    for _, mine in alone[alone["kind"] == "gradient"].groupby("worker"):
        np.testing.assert_allclose(mine["start"].iloc[1:], mine["end"].iloc[:-1])
        assert mine["end"].max() == pytest.approx(6.0)


def test_table_of_the_constants(built: dict[str, dict[str, Path]]) -> None:
    """Every graph and size, with the numbers of the theory; what is printed is what is stored."""
    numbers = pd.read_csv(built["table_2"]["csv"])
    assert len(numbers) == 8 * 4
    ring = numbers[(numbers["graph"] == "ring") & (numbers["workers"] == 64)].iloc[0]
    assert (ring["chi1"], ring["chi2"]) == pytest.approx((207.6725, 0.984375), rel=1e-5)
    text = built["table_2"]["md"].read_text()
    (line,) = (x for x in text.splitlines() if x.startswith("| ring"))
    assert "207.67" in line
    assert "0.98" in line
    assert "| 2.0" in line  # chi1 of the ring grows as n²


def test_table_of_the_engines(small: Plan, built: dict[str, dict[str, Path]], records: Path) -> None:
    """Numbers of both engines' own records; communications of real processes are those that both sides counted."""
    rows = pd.read_csv(built["engines"]["csv"]).set_index(["method", "engine"])
    assert set(rows.index) == {(m, e) for m in ("baseline", "acid") for e in ("virtual", "processes")}
    assert (rows["runs"] == 2).all()
    assert (rows.xs("virtual", level="engine")["variation"] == 0).all()
    assert rows["variation"].between(0, 1).all()
    assert rows["per_gradient"].between(0.3, 1.1).all()  # of 1 that is asked for
    found = context_of(small.item("acid_engines"), small, records).select(engine="processes", method="acid")
    counts = [r.summary["counts"] for r in found]
    wanted = np.mean([2 * c["communications"] / c["gradients"] for c in counts])
    assert rows.loc[("acid", "processes"), "per_gradient"] == pytest.approx(wanted, rel=1e-4)
    text = built["engines"]["md"].read_text()
    assert "A²CiD², processes" in text


def test_averagings_of_a_schedule_are_counted_per_gradient() -> None:
    """By hand: two averagings before the second gradient of worker 0, one of them with worker 1."""
    kinds, i, j = [0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [-1, 1, 2, -1, -1]
    events = Schedule(3, np.array(kinds, np.uint8), np.arange(5.0), np.array(i), np.array(j))
    assert acid_beyond.between_gradients(events) == [0, 2, 1]
    assert acid_beyond.total_variation(np.array([1.0]), np.array([0.25, 0.75])) == 0.75


def test_measured_seconds_are_those_of_the_runs(small: Plan, built: dict[str, dict[str, Path]], records: Path) -> None:
    """The last rows of table 3 are means over the records of real processes."""
    rows = pd.read_csv(built["table_3"]["csv"])
    measured = rows[rows["model"] == "measured"].set_index("method")["seconds"]
    assert set(measured.index) == {"allreduce", "baseline", "acid"}
    for method, seconds in measured.items():
        found = context_of(small.item("acid_table_3"), small, records).select(method=method)
        mean = np.mean([r.summary["metrics"]["training_seconds"] for r in found])
        assert seconds == pytest.approx(mean, rel=1e-4)
    assert "AR-SGD, measured (seconds)" in built["table_3"]["md"].read_text()


def test_table_of_accuracies(built: dict[str, dict[str, Path]], records: Path) -> None:
    """Mean and sample deviation over the seeds of every cell's records; printed in percent as mean ± deviation."""
    numbers = pd.read_csv(built["table_4"]["csv"])
    printed = built["table_4"]["md"].read_text()
    assert len(numbers) == len(acid.METHODS_ON_GRAPHS)
    for row in numbers.itertuples():
        found = of(records, method=row.method, graph=row.graph, workers=row.workers, rate=1.0)
        values = [r.summary["metrics"]["test_accuracy"] for r in found]
        assert row.runs == len(values) == 2
        assert row.diverged == 0
        assert (row.mean, row.deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)), rel=1e-4)
        assert f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}" in printed


def test_markdown_can_be_read_alone(small: Plan, built: dict[str, dict[str, Path]]) -> None:
    """Title, caption, notes and the footer with scale, data, seeds and commit."""
    text = built["table_4"]["md"].read_text()
    assert text.startswith("**Table 4: ")
    assert "scikit-learn digits in place of the paper's data" in text
    assert "Mean ± standard deviation" in text
    assert re.search(r"scale quick · scikit-learn digits · 2 seeds · 12 runs · commit \w+", text)
    assert "computed without training" in built["table_2"]["md"].read_text()


@pytest.mark.parametrize("name", TABLES)
def test_latex_has_no_bare_specials(built: dict[str, dict[str, Path]], name: str) -> None:
    """Outside mathematics no %, ^, _ or # stands unescaped, and every row of the tabular ends."""
    text = built[name]["tex"].read_text()
    body = "\n".join(line for line in text.splitlines() if not line.startswith("% "))
    assert body.count(r"\begin{tabular}") == body.count(r"\end{tabular}") == 1
    bare = re.sub(r"\$[^$]*\$", "", body)
    bare = re.sub(r"\\(label|ref|begin|end)\{[^}]*\}", "", bare)
    assert re.findall(r"(?<!\\)[%^_#].{0,20}", bare) == []
    rows = [line for line in body.splitlines() if "&" in line]
    assert rows
    assert all(row.rstrip().endswith(r"\\") for row in rows)
    assert not re.search(r"[χ√±]", body)


# what diverged


def test_a_diverged_run_is_shown(spoilt: Callable[[str, int], output.Context], records: Path) -> None:
    """One of two seeds diverged: the mean is that of the other, the cell says so."""
    table = acid.table_4(spoilt("acid_table_4", 1))
    row = table.numbers[table.numbers["method"] == "allreduce"].iloc[0]
    other = of(records, method="allreduce")[1].summary["metrics"]["test_accuracy"]
    assert (row["runs"], row["diverged"]) == (1, 1)
    assert row["mean"] == pytest.approx(other)
    assert table.printed.loc["AR-SGD", "n = 4"] == f"{100 * other:.1f} (1 diverged)"
    assert "diverged" not in table.printed.loc["A²CiD², ring", "n = 4"]


def test_a_cell_without_a_result(spoilt: Callable[[str, int], output.Context], tmp_path: Path) -> None:
    """All seeds diverged: a dash and the number, no warning, no crash, and the files can be written."""
    context = spoilt("acid_table_4", 2)
    table = acid.table_4(context)
    assert table.printed.loc["AR-SGD", "n = 4"] == "– (2 diverged)"
    row = table.numbers[table.numbers["method"] == "allreduce"].iloc[0]
    assert np.isnan(row["mean"])
    files = output.save(table, tmp_path / "out" / "table_4", context)
    assert len(files) == 3
    assert "2 diverged" in (tmp_path / "out" / "table_4.md").read_text()


def test_figures_survive_runs_without_a_curve(small: Plan, records: Path, tmp_path: Path) -> None:
    """A method all of whose runs diverged before the first evaluation leaves a gap, not a crash."""
    context = context_of(small.item("acid_figure_5"), small, records)
    cut = [
        dataclasses.replace(r, history=r.history[r.history["step"] == 0], summary=r.summary | {"status": "diverged"})
        if r.config.method == "acid"
        else r
        for r in context.records
    ]
    figure = acid.figure_5(dataclasses.replace(context, records=cut))
    assert not (figure.numbers["method"] == "acid").any()
    assert (figure.numbers["method"] == "baseline").any()
    assert len(output.save(figure, tmp_path / "figure_5", context)) == 4


def test_a_missing_record_is_one_line(small: Plan, tmp_path: Path) -> None:
    """An item whose runs are not trained says which record is missing."""
    with pytest.raises(DataError, match="does not exist") as caught:
        build(small.item("acid_table_4"), small, tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


def test_items_with_one_seed(small: Plan, records: Path) -> None:
    """With a single seed there is no deviation to print, and no band to draw."""
    context = context_of(small.item("acid_table_4"), small, records)
    single = dataclasses.replace(context, records=[r for r in context.records if r.config.seed == 0])
    printed = acid.table_4(single).printed
    assert not printed.map(lambda cell: "±" in cell).to_numpy().any()


# helpers of the items


def test_percent_and_spread() -> None:
    """Mean and sample deviation in percent; a single value without; nothing as a dash."""
    assert output.percent([0.9, 0.92]) == "91.0 ± 1.4"
    assert output.percent([0.5]) == "50.0"
    assert output.percent([]) == "–"
    assert output.spread([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))


def test_exponent() -> None:
    """The slope of a power law is its power."""
    assert acid.exponent([16, 64, 256], [3 * n**1.7 for n in (16, 64, 256)]) == pytest.approx(1.7)


def test_select_by_dotted_settings(small: Plan, records: Path) -> None:
    """Double underscores reach nested settings; the order is that of the seeds."""
    context = context_of(small.item("acid_table_4"), small, records)
    assert len(context.select(data__name="digits")) == 12
    assert context.select(data__name="cifar10") == []
    assert [r.config.seed for r in context.select(method="allreduce")] == [0, 1]
