"""The W&B reports: valid definitions made offline, and an upload that is tested with stand-ins for the server; the
offline runs, which W&B's own reader shows."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes import SMALL, fake_sources, wandb_server
from unlocked import cli
from unlocked.artifact.plan import PANELS, Plan
from unlocked.artifact.record import folder_of
from unlocked.errors import DataError, SettingError
from unlocked.papers import PAPERS
from unlocked.report import summary, wandb
from unlocked.report.sources import Sources

library = pytest.importorskip("wandb_workspaces.reports.v2", reason="wandb-workspaces is not installed")
Spec = dict[str, Any]
LEET = Path(sys.executable).with_name("wandb")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds a key, or a server if it looks for one."""
    monkeypatch.delenv(wandb.KEY, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A few fake items of the quick plan, and two offline W&B runs, one of which was uploaded before."""
    made = fake_sources(tmp_path_factory.mktemp("wandb_report"))
    for place, name in enumerate(made.frames.runs.index[:2]):
        folder = folder_of(made.results, made.plan.runs[name]) / "wandb" / f"offline-run-{place}"
        folder.mkdir(parents=True)
        (folder.parent / "latest-run").symlink_to(folder.name)
        (folder / f"run-{place}.wandb").write_bytes(b"x" * 1500)
    (folder / f"run-{place}.wandb.synced").touch()
    return made


@pytest.fixture(scope="module")
def specs(sources: Sources) -> dict[str, Spec]:
    """The written definitions, by paper."""
    paths = wandb.write(sources)
    assert [path.name for path in paths] == [f"wandb_report_{paper}.json" for paper in PAPERS]
    return {paper: json.loads(path.read_text()) for paper, path in zip(PAPERS, paths, strict=True)}


def blocks(spec: Spec, kind: str) -> list[Spec]:
    return [block for block in spec["spec"]["blocks"] if block["type"] == kind]


def words(block: Spec) -> str:
    """The text of a heading or paragraph."""
    return "".join(child.get("text", "") for child in block["children"])


@pytest.mark.parametrize("paper", PAPERS)
def test_one_section_per_item(sources: Sources, specs: dict[str, Spec], paper: str) -> None:
    """With the caption, the command, and panels where the item has runs."""
    sections: dict[str, list[Spec]] = {}
    for block in specs[paper]["spec"]["blocks"]:
        if block["type"] == "heading":
            sections[words(block)] = own = []
        elif sections:
            own.append(block)
    assert list(sections) == ["Verdicts", "Tables and figures", *(item.title for item in sources.items(paper))]
    for item in sources.items(paper):
        own = sections[item.title]
        assert [block["type"] for block in own].count("panel-grid") == bool(item.runs)
        assert sources.plan.caption(item) in " ".join(words(block) for block in own if block["type"] == "paragraph")
        assert f"reproduce.py {item.name} " in json.dumps(own)


@pytest.mark.parametrize("paper", PAPERS)
def test_panels_show_the_runs_with_the_items_tag(sources: Sources, specs: dict[str, Spec], paper: str) -> None:
    """Filters on the tags that runs carry: the item's name and the scale. Every item with runs has panels."""
    grids = blocks(specs[paper], "panel-grid")
    with_runs = [item for item in sources.items(paper) if item.runs]
    assert len(grids) == len(with_runs) > 5
    for item, grid in zip(with_runs, grids, strict=True):
        (runs,) = grid["metadata"]["runSets"]
        filters = runs["filters"]["filters"]
        assert [f["key"] for f in filters] == [{"section": "run", "name": "tags"}] * 2
        assert [(f["op"], f["value"]) for f in filters] == [("IN", [f"item:{item.name}"]), ("IN", ["scale:quick"])]
        assert filters[1]["connector"] == "AND"
        drawn = grid["metadata"]["panelBankSectionConfig"]["panels"]
        metrics = [metric for panel in drawn for metric in panel["config"]["metrics"]]
        assert metrics == [metric for own in item.config.panels.values() for metric in own]
        assert metrics


def with_panels(sources: Sources, panels: dict[str, list[str]], *more: str) -> list[Any]:
    """Panels of an item all of whose runs are there, perhaps of more runs."""
    item = sources.plan.item("acid_figure_1")
    config = dataclasses.replace(item.config, panels=panels)
    return wandb.panels(dataclasses.replace(item, config=config, runs=(*item.runs, *more)), sources, 1)


def test_panels_by_kind(sources: Sources) -> None:
    """Curves over epochs or virtual time, bars for last values; side by side without overlap."""
    panels = with_panels(sources, {kind: ["test_accuracy"] for kind in PANELS})
    over_epochs, over_time, over_log_time, final = panels
    assert (over_epochs.x, over_time.x, over_log_time.x) == ("epoch", "virtual_time", "virtual_time")
    assert [panel.log_x for panel in panels[:3]] == [False, False, True]
    assert isinstance(final, library.BarPlot)
    assert len({(panel.layout.x, panel.layout.y) for panel in panels}) == 4
    assert all(panel.layout.x + panel.layout.w <= 24 for panel in panels)


def test_curves_are_means_over_seeds(sources: Sources, specs: dict[str, Spec]) -> None:
    """Of every group of runs that differ in more than the seed, with the range, all groups, on the figures' axes."""
    item = sources.plan.item("acid_figure_1")
    groups, count = wandb.grouping(item, sources)
    assert (set(groups) & {"method", "rate"}, "seed" in groups, count) == (
        {"method", "rate"},
        False,
        len(item.runs) // 2,
    )
    grid = blocks(specs["acid"], "panel-grid")[0]
    (runs,) = grid["metadata"]["runSets"]
    keys = [key["name"] for key in runs["grouping"]]
    assert {"method.value", "rate.value"} <= set(keys)
    assert len(keys) == len(groups)
    for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]:
        own = panel["config"]
        assert (own["groupAgg"], own["groupArea"], own["limit"], own["yLogScale"]) == ("mean", "minmax", count, True)


