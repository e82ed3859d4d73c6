"""The cost table: shares add up to the jobs, an item alone costs all that it waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlocked import cli, costs
from unlocked.errors import DataError
from unlocked.plan import Plan

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
FEW = ["seeds=[0]", "acid.workers=[4]", "acid.largest=4"]
TRAINING, DRAWING = 120.0, 6.0  # seconds of every training job, and of every item's own job


@pytest.fixture(scope="module")
def plan() -> Plan:
    """A small plan of both papers."""
    return Plan("quick", FEW)


@pytest.fixture(scope="module")
def results(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmark files as Snakemake writes them, all training jobs alike."""
    folder = tmp_path_factory.mktemp("results")
    for key, batch in plan.batches.items():
        write(folder / "quick" / batch.paper / "benchmarks" / f"{key}.tsv", TRAINING, 900)
    for item in plan.items.values():
        write(folder / "quick" / item.paper / "benchmarks" / f"{item.id}.tsv", DRAWING, 300)
    return folder


def write(path: Path, seconds: float, memory: float) -> None:
    """One benchmark file, with half a core busy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{HEADER}{seconds}\t0:00:00\t{memory}\t1\t1\t1\t-\t-\t50.0\t{seconds / 2}\n")


def test_shares_add_up_to_what_was_run(plan: Plan, results: Path) -> None:
    """Every job is counted once in the total, however many items wait for it."""
    found = costs.table(plan, results)
    spent = (TRAINING * len(plan.batches) + DRAWING * len(plan.items)) / 60
    assert found.loc["everything", "share_minutes"] == pytest.approx(spent)
    assert found.loc["everything", "core_minutes"] == pytest.approx(spent / 2)
    assert found.loc["everything", "memory_mb"] == 900


def test_an_item_alone_costs_all_its_jobs(plan: Plan, results: Path) -> None:
    """And its share is at most that."""
    found = costs.table(plan, results)
    for name, item in plan.items.items():
        waited = len(plan.batches_of(item))
        assert found.loc[name, "alone_minutes"] == pytest.approx((TRAINING * waited + DRAWING) / 60)
        assert found.loc[name, "share_minutes"] <= found.loc[name, "alone_minutes"]
        assert found.loc[name, "memory_mb"] == (900 if waited else 300)
        processes = [plan.runs[run].workers for run in item.runs if plan.runs[run].get("engine") == "processes"]
        assert found.loc[name, "on"] == (f"{max(processes)} cores" if processes else "1 core")


def test_the_command_prints_markdown(plan: Plan, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row per item and the total, ready for a README."""
    assert cli.main(["costs", "--set", *FEW, "--results", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(plan.items) + 3
    assert lines[0].startswith("| item")
    assert lines[-1].startswith("| everything")


def test_a_job_that_has_not_run_is_named(plan: Plan, tmp_path: Path) -> None:
    """No table of half a scale."""
    with pytest.raises(DataError, match=r"benchmarks/\w+\.tsv"):
        costs.table(plan, tmp_path)
