"""The pilot: which cell a run belongs to, the rule, the grid's ends, and a scale that reads its own choice."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from unlocked import cli
from unlocked.artifact import config, pilot
from unlocked.artifact.pilot import Cell
from unlocked.artifact.plan import Need, Plan
from unlocked.errors import SettingError
from unlocked.items.frames import Frames
from unlocked.papers.run import PaperScale, PilotSettings
from unlocked.report import pilot as choosing

REGIMES = {"conv": {"model.name": "conv", "optim.epochs": 2.0}, "mlp": {"model": {"name": "mlp"}}}
METHODS = {
    "fast": {"method": "baseline", "rate": [2.0, 4.0]},
    "slow": {"method": "baseline"},
    "plain": {"method": ["allreduce", None]},
}
OWN = PaperScale(
    regimes=REGIMES,
    pilot=PilotSettings(
        {"conv": {"methods": ["fast", "slow"]}, "mlp": {"seeds": 2, "rates": [0.5, 0.1]}},
        ("model.name",),
        methods=METHODS,
        rates=(0.1, 0.01),
    ),
)


def test_a_run_belongs_to_the_first_cell_that_fits() -> None:
    """By the regime's settings that `by` names and all of the method's, of which any of several values will do."""
    cells = pilot.cells(OWN, {})
    assert [cell.name for cell in cells] == ["conv/fast", "conv/slow", "mlp/fast", "mlp/slow", "mlp/plain"]
    first = {
        "conv/fast": {"model.name": "conv", "method": "baseline", "rate": 4.0, "optim.epochs": 9.0},
        "conv/slow": {"model.name": "conv", "method": "baseline", "rate": 1.0},
        "mlp/plain": {"model.name": "mlp"},  # it has no method
    }
    for name, settings in first.items():
        assert next(cell.name for cell in cells if cell.has(settings)) == name
    assert not any(cell.has({"model.name": "resnet18", "method": "baseline"}) for cell in cells)
    assert (cells[0].rates, cells[2].rates) == ((0.01, 0.1), (0.1, 0.5))
    assert next(cells[0].points([7])) == {
        "model.name": "conv", "optim.epochs": 2.0, "method": "baseline", "rate": 2.0, "optim.lr": 0.01, "seed": 7,
    }  # fmt: skip


def test_what_was_tried_beyond_the_grid_belongs_to_it() -> None:
    """The next call of the pilot trains it; a regime that there is not is refused."""
    cell = pilot.cells(OWN, {"conv/fast": {"lr": 0.1, "settled": False, "grid": {0.1: 70.0, 1.0: None}}})[0]
    assert cell.rates == (0.01, 0.1, 1.0)
    with pytest.raises(SettingError, match="regime = 'deep'"):
        pilot.cells(PaperScale(pilot=PilotSettings({"deep": {}}, methods=METHODS)), {})


def test_a_grid_is_planned_in_every_regime() -> None:
    """The grid's own values win."""
    points = list(Need({"workers": [2, 4], "optim.epochs": 1}, regimes=("conv", "mlp")).points([0], OWN))
    assert [(point["model.name"], point["workers"]) for point in points] == [
        ("conv", 2), ("conv", 4), ("mlp", 2), ("mlp", 4),
    ]  # fmt: skip
    assert {point["optim.epochs"] for point in points} == {1}


def frames(values: dict[str, float | None]) -> Frames:
    """Runs with an accuracy; NaN: diverged, None: no record."""
    there = {name: value for name, value in values.items() if value is not None}
    status = ["diverged" if math.isnan(value) else "completed" for value in there.values()]
    runs = pd.DataFrame({"test_accuracy": list(there.values()), "status": status}, index=list(there))
    return Frames(runs, pd.DataFrame())


def choose(*accuracies: tuple[float | None, float | None]) -> dict[str, Any]:
    """The choice from two seeds at the rates .01, .1, 1, ..."""
    rates = tuple(10.0 ** (k - 2) for k in range(len(accuracies)))
    names = [f"{k}-{seed}" for k in range(len(rates)) for seed in (0, 1)]
    values = dict(zip(names, (value for pair in accuracies for value in pair), strict=True))
    return choosing.chosen(Cell("cell", {}, {}, rates, None), names, frames(values))


def test_the_best_mean_is_chosen() -> None:
    """Over the seeds, a single good one does not do it; a rate at which one run diverged is out."""
    assert choose((0.5, 0.6), (0.7, 0.7), (0.9, 0.4)) == {
        "lr": 0.1, "settled": True, "grid": {0.01: 55.0, 0.1: 70.0, 1.0: 65.0},
    }  # fmt: skip
    lost = choose((0.5, 0.6), (0.7, 0.7), (0.9, math.nan))
    assert (lost["lr"], lost["settled"], lost["grid"][1.0]) == (0.1, True, "diverged")