def test_a_metric_that_no_run_logs(sources: Sources) -> None:
    """Refused by the item's name once all its runs are there; before that nobody can know."""
    with pytest.raises(SettingError, match=r"figure_1\.panels.*no run of the item logs"):
        with_panels(sources, {"over_epochs": ["nothing"]})
    (panel,) = with_panels(sources, {"over_epochs": ["nothing"]}, "another")
    assert panel.title == "nothing"


@pytest.mark.parametrize("paper", PAPERS)
def test_no_destination_is_baked_in(specs: dict[str, Spec], paper: str) -> None:
    """The definition fits every entity and project, and W&B's own schema reads it back."""
    from wandb_workspaces.reports.v2 import internal

    spec = specs[paper]
    assert (spec["project"], spec["id"]) == ({"name": "", "entityName": ""}, "")
    for grid in blocks(spec, "panel-grid"):
        assert all("project" not in runs for runs in grid["metadata"]["runSets"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        internal.ReportViewspec.model_validate(spec)
    assert len(spec["displayName"]) <= 128


def test_tables_and_verdicts(specs: dict[str, Spec]) -> None:
    """As Markdown; the other paper's claims are in the other report."""
    ours, theirs = (
        [" ".join(block["content"].split()) for block in blocks(specs[paper], "markdown-block")] for paper in PAPERS
    )
    assert "| A1 | It helps. |" in ours[0]
    assert "0.36 [0.138, 0.952]" in ours[0]
    assert "B1" not in ours[0]
    assert any("| two & more | – | 3.5 |" in text for text in ours)
    assert "| B1 |" in theirs[0]


def test_upload(sources: Sources, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """First what will be sent, then the runs that were not sent before, then the reports on these runs."""
    calls: list[Any] = []
    monkeypatch.setattr(summary, "send", lambda _, to: calls.append(to))
    monkeypatch.setattr(wandb, "in_place", lambda definition, _: definition)
    returned = subprocess.CompletedProcess([], 0)

    def save(definition: Any) -> Any:
        grids = [block for block in definition.blocks if isinstance(block, library.PanelGrid)]
        calls.append({(runs.entity, runs.project) for grid in grids for runs in grid.runsets})
        assert {(definition.entity, definition.project)} == calls[-1]
        return SimpleNamespace(url=f"address of {definition.title}")

    monkeypatch.setenv(wandb.KEY, "key")
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(default_entity="team"))
    monkeypatch.setattr(subprocess, "run", lambda line: calls.append(line) or returned)
    monkeypatch.setattr(library.Report, "save", save)
    addresses = wandb.upload(sources)
    options = ["-m", "wandb", "sync", "--yes", "--project", "unlocked", "--entity", "team"]
    assert calls[0][:-1] == [sys.executable, *options]
    assert Path(calls[0][-1]).name == "offline-run-0"
    assert calls[1:] == [{"entity": "team", "project": "unlocked"}, *[{("team", "unlocked")}] * 2]
    assert addresses == [f"address of {PAPERS[paper].short}, rebuilt at the quick scale" for paper in PAPERS]
    assert "uploading to team/unlocked: 1 offline run (1.5 kB), 2 reports" in capsys.readouterr().out
    returned.returncode = 1
    with pytest.raises(DataError, match="wandb sync failed"):
        wandb.upload(sources)


def test_reports_are_renewed_in_place(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """By W&B's own client against a server of ours: the second time they are the same two reports."""
    monkeypatch.setattr(summary, "send", lambda _, to: server.projects.append(to["project"]))
    monkeypatch.setattr(wandb, "offline_runs", lambda _: [])
    with wandb_server() as (address, server):
        monkeypatch.setenv(wandb.KEY, "k" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", address)
        first = wandb.upload(sources)
        titles = {key: own["displayName"] for key, own in server.saved.items()}
        assert sorted(titles.values()) == sorted(
            f"{paper.short}, rebuilt at the quick scale" for paper in PAPERS.values()
        )
        assert wandb.upload(sources) == first
        assert {key: own["displayName"] for key, own in server.saved.items()} == titles


def test_the_summary_of_a_scale(sources: Sources, tmp_path: Path) -> None:
    """Offline, as W&B itself reads it: a picture or a table per built item, the files as an artifact, the verdicts."""
    own = Sources(sources.plan, tmp_path, sources.figures)
    summary.send(own, {"entity": "", "project": "unlocked"}, "offline")
    (path,) = tmp_path.rglob("*.wandb")
    line = [LEET, "leet", "inspect", "--json", path]
    done = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60)
    entries = [json.loads(text) for text in done.stdout.splitlines()]
    (history,) = [entry["history"]["item"] for entry in entries if entry["type"] == "history"]
    assert history["acid_figure_1._type"] == "image-file"
    assert history["acid_table_4._type"] == "table-file"
    artifacts = [entry["artifact"] for entry in entries if entry["type"] == "artifact"]
    (results,) = [own for own in artifacts if own["type"] == "results"]
    assert results["name"] == "results-quick"
    paths = {file["path"] for file in results["manifest"]["contents"]}
    assert {"acid/figure_1.pdf", "acid/table_4.tex", "claims/verdicts.csv"} <= paths
    verdicts = {"verdict/A1": "supported", "verdict/B1": "not run"}
    assert verdicts in [entry["summary"]["update"] for entry in entries if entry["type"] == "summary"]


def test_browse(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A link to the last W&B run of every run that has one, made anew by every call, which `wandb leet` reads."""
    monkeypatch.setattr(cli, "read_plan", lambda *_: sources.plan)
    run = sources.plan.runs[sources.frames.runs.index[0]]
    folder = folder_of(tmp_path, run)
    shutil.copytree(folder_of(sources.results, run), folder, ignore=shutil.ignore_patterns("wandb"))
    assert cli.main(["browse", "--results", str(tmp_path)]) == 2
    assert "there are no offline W&B runs" in capsys.readouterr().err
    code = "import sys, wandb; run = wandb.init(mode='offline', dir=sys.argv[1]); run.log({'loss': 0.25}); run.finish()"
    subprocess.run([sys.executable, "-c", code, folder], check=True, capture_output=True, timeout=120)
    for _ in range(2):
        assert cli.main(["browse", "--results", str(tmp_path)]) == 0
    (link,) = (tmp_path / "quick" / "browse").iterdir()
    assert link.name == f"run-{run.id}"
    assert f"wandb leet {link.parent}" in capsys.readouterr().out
    line = [LEET, "leet", "inspect", "--summary", "--json", link]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert '"loss"' in done.stdout, done.stderr


def test_destination_from_the_settings(sources: Sources) -> None:
    plan = Plan("quick", SMALL, {"wandb_entity": "lab", "wandb_project": "papers"}, only=["acid_figure_3"])
    own = Sources(plan, sources.results, sources.figures)
    assert wandb.destination(own) == {"entity": "lab", "project": "papers"}


@pytest.fixture
def command(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`unlocked report --wandb ...` on the fake results, with the plan that is read already."""
    monkeypatch.setattr(cli, "read_plan", lambda *_: sources.plan)
    where = ["--results", str(sources.results), "--figures", str(sources.figures)]
    return lambda *words: cli.main(["report", "--wandb", *where, *words])


def test_without_a_key(sources: Sources, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """The definitions are written, one line says that nothing is uploaded, and nothing fails."""
    assert command("--upload") == 0
    message = "WANDB_API_KEY is not set: nothing is uploaded; the reports' definitions are complete without it"
    paths = [sources.results / "quick" / f"wandb_report_{paper}.json" for paper in PAPERS]
    assert sorted(capsys.readouterr().out.splitlines()) == [*map(str, paths), f"unlocked: {message}"]


def test_dry_run(sources: Sources, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """Destination, runs with their size, reports; nothing is written."""
    for path in (sources.results / "quick").glob("wandb_report_*"):
        path.unlink()
    assert command("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "would upload to (the default entity of the key)/unlocked: 1 offline run (1.5 kB), 2 reports"
    assert lines[1] == f"  run {sources.frames.runs.index[0]}"
    assert len(lines) == 4
    assert not list((sources.results / "quick").glob("wandb_report_*"))


def test_package_missing(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what to install."""
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    assert command() == 2
    assert capsys.readouterr().err.strip().endswith("pip install wandb-workspaces")
