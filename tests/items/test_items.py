"""Every table and figure from real tiny runs of both papers: files, numbers that are those of the runs, divergence."""

from __future__ import annotations

import dataclasses
import json
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

from unlocked.artifact import train
from unlocked.artifact.build import build, context_of
from unlocked.artifact.plan import CLAIMS, Plan
from unlocked.errors import DataError
from unlocked.gossip import topology
from unlocked.items import output
from unlocked.items.context import Context
from unlocked.items.frames import Frames
from unlocked.items.measures import consensus, over_training
from unlocked.items.table import Table
from unlocked.papers.acid.methods import GRAPH_ROWS

ACID = {
    "workers": [4], "largest": 4, "rates": [1.0, 2.0], "straggler_workers": 4, "horizon": 30, "engine_epochs": 1,
    "released_workers": 4, "released_width": 0.03125, "released_epochs": 0.2, "large.workers": [4],
    "large.most_workers": 4, "large.epochs": 1, "training.optim.epochs": 1, "training.evaluation.points": 4,
    "training.evaluation.train_limit": 100, "strength_workers": [4], "learning_rates": [0.02, 0.05], "disagreement": 20,
    "items.engines.seeds": 2,
}  # fmt: skip
FORWARD = {
    "widths": [0.03125, 0.0625], "cost_width": 0.0625, "tangents": 2, "large.width": 0.03125,
    "training.model.width": 0.0625, "training.data.train_limit": 64, "training.data.test_limit": 40,
    "training.optim.batch_size": 32, "training.optim.epochs": 1, "training.evaluation.points": 2,
    "training.evaluation.recalibration_batches": 1, "training.measure.batch_size": 16,
    "items.noise.seeds": 2,
}  # fmt: skip
SMALL = {"acid": ACID, "forward_gradient": FORWARD}
OVERRIDES = ["seeds=[0,1]", *(f"{paper}.{key}={value}" for paper in SMALL for key, value in SMALL[paper].items())]
ITEMS = {name: item for name, item in Plan("quick").items.items() if item.paper != CLAIMS}
TABLES = [name for name, item in ITEMS.items() if item.config.kind == "table"]
FIGURES = [name for name in ITEMS if name not in TABLES]
Files = dict[str, Path]
Of = Callable[[str], Context]


@pytest.fixture(scope="module")
def small() -> Plan:
    return Plan("quick", OVERRIDES, {"wandb": "disabled"}, only=list(ITEMS))