@pytest.mark.parametrize(
    ("accuracies", "rate", "further"),
    [(((0.9, 0.9), (0.8, 0.8), (0.7, 0.7)), 0.01, 0.001), (((0.5, 0.5), (0.6, 0.6), (0.7, 0.7)), 1.0, 10.0)],
)
def test_a_best_rate_at_an_end_lengthens_the_grid(accuracies: Any, rate: float, further: float) -> None:
    choice = choose(*accuracies)
    assert (choice["lr"], choice["settled"]) == (rate, False)
    assert choice["grid"][further] is None
    assert len(choice["grid"]) == 4


def test_what_is_missing_leaves_it_open() -> None:
    """A rate with a missing seed is not chosen; without any whole one there is no rate; the report names the cell."""
    part = choose((0.5, 0.5), (0.6, 0.6), (0.5, 0.5), (0.9, None))
    assert (part["lr"], part["settled"]) == (0.1, False)
    none = choose((None, None), (0.9, None))
    assert (none["lr"], none["settled"]) == (None, False)
    text = choosing.report({"acid": {"mlp/slow": part, "mlp/fast": choose((0.1, 0.1), (0.2, 0.2), (0.1, 0.1))}})
    assert text.endswith("run the pilot again): acid/mlp/slow")
    assert text.count("not settled") == 1


@pytest.fixture
def scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The content of the scale `mine`: the quick one with a small pilot."""
    monkeypatch.setattr(config, "CONFIGS", shutil.copytree(config.CONFIGS, tmp_path / "configs"))
    values = config.read_yaml(config.CONFIGS / "scales" / "quick.yaml") | {"pilot_seeds": [7, 8]}
    own = values["acid"]
    own["regimes"] |= {"small": {"model.name": "mlp", "model.width": 0.5, "workers": 4, "optim.epochs": 1}}
    methods = {"acid": {"method": "acid"}, "gossip": {"method": "baseline"}}
    own["pilot"] = {"regimes": {"small": {"seeds": 2}}, "by": ["model.name"], "methods": methods, "rates": [0.001, 0.1]}
    save(values)
    return values


def save(values: dict[str, Any]) -> None:
    (config.CONFIGS / "scales" / "mine.yaml").write_text(yaml.safe_dump(values))


def test_a_scale_reads_what_its_pilot_chose(
    scale: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Before: the scale's own rate. After: the method's, where a point names none; the grid goes on at its end."""
    usual = scale["acid"]["training"]["optim"]["lr"]
    plan = Plan("mine")
    grid = {name: runs for cells in plan.pilot.values() for name, runs in cells.items()}
    assert {name: len(runs) for name, runs in grid.items()} == {"small/acid": 4, "small/gossip": 4}
    runs: list[Any] = [plan.runs[name] for name in grid["small/acid"]]
    assert [(run.optim.lr, run.seed) for run in runs] == [(0.001, 7), (0.001, 8), (0.1, 7), (0.1, 8)]
    options = ["--scale", "mine", "--results", str(tmp_path), "--runtime", "wandb=disabled"]
    assert cli.main(["train", "--runs", *grid["small/acid"], *grid["small/gossip"], *options]) == 0
    assert cli.main(["pilot", *options]) == 0
    assert "2 of 2 choices not settled" in capsys.readouterr().out
    said = yaml.safe_load((tmp_path / "configs" / "pilot" / "mine.yaml").read_text())["acid"]["small/acid"]
    assert said["lr"] in (0.001, 0.1)
    assert Plan("mine").scale.unsettled.startswith("2 of 2 learning rates of scale mine are not chosen yet: python3")
    assert Plan("quick").scale.unsettled == ""
    longer = Plan("mine").pilot["acid"]["small/acid"]
    assert len(longer) == 6
    assert {*grid["small/acid"]} < {*longer}
    made = Plan("mine")._bases["acid"]
    here: list[Any] = [made.run({"model.name": "mlp"}), made.run({"model.name": "conv"}), made.run({"optim.lr": 0.2})]
    assert [run.optim.lr for run in here] == [said["lr"], usual, 0.2]


def test_seeds_that_choose_are_no_seeds_that_count(scale: dict[str, Any]) -> None:
    save(scale | {"pilot_seeds": [0, 8]})
    with pytest.raises(SettingError, match=r"pilot_seeds = \[0\]"):
        Plan("mine")


def test_a_scale_without_a_pilot_says_so(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["pilot"]) == 2
    assert "scale = 'quick': has no pilot" in capsys.readouterr().err
