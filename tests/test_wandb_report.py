"""The W&B reports: valid definitions made offline, and an upload that is tested with a stand-in for the server."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fakes import SMALL, fake_sources
from unlocked import cli, config, wandb_report
from unlocked.errors import DataError, SettingError
from unlocked.items.build import caption_of, title_of
from unlocked.plan import Plan
from unlocked.report import Printed, Sources
from unlocked.wandb_report import PAPERS, Destination

library = pytest.importorskip("wandb_workspaces.reports.v2", reason="wandb-workspaces is not installed")
Spec = dict[str, Any]


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds a key, or a server if it looks for one."""
    monkeypatch.delenv(wandb_report.KEY, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://localhost:9")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """A few fake items of the quick plan, and two offline W&B runs, one of which was uploaded before."""
    made = fake_sources(tmp_path_factory.mktemp("wandb_report"))
    for place, one in enumerate(list(made.records.values())[:2]):
        folder = one.folder / "wandb" / f"offline-run-{place}"
        folder.mkdir(parents=True)
        (folder.parent / "latest-run").symlink_to(folder.name)
        (folder / f"run-{place}.wandb").write_bytes(b"x" * 1500)
    (folder / f"run-{place}.wandb.synced").touch()
    return made


@pytest.fixture(scope="module")
def specs(sources: Sources) -> dict[str, Spec]:
    """The written definitions, by paper."""
    paths = wandb_report.write(sources)
    assert [path.name for path in paths] == [f"wandb_report_{paper}.json" for paper in PAPERS]
    return {paper: json.loads(path.read_text()) for paper, path in zip(PAPERS, paths, strict=True)}


def blocks(spec: Spec, kind: str) -> list[Spec]:
    """All blocks of a kind."""
    return [block for block in spec["spec"]["blocks"] if block["type"] == kind]


def words(block: Spec) -> str:
    """The text of a heading or paragraph."""
    return "".join(child.get("text", "") for child in block["children"])


def sections(spec: Spec) -> dict[str, list[Spec]]:
    """Blocks by the heading that they follow."""
    found: dict[str, list[Spec]] = {"": []}
    current = ""
    for block in spec["spec"]["blocks"]:
        if block["type"] == "heading":
            current = words(block)
        found.setdefault(current, []).append(block)
    return found


@pytest.mark.parametrize("paper", PAPERS)
def test_one_section_per_item(sources: Sources, specs: dict[str, Spec], paper: str) -> None:
    """With the caption, the command, and panels where the item has runs."""
    found = sections(specs[paper])
    titles = [words(block) for block in blocks(specs[paper], "heading") if block["level"] == 2]
    assert titles == [title_of(item) for item in sources.items(paper)]
    for item in sources.items(paper):
        kinds = [block["type"] for block in found[title_of(item)]]
        assert kinds.count("panel-grid") == bool(item.runs)
        text = " ".join(words(block) for block in found[title_of(item)] if block["type"] == "paragraph")
        assert caption_of(item, sources.plan) in text
        assert f"reproduce.py {item.name} " in json.dumps(found[title_of(item)])


@pytest.mark.parametrize("paper", PAPERS)
def test_panels_show_the_runs_with_the_items_tag(sources: Sources, specs: dict[str, Spec], paper: str) -> None:
    """Filters on the tags that runs carry: the item's name and the scale."""
    grids = blocks(specs[paper], "panel-grid")
    with_runs = [item for item in sources.items(paper) if item.runs]
    assert len(grids) == len(with_runs) > 5
    for item, grid in zip(with_runs, grids, strict=True):
        (runs,) = grid["metadata"]["runSets"]
        filters = runs["filters"]["filters"]
        assert [f["key"] for f in filters] == [{"section": "run", "name": "tags"}] * 2
        assert [(f["op"], f["value"]) for f in filters] == [("IN", [item.name]), ("IN", ["quick"])]
        assert filters[1]["connector"] == "AND"
        panels = grid["metadata"]["panelBankSectionConfig"]["panels"]
        metrics = [metric for panel in panels for metric in panel["config"]["metrics"]]
        assert metrics == [metric for own in item.config.panels.values() for metric in own]
        assert metrics


def test_panels_by_kind(sources: Sources) -> None:
    """Curves over epochs or virtual time, bars for last values; side by side without overlap."""
    panels = [wandb_report.panel(kind, "loss", k) for k, kind in enumerate(wandb_report.PANELS)]
    over_epochs, over_time, final = panels
    assert (over_epochs.x, over_time.x) == ("epoch", "virtual_time")
    assert isinstance(final, library.BarPlot)
    assert len({(panel.layout.x, panel.layout.y) for panel in panels}) == 3
    assert all(panel.layout.x + panel.layout.w <= 24 for panel in panels)


@pytest.mark.parametrize("paper", PAPERS)
def test_no_destination_is_baked_in(specs: dict[str, Spec], paper: str) -> None:
    """The definition fits every entity and project, and W&B's own schema reads it back."""
    spec = specs[paper]
    assert spec["project"] == {"name": "", "entityName": ""}
    assert spec["id"] == ""
    for grid in blocks(spec, "panel-grid"):
        assert all("project" not in runs for runs in grid["metadata"]["runSets"])
    from wandb_workspaces.reports.v2 import internal

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        internal.ReportViewspec.model_validate(spec)
    assert len(spec["displayName"]) <= 128


def test_tables_and_verdicts(specs: dict[str, Spec]) -> None:
    """As Markdown; the other paper's claims are in the other report."""
    texts = [block["content"] for block in blocks(specs["acid"], "markdown-block")]
    assert "| **A1** It helps. |" in texts[0]
    assert "0.36 [0.138, 0.952]" in texts[0]
    assert "B1" not in texts[0]
    assert any("| two & more | – | 3.5 |" in text for text in texts)
    other = [block["content"] for block in blocks(specs["forward_gradient"], "markdown-block")]
    assert "**B1**" in other[0]


def test_markdown() -> None:
    """Header, rule, rows, notes; a bar in a cell is escaped."""
    text = wandb_report.markdown(Printed(["a", "b"], [["1|2", "3"]], ["Note."]))
    assert text == "| a | b |\n| --- | --- |\n| 1\\|2 | 3 |\n\nNote."


def test_every_item_with_runs_has_panels(sources: Sources) -> None:
    """In the configs as they are."""
    without = [item.name for item in sources.plan.items.values() if item.runs and not item.config.panels]
    assert [name for name in without if not name.startswith("claims_")] == []


@pytest.mark.parametrize(
    ("panels", "problem"),
    [({"over_epochs": ["nothing"]}, "no run of the item logs"), ({"pie": ["x"]}, "must be one of")],
)
def test_wrong_panels(sources: Sources, panels: dict[str, list[str]], problem: str) -> None:
    """A kind that does not exist and a metric that no run logged are refused, by the item's name."""
    item = Plan("quick", SMALL, {"wandb": "disabled"}, only=["acid_figure_1"]).item("acid_figure_1")
    item.config.panels = panels
    with pytest.raises(SettingError, match=f"figure_1.panels.*{problem}"):
        wandb_report.panels_of(item, sources.of(item))


class FakeServer:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def default_entity(self) -> str:
        """A team."""
        return "team"

    def sync(self, folders: Sequence[Path], to: Destination) -> None:
        """Remember the folders."""
        self.calls.append(("sync", [folder.name for folder in folders]))
        assert to == Destination("team", "unlocked")

    def save(self, definition: Any) -> str:
        """Remember where the report and its panels look for runs."""
        grids = [block for block in definition.blocks if isinstance(block, library.PanelGrid)]
        places = {(runs.entity, runs.project) for grid in grids for runs in grid.runsets}
        self.calls.append(("save", (definition.entity, definition.project, places)))
        return f"address of {definition.title}"


def test_upload(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    """First what will be sent, then the runs that were not sent before, then the reports on these runs."""
    server = FakeServer()
    addresses = wandb_report.upload(sources, server)
    place = ("team", "unlocked")
    assert server.calls == [("sync", ["offline-run-0"])] + [("save", (*place, {place}))] * 2
    assert addresses == [f"address of {PAPERS[paper][0]}, rebuilt at the quick scale" for paper in PAPERS]
    assert "uploading to team/unlocked: 1 offline run (1.5 kB), 2 reports" in capsys.readouterr().out


def test_destination_from_the_settings(sources: Sources) -> None:
    """Entity and project of the runtime settings come before the key's own."""
    plan = Plan("quick", SMALL, {"wandb_entity": "lab", "wandb_project": "papers"}, only=["acid_figure_3"])
    own = Sources(plan, sources.results, sources.figures)
    assert wandb_report.destination(own, "team") == Destination("lab", "papers")
    assert wandb_report.destination(sources, "team") == Destination("team", config.Runtime.wandb_project)


def test_sync_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`wandb sync` gets the folders and the destination; its failure is one line."""
    lines = []
    returned = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda line, **_: lines.append(line) or returned)
    wandb_report.Server().sync([tmp_path], Destination("lab", "papers"))
    assert lines[0][:4] == [sys.executable, "-m", "wandb", "sync"]
    assert lines[0][4:] == ["--yes", "--project", "papers", "--entity", "lab", str(tmp_path)]
    returned.returncode = 1
    with pytest.raises(DataError, match="wandb sync failed"):
        wandb_report.Server().sync([tmp_path], Destination("lab", "papers"))


@pytest.fixture
def command(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`unlocked report --wandb ...` on the fake results, with the plan that is read already."""
    monkeypatch.setattr(cli, "read_plan", lambda arguments: sources.plan)
    where = ["--results", str(sources.results), "--figures", str(sources.figures)]
    return lambda *words: cli.main(["report", "--wandb", *where, *words])


def test_without_a_key(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """The definitions are written, one line says that nothing is uploaded, and nothing fails."""
    assert command("--upload") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [Path(line).name for line in lines[:2]] == [f"wandb_report_{paper}.json" for paper in PAPERS]
    assert lines[2:] == [
        "unlocked: WANDB_API_KEY is not set: nothing is uploaded; the reports' definitions are complete without it"
    ]


def test_dry_run(sources: Sources, command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    """Destination, runs with their size, reports; nothing is written."""
    paths = [wandb_report.path_of(paper, sources) for paper in PAPERS]
    for path in paths:
        path.unlink(missing_ok=True)
    assert command("--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "would upload to (the default entity of the key)/unlocked: 1 offline run (1.5 kB), 2 reports"
    assert lines[1] == f"  run {next(iter(sources.records))}"
    assert len(lines) == 4
    assert not any(path.exists() for path in paths)


def test_package_missing(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what to install."""
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("wandb_workspaces"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert command() == 2
    assert capsys.readouterr().err.strip().endswith("pip install wandb-workspaces")
