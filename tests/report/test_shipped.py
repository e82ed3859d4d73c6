"""What a reader sees who trained nothing: the results that came with this version, with durations, data and seeds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from fakes import fake_sources
from unlocked import cli
from unlocked.artifact.config import ROOT
from unlocked.artifact.plan import Plan
from unlocked.artifact.record import folder_of
from unlocked.errors import DataError
from unlocked.report import page, runs
from unlocked.report.sources import Sources, show

FIGURES = ROOT / "paper_figures"
TABLE = pd.read_csv(FIGURES / "reduced" / "runs.csv")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """The reduced scale as shipped, no record."""
    return Sources(Plan("reduced"), tmp_path_factory.mktemp("nothing"), FIGURES)


def test_the_page_shows_what_was_shipped(sources: Sources) -> None:
    """Pictures and tables, the runs with their durations; nothing that was shipped stands there as not trained."""
    text = page.render(sources)
    assert re.search(rf"{len(TABLE)} \(\d+ diverged\), shipped with this version", text)
    for row in TABLE.head(40).itertuples():
        start = text.index(f'<tr id="{row.run}">')
        assert f"{row.status}, shipped" in text[start : start + 300]
        assert f"{row.seconds:.1f} s" in text[start : start + 300]
    for item in sources.plan.items.values():
        shown = show(item, sources)
        if shown["built"] and shown["runs"]:
            assert shown["facts"]["Runs"].endswith("shipped with this version")
            assert set(shown["facts"]["Seeds"].split(", ")) <= set(TABLE["seed"].astype(str))
            assert shown["facts"]["Data"]


def test_scales_stand_side_by_side(sources: Sources, tmp_path: Path) -> None:
    """From another scale's page too: in a fresh clone the page of `quick` has the shipped results beside nothing."""
    quick = Sources(Plan("quick"), tmp_path, FIGURES)
    assert {"quick", "reduced"} <= {one.plan.scale.name for one in quick.beside()}
    both = {"quick": quick, "reduced": sources}
    known = set(pd.read_csv(sources.verdicts)["id"])
    assert {row["id"] for row in page.verdict_rows(both) if "reduced" in row["scales"]} == known
    shown = page.columns_of(quick.plan.item("acid_figure_1"), both, quick)
    assert "reduced" in [column["scale"] for column in shown["columns"]]


def test_the_claims_as_shipped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The verdicts that stand in the shipped table, and one line that says so."""
    assert cli.main(["claims", "--scale", "reduced", "--results", str(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    known = pd.read_csv(FIGURES / "reduced" / "claims" / "verdicts.csv")
    assert [row["verdict"] for row in json.loads(printed.out)] == known["verdict"].tolist()
    assert "shipped with this version" in printed.err


def test_a_shipped_table_is_not_emptied(sources: Sources) -> None:
    with pytest.raises(DataError, match="stays as it is"):
        runs.write(sources, FIGURES / "reduced" / "runs.csv")


def test_a_record_counts_before_a_table(tmp_path: Path) -> None:
    """Of a run that is in both the record is shown; an item without records shows the table, which was not shipped."""
    made = fake_sources(tmp_path)
    runs.write(made, made.table_of_runs)
    there, lost = made.plan.item("acid_figure_1"), made.plan.item("forward_gradient_width")
    for name in set(lost.runs) - set(there.runs):
        shutil.rmtree(folder_of(made.results, made.plan.runs[name]), ignore_errors=True)
    own = Sources(made.plan, made.results, made.figures)
    assert len(own.runs.runs) == len(made.frames.runs)
    assert set(own.runs_of(there)["origin"]) == {""}
    assert set(own.runs_of(lost)["origin"]) == {"built here earlier"}
    assert show(there, own)["facts"]["Runs"] == str(len(there.runs))
    assert show(lost, own)["facts"]["Runs"] == f"{len(lost.runs)}, built here earlier"
    assert show(lost, own)["facts"]["Cost"] == show(lost, made)["facts"]["Cost"]
    assert "completed, built here earlier" in set(page.list_of_runs("forward_gradient", own)["Status"])
