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
from unlocked.report.sources import Sources

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
    there, here, *lines = capsys.readouterr().out.splitlines()
    assert there.removeprefix("there") == here.removeprefix("here")
    assert "torch 2." in here
    assert lines == [f"{name}: same", "1 run compared: 1 same, 0 agrees, 0 differs"]


def test_other_numbers_are_shown(sources: Sources, path: Path) -> None:
    """The digest reads every value, but not the seconds of the machine; a history that differs is not the same."""
    history = sources.frames.history.drop(columns="run")
    assert runs.digest(history.assign(wall_time=0.0)) == runs.digest(history)
    changed = history.copy()
    changed.loc[len(changed) // 2, "value"] += 1e-15
    assert runs.digest(changed) != runs.digest(history)
    table = runs.table(sources)
    text = runs.compare(table.assign(history=["0" * 16, *table["history"][1:]], test_accuracy=0.5), path)
    assert f"{table['run'][0]}: differs, though the machine" in text
    assert f"test_accuracy {table['test_accuracy'][0]:.6g} -> 0.5" in text
    assert text.endswith("2 runs compared: 1 same, 0 agrees, 1 differs")


@pytest.mark.parametrize(("shift", "seeds", "word"), [(0.004, 5, "agrees"), (0.4, 5, "differs"), (0.004, 2, "differs")])
def test_elsewhere_the_spread_over_seeds_decides(
    path: Path, tmp_path: Path, shift: float, seeds: int, word: str
) -> None:
    """Another processor: within what one more seed would give it agrees; two seeds have no spread to speak of."""
    first = pd.read_csv(path).iloc[:1]
    kept = pd.concat([first.assign(run=f"{first['run'][0]}{k}" * (k > 0) or first["run"][0],
                                   test_accuracy=0.7 + k / 100) for k in range(seeds)])  # fmt: skip
    kept.to_csv(tmp_path / "runs.csv", index=False)
    here = first.assign(processor="another", history="0" * 16, test_accuracy=0.7 + shift)
    text = runs.compare(here, tmp_path / "runs.csv")
    assert f"{first['run'][0]}: {word}, by the spread of {seeds} seeds: test_accuracy 0.7 -> {0.7 + shift}" in text
    assert text.splitlines()[1].startswith("here: another, threads 1, python")


def test_runs_that_differ_in_the_seed_are_a_group() -> None:
    """The settings decide, not the name."""
    plan = Plan("quick", ["seeds=[0,1]", *FEW[1:]], only=["acid_figure_1"])
    groups = pd.Series({name: runs.group(run) for name, run in plan.runs.items()})
    assert set(groups.value_counts()) == {2}


def test_nothing_to_compare_is_one_line(sources: Sources, path: Path, tmp_path: Path) -> None:
    """No runs here, no such table, or one of something else."""
    with pytest.raises(DataError, match="none of the runs"):
        runs.compare(runs.table(Sources(sources.plan, tmp_path, tmp_path)), path)
    (tmp_path / "other.csv").write_text("run,paper\nx,acid\n")
    for name in ("missing", "other"):
        with pytest.raises(DataError, match=rf"{name}\.csv: no table of runs"):
            runs.compare(runs.table(sources), tmp_path / f"{name}.csv")
