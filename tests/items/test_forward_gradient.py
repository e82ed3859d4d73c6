"""Tables and figures of paper B from real tiny runs: files, numbers that are those of the records, what diverged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

from unlocked import config, record, train
from unlocked.items import forward_gradient as items
from unlocked.items.build import build, caption_of, context_of, title_of
from unlocked.plan import Item, Plan
from unlocked.record import Record

OVERRIDES = [
    "seeds=[0,1]",
    "forward_gradient.widths=[0.03125,0.0625]",
    "forward_gradient.cost_width=0.0625",
    "forward_gradient.tangents=2",
    "forward_gradient.large.width=0.03125",
    "forward_gradient.training.model.width=0.0625",
    "forward_gradient.training.data.train_limit=64",
    "forward_gradient.training.data.test_limit=40",
    "forward_gradient.training.optim.batch_size=32",
    "forward_gradient.training.optim.epochs=1",
    "forward_gradient.training.evaluation.points=2",
    "forward_gradient.training.evaluation.recalibration_batches=1",
    "forward_gradient.training.measure.batch_size=16",
]
NAMES = [name for name in Plan("quick").items if name.startswith("forward_gradient_")]


@pytest.fixture(scope="module")
def small() -> Plan:
    """The quick plan of paper B with trainings of two steps."""
    return Plan("quick", OVERRIDES, {"wandb": "disabled"})


@pytest.fixture(scope="module")
def records(small: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All records of paper B in that plan."""
    results = tmp_path_factory.mktemp("results")
    train.train([run for run in small.runs.values() if run.paper == "forward_gradient"], results)
    return results


@pytest.mark.parametrize("name", NAMES)
def test_every_item_is_built(small: Plan, records: Path, tmp_path: Path, name: str) -> None:
    """All files are there; figures have ink in every part, tables and numbers have no holes."""
    item = small.item(name)
    files = {path.suffix: path for path in build(item, small, records, tmp_path)}
    assert set(files) == {f".{suffix}" for suffix in item.suffixes}
    numbers = pd.read_csv(files[".csv"])
    assert len(numbers)
    values = numbers.select_dtypes("number").to_numpy()
    assert not values.size or np.isfinite(values).mean() > 0.5
    if item.config.kind == "figure":
        pixels = image.imread(files[".png"])[..., :3]
        assert (pixels < 0.9).any(2).mean() > 0.01
    else:
        text = files[".md"].read_text()
        assert "nan" not in text
        assert title_of(item) in text


def item_records(small: Plan, records: Path, name: str) -> list[Record]:
    return context_of(small.item(f"forward_gradient_{name}"), small, records).records


def test_accuracy_is_that_of_the_records(small: Plan, records: Path) -> None:
    """One cell by hand: mean and deviation over seeds of the last test accuracy."""
    context = context_of(small.item("forward_gradient_accuracy_8_blocks"), small, records)
    table = items.accuracy(context)
    found = context.select(target="global", guess="local", space="weight", averaged=True, auxiliary="linear")
    values = [r.series("test_accuracy")["value"].iloc[-1] for r in found]
    assert len(values) == 2
    row = table.numbers.query("method == 'global target, local guess, weights' and auxiliary == 'linear'").iloc[0]
    assert row["test_accuracy"] == pytest.approx(np.mean(values))
    assert row["test_accuracy_deviation"] == pytest.approx(np.std(values, ddof=1))
    printed = table.printed.loc["global target, local guess, weights", "linear auxiliary"]
    assert printed.startswith(f"{100 * np.mean(values):.1f} ± ")
    assert table.printed.index[0] == "backpropagation"
    assert table.printed.loc["global target, NTK guess, weights", "cnn auxiliary"] == "–"


def test_a_diverged_run_is_shown_as_such(small: Plan, records: Path) -> None:
    """Its accuracy is not averaged with the others'."""
    found = item_records(small, records, "noise")[:2]
    found[0].summary["status"] = "diverged"
    text, numbers = items.cell(found)
    assert text.endswith("(1 diverged)")
    assert numbers["test_accuracy"] == found[1].summary["metrics"]["test_accuracy"]
    for one in found:
        one.summary["status"] = "diverged"
    assert items.cell(found)[0] == "– (2 diverged)"


def test_thinned_items_say_so(small: Plan) -> None:
    """What a scale leaves out stands in the caption, after the data that it uses."""
    for name in ("accuracy_8_blocks", "accuracy_16_blocks", "accuracy_imagenet32", "aligned_auxiliary"):
        caption = caption_of(small.item(f"forward_gradient_{name}"), small)
        assert caption.startswith("On scikit-learn digits in place of the paper's data")
        assert "Thinned: " in caption
    assert "no second data set" in caption_of(small.item("forward_gradient_accuracy_imagenet32"), small)


def test_the_papers_scale_needs_no_excuse() -> None:
    """The full grid, on the paper's data."""
    made = Plan("paper")
    wanted = {i.id: i for i in made.items.values() if i.paper == "forward_gradient"}
    assert all(not item.config.note for item in wanted.values())

    def runs(item: Item) -> set[tuple]:
        found = [made.runs[name] for name in item.runs]
        return {(r.data.name, r.model.name, r.model.width, r.optim.epochs, r.optim.lr) for r in found}

    assert runs(wanted["accuracy_8_blocks"]) == {("cifar10", "resnet18_8", 1.0, 100, 0.05)}
    assert runs(wanted["accuracy_16_blocks"]) == {("cifar10", "resnet18_16", 1.0, 100, 0.05)}
    assert runs(wanted["accuracy_imagenet32"]) == {("imagenet32", "resnet18_8", 1.0, 100, 0.05)}
    # backpropagation, two random, and per auxiliary net: local learning, 6 global and 6 local; 2 per sample; 3 seeds
    assert len(wanted["accuracy_8_blocks"].runs) == 3 * (1 + 2 + 3 * 13 + 2)


def test_every_run_of_every_scale_is_costed() -> None:
    """Time grows with the scale, and dearer methods cost more."""
    by_scale = {name: Plan(name).describe("forward_gradient") for name in ("quick", "paper")}
    for described in by_scale.values():
        assert all(run["seconds"] > 0 and run["memory_mb"] > 0 for run in described["runs"])
    quick, paper = by_scale["quick"]["total"]["seconds"], by_scale["paper"]["total"]["seconds"]
    assert quick < 1200 < paper
    runs = [run for run in by_scale["paper"]["runs"] if run["settings"]["data"]["name"] == "cifar10"]
    seconds = {run["id"].rsplit("-", 1)[0]: run["seconds"] for run in runs}
    assert seconds["global-local-weight_per_sample-cnn-b8-s0"] > seconds["global-local-weight-cnn-b8-s0"]
    assert seconds["global-local-weight-cnn-b8-s0"] > seconds["backpropagation-b8-s0"]


def test_records_are_found_by_their_settings(small: Plan, records: Path) -> None:
    """`load_all` knows paper B's settings as columns."""
    frame = record.load_all(records)
    assert set(frame["study"]) == set(config.STUDIES["forward_gradient"])
    assert (frame["status"] == "completed").all()
