"""The table of runs: a run that is trained again is compared with it to the last bit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from unlocked import cli
from unlocked.artifact import record, train
from unlocked.artifact.plan import Plan
from unlocked.errors import DataError
from unlocked.report import runs
from unlocked.report.page import Sources

FEW = ["seeds=[0]", "acid.workers=[4]", "acid.largest=4", "acid.training.optim.epochs=2"]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Two trained runs of one item."""
    results = tmp_path_factory.mktemp("first")
    plan = Plan("quick", FEW, {"wandb": "disabled"}, ["acid_figure_1"])
    train.train(list(plan.runs.values())[:2], results)
    return Sources(plan, results, results)


@pytest.fixture(scope="module")
def path(sources: Sources) -> Path:
    return runs.write(sources, sources.results / "quick" / "runs.csv")


def test_a_row_per_finished_run(sources: Sources, path: Path) -> None:
    """What is not trained is not in it; numbers are those of the record."""
    table = pd.read_csv(path)
    assert list(table["run"]) == list(sources.plan.runs)[:2]
    for row in table.itertuples():
        one = record.load(record.folder_of(sources.results, sources.plan.runs[row.run]))
        assert row.test_accuracy == pytest.approx(one.summary["metrics"]["test_accuracy"], rel=1e-12)
        assert row.gradients == one.summary["counts"]["gradients"]
        assert row.items == "acid_figure_1"


def test_the_same_run_again_is_the_same(
    sources: Sources, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Trained elsewhere, by the command line: the same to the last bit."""
    name = next(iter(sources.plan.runs))
    common = ["--scale", "quick", "--set", *FEW, "--results", str(tmp_path)]
    cli.main(["train", "--runs", name, *common, "--runtime", "wandb=disabled"])
    capsys.readouterr()
    cli.main(["runs", "--against", str(path), *common])
    same = "the same to the last bit"
    assert capsys.readouterr().out.splitlines() == [f"{name}: {same}", f"1 run compared, 1 {same}"]


def test_other_numbers_are_shown(sources: Sources, path: Path) -> None:
    """The digest reads every value, but not the seconds of the machine; a history that differs is not the same."""
    history = sources.frames.history.drop(columns="run")
    assert runs.digest(history.assign(wall_time=0.0)) == runs.digest(history)
    changed = history.copy()
    changed.loc[len(changed) // 2, "value"] += 1e-15
    assert runs.digest(changed) != runs.digest(history)
    table = runs.table(sources)
    text = runs.compare(table.assign(history=["0" * 16, *table["history"][1:]], test_accuracy=0.5), path)
    assert f"{table['run'][0]}: differs, test_accuracy {table['test_accuracy'][0]:.6g} -> 0.5" in text
    assert text.endswith("2 runs compared, 1 the same to the last bit")


def test_nothing_to_compare_is_one_line(sources: Sources, path: Path, tmp_path: Path) -> None:
    """No runs here, or no such table."""
    with pytest.raises(DataError, match="none of the runs"):
        runs.compare(runs.table(Sources(sources.plan, tmp_path, tmp_path)), path)
    with pytest.raises(DataError, match=r"missing\.csv: no table of runs"):
        runs.compare(runs.table(sources), tmp_path / "missing.csv")
