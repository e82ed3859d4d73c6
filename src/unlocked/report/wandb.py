"""The W&B reports: one per paper, from the same items, captions, tables and verdicts as the HTML report; and the runs
that W&B has recorded offline, to browse and to upload.

A definition is made without a server or an account, and written as JSON; uploading it, and the offline runs that its
panels show, is a step of its own that needs a key. W&B is imported where it is used: others do not wait for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from unlocked.artifact.plan import CLAIMS, Item
from unlocked.artifact.record import folder_of
from unlocked.errors import DataError, SettingError
from unlocked.items.output import write_text
from unlocked.papers import PAPERS
from unlocked.papers.run import Runtime
from unlocked.report import claims, summary
from unlocked.report.sources import Sources, show
from unlocked.settings import flatten
from unlocked.units import human_bytes, plural

X_AXIS = {"over_epochs": "epoch", "over_time": "virtual_time", "over_log_time": "virtual_time"}  # of curves
LOGARITHMIC = ("loss", "distance", "error", "norm")  # words in the names of metrics that figures draw so
KEY = "WANDB_API_KEY"
NOWHERE = {"entity": "", "project": ""}  # on a server: of a definition that is not uploaded


def library() -> ModuleType:
    """`wandb_workspaces.reports.v2`; `DataError` with what to install if it is missing."""
    try:
        import wandb_workspaces.reports.v2 as reports
    except ImportError:
        raise DataError("the W&B reports need a package that is missing: pip install wandb-workspaces") from None
    return reports


def destination(sources: Sources) -> dict[str, str]:
    """Where the plan's settings send runs and reports; no entity if they name none."""
    runtime = sources.plan.runtime
    project = runtime.get("wandb_project") or Runtime.wandb_project
    return {"entity": runtime.get("wandb_entity") or "", "project": project}


def grouping(item: Item, sources: Sources) -> tuple[list[str], int]:
    """The settings in which an item's runs differ, but for the seed, and how many groups of runs these make."""
    rows = pd.DataFrame([flatten(sources.plan.runs[name].identity()) for name in item.runs]).astype(str)
    rows = rows.drop(columns="seed").loc[:, lambda all_: all_.nunique() > 1]
    return list(rows), max(1, len(rows.drop_duplicates()))


def panels(item: Item, sources: Sources, groups: int) -> list[Any]:
    """For every metric the mean and range over the seeds of every group of runs, side by side.

    A metric that none of the item's runs logged is refused.
    """
    frames = sources.frames.where(sources.frames.runs.index.isin(item.runs))
    complete = len(frames.runs) == len(item.runs) and not frames.column("diverged").any()
    logged = frames.history[["metric", "index"]].drop_duplicates().itertuples(index=False)
    known = {metric if index < 0 else f"{metric}/{index}" for metric, index in logged}
    wanted = [(kind, metric) for kind, own in item.config.panels.items() for metric in own]
    for _, metric in wanted:
        if complete and metric not in known:
            where = f"configs/{item.paper}/items.yaml: {item.id}.panels"
            raise SettingError(where, metric, "is a metric that no run of the item logs")
    return [panel(kind, metric, place, groups) for place, (kind, metric) in enumerate(wanted)]