@pytest.fixture(scope="module")
def results(small: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    train.train(list(small.runs.values()), folder)
    return folder


@pytest.fixture(scope="module")
def of(small: Plan, results: Path) -> Of:
    return lambda name: context_of(small.item(name), small, results)


@pytest.fixture(scope="module")
def built(small: Plan, results: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    figures = tmp_path_factory.mktemp("figures")
    return {name: {p.suffix[1:]: p for p in build(item, small, results, figures)} for name, item in small.items.items()}


def numbers_of(files: Files) -> pd.DataFrame:
    return pd.read_csv(files["csv"])


def about(files: Files) -> dict[str, Any]:
    return json.loads(files["json"].read_text())


def cells_of(table: Table) -> pd.DataFrame:
    return pd.DataFrame(table.rows, columns=table.columns).set_index(table.columns[0])


def made(context: Context) -> output.Figure | Table:
    """The item again, from a context that may have been changed."""
    return pkgutil.resolve_name(ITEMS[context.name].config.build)(context)


def diverged(context: Context, chosen: pd.Series) -> Context:
    """The same item, had some of its runs diverged before their first evaluation."""
    frames = context.frames
    early = (frames.history["step"] == 0) | ~frames.history["run"].isin(frames.runs.index[chosen])
    runs = frames.runs.assign(diverged=chosen, status=chosen.map({True: "diverged", False: "completed"}))
    return dataclasses.replace(context, frames=Frames(runs, frames.history[early]))


# files


@pytest.mark.parametrize("name", ITEMS)
def test_every_item_has_its_files(small: Plan, built: dict[str, Files], name: str) -> None:
    """With content, nothing temporary beside them, no holes in tables; in the JSON file is what a report shows."""
    item, files = small.item(name), built[name]
    assert sorted(files) == sorted(item.suffixes)
    assert all(path.stat().st_size > 50 for path in files.values())
    assert all(path.parts[-3:-1] == ("quick", item.paper) for path in files.values())
    assert {path.stem for path in files["csv"].parent.iterdir()} <= {item.id for item in ITEMS.values()}
    values = numbers_of(files).select_dtypes("number").to_numpy()
    assert len(numbers_of(files))
    assert not values.size or np.isfinite(values).mean() > 0.5
    said = about(files)
    assert [said[key] for key in ("name", "kind", "title")] == [name, item.config.kind, item.title]
    assert said["caption"] == small.caption(item)
    assert said["footer"].startswith("scale quick · ")
    assert said["facts"]["Runs"] == (str(len(item.runs)) if item.runs else "none: computed without training")
    assert set(said["facts"]) == ({"Scale", "Data", "Seeds", "Runs", "Cost"} if item.runs else {"Scale", "Runs"})


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn(built: dict[str, Files], name: str) -> None:
    """The image is large, has ink and colour; the vector files are what their names say; the footer is in."""
    pixels = image.imread(built[name]["png"])[..., :3]
    height, width = pixels.shape[:2]
    assert about(built[name])["picture"] == {"width": round(0.6 * width), "height": round(0.6 * height)}
    assert min(height, width) > 150
    assert 0.01 < (pixels < 0.9).any(-1).mean() < 0.9
    assert (np.ptp(pixels, axis=-1) > 0.2).any()
    assert built[name]["pdf"].read_bytes().startswith(b"%PDF")
    assert re.search("(?s)<svg.*scale quick", built[name]["svg"].read_text())


@pytest.mark.parametrize("name", TABLES)
def test_tables_can_be_read_alone(small: Plan, built: dict[str, Files], name: str) -> None:
    """Title, caption and footer in Markdown; in LaTeX no bare special outside mathematics, and every row ends."""
    markdown, latex = built[name]["md"].read_text(), built[name]["tex"].read_text()
    table = Table.from_json(about(built[name])["table"])
    assert table.markdown() in markdown
    assert len(table.rows) > 1
    assert len(table.columns) == len(table.numeric)
    item = small.item(name)
    assert markdown.startswith(f"**{item.title}.** {small.caption(item)}")
    assert "nan" not in markdown
    assert "scale quick · " in markdown.splitlines()[-1]
    body = "\n".join(line for line in latex.splitlines() if not line.startswith("% "))
    assert len(re.findall(r"\\begin\{(tabular|longtable)\}", body)) == 1
    assert rf"\label{{tab:{name}}}" in body
    assert not re.search(r"\\caption\{(Table|Figure) \d", body)
    bare = re.sub(r"\\(label|ref|begin|end)\{[^}]*\}", "", re.sub(r"\$[^$]*\$", "", body))
    assert re.findall(r"(?<!\\)[%^_#].{0,20}", bare) == []
    assert all(line.rstrip().endswith(r"\\") for line in body.splitlines() if "&" in line)
    assert body.isascii(), sorted(character for character in set(body) if not character.isascii())


def test_figures_are_reproducible(small: Plan, results: Path, built: dict[str, Files], tmp_path: Path) -> None:
    for path in build(small.item("acid_figure_1"), small, results, tmp_path):
        assert path.read_bytes() == built["acid_figure_1"][path.suffix[1:]].read_bytes(), path.suffix


def test_a_missing_record_is_one_line(small: Plan, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        build(small.item("acid_table_4"), small, tmp_path, tmp_path)
    assert "\n" not in str(caught.value)


def test_thinned_items_say_so(small: Plan) -> None:
    """What a scale leaves out stands in the caption, after the data that it uses."""
    for name in ("accuracy_8_blocks", "accuracy_16_blocks", "accuracy_imagenet32", "aligned_auxiliary"):
        caption = small.caption(small.item(f"forward_gradient_{name}"))
        assert caption.startswith("On scikit-learn digits in place of the paper's data")
        assert "Thinned: " in caption
    assert "no second data set" in small.caption(small.item("forward_gradient_accuracy_imagenet32"))


# numbers of paper A


@pytest.mark.parametrize("name", ["acid_figure_1", "acid_figure_5"])
def test_numbers_of_the_curves(built: dict[str, Files], of: Of, name: str) -> None:
    """Every plotted curve is the mean and the range of its runs, at every evaluation but the start."""
    curves = numbers_of(built[name]).groupby(["metric", "method", "rate"])
    assert len(curves) == 6
    for (metric, method, rate), rows in curves:
        history = of(name).frames.select(method=method, rate=rate, workers=4).history
        chosen = history[(history["metric"] == metric) & (history["step"] > 0)]
        values = chosen.pivot(index="step", columns="run", values="value")
        assert values.shape == (4, 2)
        assert rows["step"].tolist() == values.index.tolist()
        drawn = values.agg(["mean", "min", "max"], axis=1).assign(runs=2)
        np.testing.assert_allclose(rows[["mean", "low", "high", "runs"]], drawn, rtol=1e-5)


def test_constants_of_the_graphs(built: dict[str, Files]) -> None:
    """In figure 3 and table 2 they are those of the topology, and what is printed is what is stored."""
    drawn, table = (numbers_of(built[f"acid_{name}"]) for name in ("figure_3", "table_2"))
    assert (len(drawn), len(table)) == (6, 8 * 4)
    for row in [*drawn.itertuples(), *table.query("workers == 16").itertuples()]:
        chi1, chi2 = topology.chi(topology.build(row.graph, row.workers))
        assert (row.chi1, row.chi2, row.root) == pytest.approx((chi1, chi2, (chi1 * chi2) ** 0.5), rel=1e-5)
    shown = cells_of(Table.from_json(about(built["acid_table_2"])["table"])).loc[
        "ring", ["χ₁ (n = 64)", "χ₂ (n = 64)", "χ₁ ~ n^"]
    ]
    assert shown.tolist() == ["207.67", "0.98", "2.00"]


def test_tables_of_the_engines(built: dict[str, Files], of: Of) -> None:
    """Communications of real processes are those that both sides counted, their seconds the means over the runs."""
    rows = numbers_of(built["acid_engines"]).set_index(["method", "engine"])
    assert set(rows.index) == {(m, e) for m in ("baseline", "acid") for e in ("virtual", "processes")}
    assert (rows["runs"] == 2).all()
    assert (rows.xs("virtual", level="engine")["variation"] == 0).all()
    assert rows["variation"].between(0, 1).all()
    assert rows["per_gradient"].between(0.3, 1.1).all()  # of 1 that is asked for
    runs = of("acid_engines").frames.select(engine="processes", method="acid").runs
    wanted = (2 * runs["counts.communications"] / runs["counts.gradients"]).mean()
    assert rows.loc[("acid", "processes"), "per_gradient"] == pytest.approx(wanted, rel=1e-4)
    measured = numbers_of(built["acid_table_3"]).query("model == 'measured'").set_index("method")["seconds"]
    seconds = of("acid_table_3").frames.runs.groupby("method")["training_seconds"].mean()
    pd.testing.assert_series_equal(measured.sort_index(), seconds, check_names=False, rtol=1e-4)


def test_table_of_accuracies(built: dict[str, Files], of: Of) -> None:
    """Mean and sample deviation over the seeds of every cell's runs; printed in percent as mean ± deviation."""
    numbers, frames = numbers_of(built["acid_table_4"]), of("acid_table_4").frames
    assert len(numbers) == len(GRAPH_ROWS)
    cells = cells_of(Table.from_json(about(built["acid_table_4"])["table"]))
    for row, (label, settings) in zip(numbers.itertuples(), GRAPH_ROWS.items(), strict=True):
        values = frames.select(**settings, workers=4).runs["test_accuracy"]
        assert (row.method, row.runs, row.diverged, len(values)) == (settings["method"], 2, 0, 2)
        assert (row.mean, row.deviation) == pytest.approx((values.mean(), values.std()), rel=1e-4)
        assert cells.loc[label, "n = 4"] == f"{100 * values.mean():.1f} ± {100 * values.std():.1f}"
    footer = r"scale quick · scikit-learn digits · 2 seeds · 12 runs · commit \w+"
    assert re.search(footer, built["acid_table_4"]["md"].read_text())


def test_released_behaviours_are_compared_by_seed(built: dict[str, Files], of: Of) -> None:
    rows = numbers_of(built["acid_released_code"]).set_index("row")
    assert len(rows) == 7
    assert (rows.loc["exact dynamics", "ratio"], rows.loc["exact dynamics", "ratio_deviation"]) == (1, 0)
    frames = of("acid_released_code").frames
    usual = {"init": "common", "batch_norm": "recalibrate", "optim.clip": None}
    exact, released = (consensus(frames.select(dynamics=name, **usual)) for name in ("exact", "released"))
    assert rows.loc["released dynamics", "ratio"] == pytest.approx((released.to_numpy() / exact).mean(), rel=1e-4)
    # what is tested of the average does not change the training
    assert rows.loc["exact dynamics, BatchNorm statistics of worker 0", "ratio"] == pytest.approx(1)
    clipped = consensus(frames.select(**usual | {"optim.clip": 1.0}, dynamics="exact"))
    expected = (clipped.to_numpy() / exact).mean()
    assert rows.loc["exact dynamics, clipped gradients", "ratio"] == pytest.approx(expected, rel=1e-4)


def test_weaker_momenta_are_compared_with_the_baseline_of_the_same_seed(built: dict[str, Files], of: Of) -> None:
    rows, frames = numbers_of(built["acid_strength"]), of("acid_strength").frames
    assert rows["condition"].unique().tolist() == ["iid", "Dirichlet", "iid, first come first served"]
    assert len(rows) == 3 * (1 + 2)
    frames = frames.select(data__partition="iid", pairing="poisson")
    weaker = frames.select(method="acid", strength=0.25)
    baseline = frames.select(method="baseline", rate=1.0)
    row = rows.query("condition == 'iid' and strength == 0.25").iloc[0]
    for key, metric in (("distance", "consensus_distance"), ("loss", "loss_difference")):
        one, other = (over_training(own, metric).iloc[0] for own in (weaker, baseline))
        assert row[key] == pytest.approx(one / other, rel=1e-4)
    one, other = (own.column("worker_test_accuracy_mean").iloc[0] for own in (weaker, baseline))
    assert row["accuracy"] == pytest.approx(100 * (one - other), abs=1e-4)


def test_the_whole_grid_of_learning_rates_is_shown(built: dict[str, Files], of: Of) -> None:
    rows, frames = numbers_of(built["acid_learning_rate"]), of("acid_learning_rate").frames
    assert len(rows) == len(frames.runs) == 15
    ours = rows.query("row == 'A²CiD², c = 1/4' and learning_rate == 0.08")
    run = frames.select(strength=0.25, optim__lr=0.08)
    assert ours["average"].iloc[0] == pytest.approx(run.column("test_accuracy").iloc[0], rel=1e-4)
    synchronous = rows[rows["row"] == "AR-SGD"]
    assert (synchronous["average"] == synchronous["workers"]).all()


def test_predictions_stand_beside_simulations(built: dict[str, Files]) -> None:
    rows = numbers_of(built["acid_strength_theory"])
    assert set(rows["source"]) == {"theory", "simulation", "recommended"}
    weakest = rows[rows["source"] == "theory"].groupby("own_optima")[["distance", "loss"]].first()
    assert weakest.to_numpy() == pytest.approx(1)  # the baseline


# numbers of paper B


def test_accuracy_is_that_of_the_runs(of: Of) -> None:
    context = of("forward_gradient_accuracy_8_blocks")
    table = made(context)
    chosen = context.frames.select(target="global", guess="local", space="weight", averaged=True, auxiliary="linear")
    values = chosen.rows("test_accuracy").groupby("run")["value"].last()
    assert len(values) == 2
    row = table.numbers.query("method == 'global target, local guess, weights' and auxiliary == 'linear'").iloc[0]
    assert row["test_accuracy"] == pytest.approx(values.mean())
    assert row["test_accuracy_deviation"] == pytest.approx(values.std())
    cells = cells_of(table)
    printed = cells.loc["global target, local guess, weights", "linear auxiliary"]
    assert printed.startswith(f"{100 * values.mean():.1f} ± ")
    assert table.rows[0][0] == "backpropagation"
    assert len(set(table.rows[0][1:])) == 1  # no auxiliary net: one value in all columns
    assert cells.loc["global target, NTK guess, weights", "cnn auxiliary"] == "–"


# what diverged


@pytest.mark.parametrize(
    ("name", "row", "column", "settings"),
    [
        ("acid_table_4", "AR-SGD", "n = 4", {"method": "allreduce"}),
        ("forward_gradient_noise", "global target, random guess, weights", "Gaussian",
         {"target": "global", "space": "weight", "distribution": "gaussian"}),
    ],
)  # fmt: skip
def test_diverged_runs_are_shown(of: Of, name: str, row: str, column: str, settings: dict, tmp_path: Path) -> None:
    """One of two seeds: the mean is that of the other, and the cell says so. All: a dash, no warning, no crash."""
    context = of(name)
    runs = context.frames.runs
    of_cell = runs.index.isin(context.frames.select(**settings).runs.index)
    other = runs[of_cell & (runs["seed"] == 1)]["test_accuracy"].item()
    table = made(diverged(context, of_cell & (runs["seed"] == 0)))
    assert re.fullmatch(rf"{100 * other:.1f}( \(.*\))? \(1 diverged\)", cells_of(table).loc[row, column])
    assert sum("diverged" in cell for cells in table.rows for cell in cells) == 1
    assert table.numbers["diverged"].sum() == 1
    lost = diverged(context, pd.Series(of_cell, runs.index))
    table = made(lost)
    assert cells_of(table).loc[row, column] == "– (2 diverged)"
    assert table.numbers.select_dtypes("number").isna().any(axis=1).sum() == 1
    output.save(table, tmp_path / "table", lost)
    assert f"{len(runs)} runs (2 diverged)" in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize("name", ["figure_1", "figure_4", "figure_5", "figure_6"])
def test_figures_survive_runs_without_a_curve(of: Of, tmp_path: Path, name: str) -> None:
    """A method all of whose runs diverged before the first evaluation leaves a gap, not a crash."""
    context = of(f"acid_{name}")
    lost = context.frames.runs["method"] == "baseline"
    figure = made(diverged(context, lost))
    assert not (figure.numbers["method"] == "baseline").any()
    assert len(figure.numbers)
    assert len(output.save(figure, tmp_path / "figure", context)) == 5
