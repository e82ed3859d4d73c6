"""The W&B reports: one per paper, from the same items, captions, tables and verdicts as the HTML report.

At the end of the road, beside `report`. The definition is made and checked without a server or an account, and written
as JSON; uploading it, and the offline runs that its panels show, is a step of its own that needs a key. W&B is imported
where it is used: only the commands that need it wait for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from unlocked import config, record, report
from unlocked.errors import DataError, SettingError, choose
from unlocked.items import output
from unlocked.items.build import caption_of, title_of
from unlocked.papers import PAPERS
from unlocked.plan import CLAIMS, Item
from unlocked.report import Printed, Sources
from unlocked.units import human_bytes, plural

PANELS = ("over_epochs", "over_time", "final")  # kinds of panels in an item's config
X_AXIS = {"over_epochs": "epoch", "over_time": "virtual_time"}
KEY = "WANDB_API_KEY"
COLUMNS, WIDTH, HEIGHT = 2, 12, 7  # panels side by side, and a panel's size in units of W&B's grid (24 wide)


def reports_library() -> ModuleType:
    """`wandb_workspaces.reports.v2`; `DataError` with what to install if it is missing."""
    try:
        import wandb_workspaces.reports.v2 as library
    except ImportError:
        raise DataError("the W&B reports need a package that is missing: pip install wandb-workspaces") from None
    return library


@dataclass(frozen=True)
class Destination:
    """Project and entity on a W&B server; both empty in a definition that is not uploaded."""

    entity: str = ""
    project: str = ""

    def __str__(self) -> str:
        return f"{self.entity or '(the default entity of the key)'}/{self.project}"


def destination(sources: Sources, entity: str = "") -> Destination:
    """Where the plan's settings send runs and reports; `entity` if they name none."""
    chosen = sources.plan.runtime.get("runtime.wandb_entity") or entity
    return Destination(chosen, sources.plan.runtime.get("runtime.wandb_project") or config.Runtime.wandb_project)


def logged(records: Iterable[record.Record]) -> set[str]:
    """The names under which W&B has the metrics of records: `train_loss`, `cosine/0`."""
    names: set[str] = set()
    for one in records:
        rows = one.history[["metric", "index"]].drop_duplicates()
        names.update(m if k < 0 else f"{m}/{k}" for m, k in rows.itertuples(index=False))
    return names


def panels_of(item: Item, records: Sequence[record.Record]) -> list[tuple[str, str]]:
    """Kind and metric of an item's panels; `SettingError` for a metric that none of them logged, if all have run."""
    where = f"configs/{item.paper}/items.yaml: {item.id}.panels"
    pairs = [
        (choose(where, kind, PANELS), metric) for kind, metrics in item.config.panels.items() for metric in metrics
    ]
    complete = len(records) == len(item.runs) and not any(one.diverged for one in records)
    known = logged(records) if complete else set()
    for _, metric in pairs:
        if complete and metric not in known:
            raise SettingError(where, metric, "is a metric that no run of the item logs")
    return pairs


def panel(kind: str, metric: str, place: int) -> Any:
    """One panel: curves of all runs, or a bar per run with its last value."""
    library = reports_library()
    layout = library.Layout(x=place % COLUMNS * WIDTH, y=place // COLUMNS * HEIGHT, w=WIDTH, h=HEIGHT)
    title = metric.replace("_", " ")
    if kind == "final":
        return library.BarPlot(title=f"{title} at the end", metrics=[metric], layout=layout)
    x = X_AXIS[kind]
    return library.LinePlot(title=title, x=x, y=[metric], title_x=x.replace("_", " "), layout=layout)


def grid(item: Item, sources: Sources, to: Destination) -> Any:
    """The item's panels over the runs that carry its tag and the scale's."""
    library = reports_library()
    tags = (item.name, str(sources.plan.scale.name))
    runs = library.Runset(
        entity=to.entity,
        project=to.project,
        name=item.name,
        filters=" and ".join(f"Tags() in ['{tag}']" for tag in tags),
        order=[library.OrderBy("Name", ascending=True)],
    )
    pairs = panels_of(item, sources.of(item))
    return library.PanelGrid(runsets=[runs], panels=[panel(*pair, place) for place, pair in enumerate(pairs)])


def markdown(table: Printed) -> str:
    """A table as Markdown."""
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes)])


def verdict_table(paper: str, sources: Sources) -> Printed | None:
    """A paper's claims with all their parts, None if they were not judged."""
    judged = [claim for claim in report.read_verdicts(sources.verdicts) if claim.paper == paper]
    columns = ["claim", "measured", "effect [95 % interval]", "claimed", "n", "verdict"]
    rows = []
    for claim in judged:
        rows.append([f"**{claim.id}** {claim.text}", "", "", "", "", f"**{claim.verdict}**"])
        rows += [
            ["", *(part[key] for key in ("statistic", "effect", "threshold", "n", "verdict"))] for part in claim.parts
        ]
    notes = [f"**{claim.id}**: {claim.source}. {claim.conditions}" for claim in judged]
    return Printed(columns, rows, notes) if judged else None


