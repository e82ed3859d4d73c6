"""The cost table: shares add up to the jobs, an item alone costs all that it waits for."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from unlocked import cli
from unlocked.artifact.config import ROOT
from unlocked.artifact.plan import Plan
from unlocked.errors import DataError
from unlocked.report import costs

HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
FEW = ["seeds=[0]", "acid.workers=[4]", "acid.largest=4"]
TRAINING, DRAWING = 120.0, 6.0  # seconds of every training job, and of every item's own job


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan("quick", FEW)


@pytest.fixture(scope="module")
def results(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Benchmark files as Snakemake writes them, all training jobs alike, with half a core busy."""
    folder = tmp_path_factory.mktemp("results")
    jobs = [(batch.paper, key, TRAINING, 900) for key, batch in plan.batches.items()]
    for paper, key, seconds, memory in jobs + [(item.paper, item.id, DRAWING, 300) for item in plan.items.values()]:
        path = folder / "quick" / paper / "benchmarks" / f"{key}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{HEADER}{seconds}\t0:00:00\t{memory}\t1\t1\t1\t-\t-\t50.0\t{seconds / 2}\n")
    return folder


def test_shares_add_up_and_an_item_alone_costs_all_its_runs(plan: Plan, results: Path) -> None:
    """Every job is counted once in the total, however many items read its runs; drawing has a core to itself."""
    table = costs.table(plan, results)
    training, drawing = TRAINING * len(plan.batches) / 60, DRAWING * len(plan.items) / 60
    everything = table.loc["everything"]
    assert everything["share_minutes"] == pytest.approx(training + drawing)
    assert everything["core_minutes"] == pytest.approx(training / 2 + drawing)
    assert everything["memory_mb"] == 900
    for name, item in plan.items.items():
        row, waited = table.loc[name], plan.batches_of(item.runs)
        parts = [
            sum(plan.runs[run].estimate().seconds for run in batch.runs if run in item.runs)
            / sum(plan.runs[run].estimate().seconds for run in batch.runs)
            for batch in waited
        ]
        assert row["alone_minutes"] == pytest.approx((TRAINING * sum(parts) + DRAWING) / 60)
        assert row["share_minutes"] <= row["alone_minutes"] + 1e-9
        assert row["memory_mb"] == 900 or not waited
        processes = max((plan.runs[run].processes for run in item.runs), default=1)
        assert row["on"] == (f"{processes} cores" if processes > 1 else "1 core")


def test_the_command_prints_markdown(plan: Plan, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row per item and the total, ready for a README."""
    assert cli.main(["costs", "--set", *FEW, "--results", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(plan.items) + 3
    assert lines[0].startswith("| item")
    assert lines[-1].startswith("| everything")


def test_what_was_shipped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Without a record, from the table of runs that came with this version: shares add up to the seconds in it."""
    assert cli.main(["costs", "--scale", "reduced", "--results", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    table = json.loads(printed.out)
    runs = pd.read_csv(ROOT / "paper_figures" / "reduced" / "runs.csv")
    everything = table.pop("everything")["share_minutes"]
    assert everything == pytest.approx(runs["seconds"].sum() / 60)
    assert sum(row["share_minutes"] for row in table.values()) == pytest.approx(everything)
    assert f"shipped with this version, {len(runs)} runs" in printed.err


def test_a_job_that_has_not_run_is_named(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"benchmarks/\w+\.tsv"):
        costs.table(plan, tmp_path)
