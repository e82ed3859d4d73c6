"""The table of runs: a run that is trained again is compared with it to the last bit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from unlocked import cli, ledger, record, train
from unlocked.errors import DataError
from unlocked.plan import Plan

FEW = ["seeds=[0]", "acid.workers=[4]", "acid.largest=4", "acid.training.optim.epochs=2"]


@pytest.fixture(scope="module")
def plan() -> Plan:
    """The runs of one item."""
    return Plan("quick", FEW, {"wandb": "disabled"}, ["acid_figure_1"])


@pytest.fixture(scope="module")
def first(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folder of the records, and the table of its two runs."""
    results = tmp_path_factory.mktemp("first")
    train.train(list(plan.runs.values())[:2], results)
    return results, ledger.write(plan, results, results / "quick" / "runs.csv")


def test_a_row_per_finished_run(plan: Plan, first: tuple[Path, Path]) -> None:
    """What is not trained is not in it; numbers are those of the record."""
    found = pd.read_csv(first[1])
    assert list(found["run"]) == list(plan.runs)[:2]
    for row in found.itertuples():
        one = record.load(record.folder_of(first[0], plan.runs[row.run]))
        assert row.test_accuracy == pytest.approx(one.summary["metrics"]["test_accuracy"], rel=1e-12)
        assert row.gradients == one.summary["counts"]["gradients"]
        assert row.items.split() == ["acid_figure_1"]


def test_the_same_run_again_is_the_same(
    plan: Plan, first: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Trained elsewhere, by the command line: the same to the last bit."""
    name = next(iter(plan.runs))
    common = ["--scale", "quick", "--set", *FEW, "--results", str(tmp_path)]
    cli.main(["train", "--runs", name, *common, "--runtime", "wandb=disabled"])
    capsys.readouterr()
    cli.main(["runs", "--against", str(first[1]), *common])
    assert capsys.readouterr().out.splitlines() == [
        f"{name}: the same to the last bit",
        "1 run compared, 1 the same to the last bit",
    ]


def test_other_numbers_are_shown(plan: Plan, first: tuple[Path, Path], tmp_path: Path) -> None:
    """A history that differs in one value is not the same."""
    found = ledger.table(plan, first[0])
    changed = found.assign(history=["0" * 16, *found["history"][1:]], test_accuracy=0.5)
    text = ledger.compare(changed, first[1])
    assert f"{found['run'][0]}: differs, test_accuracy {found['test_accuracy'][0]:.6g} -> 0.5" in text
    assert text.endswith("2 runs compared, 1 the same to the last bit")


def test_the_digest_reads_every_value(plan: Plan, first: tuple[Path, Path]) -> None:
    """All but seconds: those of the machine are never the same twice."""
    history = record.load(record.folder_of(first[0], next(iter(plan.runs.values())))).history
    assert ledger.digest(history.assign(wall_time=0.0)) == ledger.digest(history)
    changed = history.copy()
    changed.loc[len(changed) // 2, "value"] += 1e-15
    assert ledger.digest(changed) != ledger.digest(history)


def test_nothing_to_compare_is_one_line(plan: Plan, first: tuple[Path, Path], tmp_path: Path) -> None:
    """No runs here, or no such table."""
    with pytest.raises(DataError, match="none of the runs"):
        ledger.compare(ledger.table(plan, tmp_path), first[1])
    with pytest.raises(DataError, match=r"missing\.csv: no table of runs"):
        ledger.compare(ledger.table(plan, first[0]), tmp_path / "missing.csv")