def text(content: str) -> Any:
    """A block of running text."""
    return reports_library().P(content)


def section(item: Item, sources: Sources, to: Destination) -> list[Any]:
    """Title, caption, table, panels and the rebuilding command of an item."""
    library = reports_library()
    blocks = [library.H2(title_of(item)), text(caption_of(item, sources.plan))]
    table = sources.stem(item).with_suffix(".md")
    if item.config.kind == "table":
        found = markdown(report.read_table(table)) if table.is_file() else "*Not built.*"
        blocks.append(library.MarkdownBlock(text=found))
    if item.runs:
        blocks.append(grid(item, sources, to))
    else:
        blocks.append(text("Computed without training: there are no runs to show."))
    return [*blocks, library.MarkdownBlock(text=f"Rebuild: `{sources.command(item.name)}`")]


def define(paper: str, sources: Sources, to: Destination = Destination()) -> Any:
    """The report of a paper. Without a destination nothing is asked of a server."""
    library = reports_library()
    short, title, venue = PAPERS[paper]
    scale = sources.plan.scale
    verdicts = verdict_table(paper, sources)
    missing = f"Not built: `{sources.command(CLAIMS)}`"
    blocks = [
        library.TableOfContents(),
        library.H1("Verdicts"),
        library.MarkdownBlock(text=markdown(verdicts) if verdicts else missing),
        library.H1("Tables and figures"),
    ]
    for item in sources.items(paper):
        blocks += section(item, sources, to)
    return library.Report(
        entity=to.entity,
        project=to.project,
        title=f"{short}, rebuilt at the {scale.name} scale",
        description=f"{title} ({venue}). {scale[paper].about or scale.about}",
        blocks=blocks,
        width="fixed",
    )


def specification(definition: Any) -> str:
    """A report's definition as JSON, as W&B's server takes it."""
    return definition._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n"  # as `save` does


def path_of(paper: str, sources: Sources) -> Path:
    """Where a paper's definition is written."""
    return sources.results / sources.plan.scale.name / f"wandb_report_{paper}.json"


def write(sources: Sources) -> list[Path]:
    """Write the definitions of both papers, without account or server; returns their paths."""
    paths = []
    for paper in PAPERS:
        content = specification(define(paper, sources))
        output.atomically(path_of(paper, sources), lambda path, content=content: path.write_text(content))
        paths.append(path_of(paper, sources))
    return paths


def offline_runs(sources: Sources) -> list[Path]:
    """Folders of the plan's offline W&B runs that were not uploaded yet."""
    folders = [path for one in sources.records.values() for path in sorted(one.folder.glob("wandb/offline-run-*"))]
    return [folder for folder in folders if any(folder.glob("*.wandb")) and not any(folder.glob("*.wandb.synced"))]


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def listing(sources: Sources, to: Destination) -> str:
    """What an upload would send, and where to."""
    runs = offline_runs(sources)
    reports = [
        f"  report {define(paper, sources).title!r}: {plural(len(sources.items(paper)), 'item')}" for paper in PAPERS
    ]
    size = human_bytes(sum(map(size_of, runs)))
    head = f"to {to}: {plural(len(runs), 'offline run')} ({size}), {plural(len(reports), 'report')}"
    return "\n".join([head, *(f"  run {folder.parent.parent.name}" for folder in runs), *reports])


class Client(Protocol):
    """What an upload asks of W&B."""

    def default_entity(self) -> str:
        """Whose projects the key can write to."""

    def sync(self, folders: Sequence[Path], to: Destination) -> None:
        """Upload offline runs."""

    def save(self, definition: Any) -> str:
        """Save a report; returns its address."""


class Server:
    """W&B itself, with the key of the environment."""

    def default_entity(self) -> str:
        """Of the key's account."""
        import wandb

        return str(wandb.Api().default_entity)

    def sync(self, folders: Sequence[Path], to: Destination) -> None:
        """By `wandb sync`, which marks what it has uploaded."""
        options = ["--yes", "--project", to.project, "--entity", to.entity]
        done = subprocess.run([sys.executable, "-m", "wandb", "sync", *options, *map(str, folders)])
        if done.returncode:
            raise DataError(f"wandb sync failed (exit code {done.returncode}); runs that it has uploaded stay uploaded")

    def save(self, definition: Any) -> str:
        """As a new report of the project."""
        return str(definition.save().url)


def upload(sources: Sources, client: Client | None = None) -> list[str]:
    """Send the offline runs, then save both reports; returns the reports' addresses, none without a key."""
    if client is None and not os.environ.get(KEY):
        print(f"unlocked: {KEY} is not set: nothing is uploaded; the reports' definitions are complete without it")
        return []
    client = client or Server()
    to = destination(sources)
    to = to if to.entity else destination(sources, client.default_entity())
    print(f"uploading {listing(sources, to)}", flush=True)
    if runs := offline_runs(sources):
        client.sync(runs, to)
    return [client.save(define(paper, sources, to)) for paper in PAPERS]