def panel(kind: str, metric: str, place: int, groups: int) -> Any:
    """A curve, or a bar of last values, in a grid 24 wide."""
    reports, title, x = library(), metric.replace("_", " "), X_AXIS.get(kind, "")
    common = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax", "max_runs_to_show": groups}
    common["layout"] = reports.Layout(x=12 * (place % 2), y=7 * (place // 2), w=12, h=7)
    if kind == "final":
        return reports.BarPlot(title=f"{title} at the end", metrics=[metric], **common)
    logs = {"log_x": kind == "over_log_time", "log_y": any(word in metric for word in LOGARITHMIC)}
    return reports.LinePlot(title=title, x=x, y=[metric], title_x=x.replace("_", " "), **common, **logs)


def section(item: Item, sources: Sources, to: dict[str, str]) -> list[Any]:
    """Title, caption, table, panels over the runs that carry its tag and the scale's, and the rebuilding command."""
    reports, shown = library(), show(item, sources)
    blocks = [reports.H2(shown["title"]), reports.P(shown["caption"])]
    if item.config.kind == "table":
        blocks.append(reports.MarkdownBlock(text=shown["table"].markdown() if shown["built"] else "*Not built.*"))
    if item.runs:
        tags = (f"item:{item.name}", f"scale:{sources.plan.scale.name}")
        tagged = " and ".join(f"Tags() in ['{tag}']" for tag in tags)
        order = [reports.OrderBy("Name", ascending=True)]
        keys, groups = grouping(item, sources)
        names = [f"config.{key}" for key in keys]
        runs = reports.Runset(**to, name=item.name, filters=tagged, order=order, groupby=names)
        blocks.append(reports.PanelGrid(runsets=[runs], panels=panels(item, sources, groups)))
    else:
        blocks.append(reports.P("Computed without training: there are no runs to show."))
    return [*blocks, reports.MarkdownBlock(text=f"Rebuild: `{shown['command']}`")]


def definitions(sources: Sources, to: dict[str, str] = NOWHERE) -> dict[str, Any]:
    """The reports of all papers. Without a destination nothing is asked of a server."""
    reports, scale, made = library(), sources.plan.scale, {}
    judged = claims.read(sources.verdicts)
    for key, paper in PAPERS.items():
        own = judged[judged["paper"] == key]
        verdicts = f"Not built: `{sources.command(CLAIMS)}`" if own.empty else claims.as_table(own).markdown()
        blocks = [
            reports.TableOfContents(),
            reports.H1("Verdicts"),
            reports.MarkdownBlock(text=verdicts),
            reports.H1("Tables and figures"),
            *(block for item in sources.items(key) for block in section(item, sources, to)),
        ]
        title = f"{paper.short}, rebuilt at the {scale.name} scale"
        about = f"{paper.title} ({paper.venue}). {scale.about_paper(key)}"
        made[key] = reports.Report(**to, title=title, description=about, blocks=blocks, width="fixed")
    return made


def write(sources: Sources) -> list[Path]:
    """Write the definitions as JSON, as W&B's server takes them, without account or server; returns their paths."""
    paths = []
    for paper, definition in definitions(sources).items():
        path = sources.results / sources.plan.scale.name / f"wandb_report_{paper}.json"
        text = definition._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)  # as `save` does
        paths.append(write_text(path, f"{text}\n"))
    return paths


def folders_of_runs(sources: Sources) -> dict[str, list[Path]]:
    """By run of the plan the folders that W&B has written beside its record, the last one last."""
    records = {name: folder_of(sources.results, sources.plan.runs[name]) for name in sources.frames.runs.index}
    return {
        name: sorted(path.parent for path in folder.glob("wandb/*run-*/*.wandb")) for name, folder in records.items()
    }


def browse(sources: Sources) -> Path:
    """Make a folder of links `<results>/<scale>/browse/run-<name>` to the last W&B run of every run, as `wandb leet`
    wants it; returns it."""
    folder = sources.results / sources.plan.scale.name / "browse"
    last = {name: folders[-1] for name, folders in folders_of_runs(sources).items() if folders}
    if not last:
        raise DataError(
            f"{folder.parent}: there are no offline W&B runs; --config wandb=offline (the default) makes them"
        )
    folder.mkdir(exist_ok=True)
    for link in folder.glob("run-*"):
        link.unlink()
    for name, target in last.items():
        (folder / f"run-{name}").symlink_to(target.resolve(), target_is_directory=True)
    return folder


def offline_runs(sources: Sources) -> list[Path]:
    """Folders of the plan's offline W&B runs that were not uploaded yet."""
    every = [folder for folders in folders_of_runs(sources).values() for folder in folders]
    return [one for one in every if one.name.startswith("offline-") and not any(one.glob("*.wandb.synced"))]


def listing(sources: Sources, to: dict[str, str]) -> str:
    """What an upload would send, and where to."""
    folders, made = offline_runs(sources), definitions(sources)
    size = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
    where = f"{to['entity'] or '(the default entity of the key)'}/{to['project']}"
    lines = [f"to {where}: {plural(len(folders), 'offline run')} ({human_bytes(size)}), {plural(len(made), 'report')}"]
    lines += [f"  run {folder.parent.parent.name}" for folder in folders]
    return "\n".join([*lines, *(f"  report {definition.title!r}" for definition in made.values())])


def upload(sources: Sources) -> list[str]:
    """Send the offline runs, the scale's summary and the reports; returns these' addresses, none without a key."""
    if not os.environ.get(KEY):
        print(f"unlocked: {KEY} is not set: nothing is uploaded; the reports' definitions are complete without it")
        return []
    import wandb

    to = destination(sources)
    to = to if to["entity"] else to | {"entity": str(wandb.Api().default_entity)}
    print(f"uploading {listing(sources, to)}", flush=True)
    line = [sys.executable, "-m", "wandb", "sync", "--yes", "--project", to["project"], "--entity", to["entity"]]
    folders = list(map(str, offline_runs(sources)))
    if folders and (code := subprocess.run([*line, *folders]).returncode):  # it marks what it has uploaded
        raise DataError(f"wandb sync failed (exit code {code}); runs that it has uploaded stay uploaded")
    summary.send(sources, to)
    return [str(in_place(definition, to).save().url) for definition in definitions(sources, to).values()]


def in_place(definition: Any, to: dict[str, str]) -> Any:
    """The definition with the id of the project's report of the same title, so that saving it renews that one."""
    import wandb

    for known in wandb.Api().reports(f"{to['entity']}/{to['project']}"):  # which the summary has made if it was new
        definition.id = known.id if known.display_name == definition.title else definition.id
    return definition
