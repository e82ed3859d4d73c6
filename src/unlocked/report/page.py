"""What was made at a scale, items, verdicts, runs and where all came from; and the HTML page of it, one file.

Items are read from the `<id>.json` beside each, verdicts from the numbers of their table, runs from the records.
"""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from unlocked.artifact import config, record
from unlocked.artifact.build import records_there
from unlocked.artifact.captions import caption_of, title_of
from unlocked.artifact.plan import CLAIMS, Item, Plan
from unlocked.errors import DataError
from unlocked.items.context import data_titles, facts, lost
from unlocked.items.frames import Frames
from unlocked.items.output import atomically
from unlocked.items.table import NONE, Table
from unlocked.papers import PAPERS
from unlocked.report import claims
from unlocked.units import human_bytes, human_time, plural

DOWNLOADS = {"csv": "CSV", "pdf": "PDF", "tex": "LaTeX"}
MEDIA = {".png": "image/png", ".pdf": "application/pdf", ".csv": "text/csv;charset=utf-8", ".tex": "application/x-tex"}
TEMPLATES = config.ROOT / "workflow" / "report"
LARGEST_DOWNLOAD = 300_000  # bytes; a larger file stays beside the page


@dataclass(frozen=True)
class Sources:
    """Where reports read, and the plan that says what there should be."""

    plan: Plan
    results: Path
    figures: Path

    @cached_property
    def frames(self) -> Frames:  # the finished runs of the plan, in its order
        return record.frames(records_there(self.plan.runs, self.plan, self.results))

    def frames_of(self, item: Item) -> Frames:
        return self.frames.where(self.frames.runs.index.isin(item.runs))

    def items(self, paper: str) -> list[Item]:
        """The items of a paper, or those about the claims, in the order of their configs."""
        return [item for item in self.plan.items.values() if item.paper == paper]

    @property
    def verdicts(self) -> Path:
        return self.figures / self.plan.scale.name / CLAIMS / "verdicts.csv"

    def command(self, target: str) -> str:
        """What a reader types to build something: the target at this scale, with the settings that shape results."""
        words = ["python3", "reproduce.py", target, "--config", f"scale={self.plan.scale.name}"]
        words += [f"set={' '.join(self.plan.overrides)}"] * bool(self.plan.overrides)
        device = self.plan.runtime.get("device", "cpu")
        return shlex.join(words + [f"device={device}"] * (device != "cpu"))


def show(item: Item, sources: Sources) -> dict[str, Any]:
    """An item as reports show it; `picture` and `table` are both None while it is not built.

    A picture is a PNG, because an SVG's text waits for fonts that readers may lack.
    """
    stem = item.stem(sources.figures, sources.plan.scale.name)
    shown: dict[str, Any] = {"name": item.name, "kind": item.config.kind, "command": sources.command(item.name)}
    shown |= {"picture": None, "table": None, "downloads": []}
    shown["built"] = all(stem.with_suffix(f".{suffix}").is_file() for suffix in item.suffixes)
    if not shown["built"]:
        known = facts(sources.frames_of(item).runs, sources.plan.scale.name, len(item.runs))
        return shown | {"title": title_of(item), "caption": caption_of(item, sources.plan), "facts": known}
    path = stem.with_suffix(".json")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        shown |= {key: about[key] for key in ("title", "caption", "facts")}
        if item.config.kind == "table":
            shown["table"] = Table.from_json(about["table"])
        else:
            shown["picture"] = {"path": stem.with_suffix(".png"), **about["picture"]}
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: cannot be read ({reason}); delete it and build the item again") from None
    files = [(label, stem.with_suffix(f".{kind}")) for kind, label in DOWNLOADS.items()]
    shown["downloads"] = [own for own in files if own[1].is_file() and own[1].stat().st_size <= LARGEST_DOWNLOAD]
    return shown


def overview(sources: Sources, built: list[bool]) -> dict[str, str]:
    """Conditions under which everything was made."""
    plan, frames = sources.plan, sources.frames
    planned, there = len(plan.runs), len(frames.runs)
    counted = (str(there) if there == planned else f"{there} of {planned} recorded") + lost(frames.runs)
    return {
        "Scale": f"{plan.scale.name}: {plan.scale.about}",
        "Seeds": ", ".join(map(str, plan.scale.seeds)),
        "Items": f"{sum(built)} of {len(built)} built",
        "Runs": f"{counted}, {human_time(frames.column('wall_seconds').sum())} in all, one after the other",
        "Changed": " ".join(plan.overrides) or "nothing",
        "Data": data_titles(frames.runs[frames.column("data.name").notna()]) or NONE,
    }


def provenance(frames: Frames) -> dict[str, pd.DataFrame]:
    """Tables of commits, versions, machines and data, with the number of runs of each; none without runs."""
    if frames.runs.empty:
        return {}
    column = frames.column
    changed = column("dirty").map({True: " (with local changes)", False: ""})
    machines = column("hardware").map(lambda own: f"{own.get('processor') or 'unknown processor'} ({listed(own)})")
    data = {"Data set": column("data.name").fillna("none"), "Source": column("data_source")}
    tables = {
        "Code": {"Commit": column("commit").fillna("unknown") + changed},
        "Versions": {"Packages": column("versions").map(listed)},
        "Machine": {"Hardware": machines, "Device": column("runtime.device"), "Threads per run": column("threads")},
        "Data": {**data, "SHA-256": column("data_checksum")},
    }
    return {
        title: pd.DataFrame(columns).groupby(list(columns), sort=False).size().reset_index(name="Runs")
        for title, columns in tables.items()
    }


def listed(values: Mapping[str, Any]) -> str:
    """`python 3.11.2, torch 2.14.1`."""
    return ", ".join(f"{key} {value}" for key, value in values.items() if key != "processor")


def list_of_runs(paper: str, sources: Sources) -> pd.DataFrame:
    """All planned runs of a paper: how each ended, what it took, and the items that read it."""
    planned = [name for name, run in sources.plan.runs.items() if run.paper == paper]
    runs = Frames(sources.frames.runs.reindex(planned), sources.frames.history)
    forms: dict[str, tuple[str, Callable[[float], str]]] = {
        "Gradients": ("counts.gradients", "{:.0f}".format),
        "Time": ("wall_seconds", "{:.1f} s".format),
        "Memory": ("memory_mb", lambda megabytes: human_bytes(megabytes * 2**20)),
    }
    took = {
        name: runs.column(key).map(form, na_action="ignore").astype(object).fillna(NONE)
        for name, (key, form) in forms.items()
    }
    readers = [[item.name.removeprefix(f"{paper}_") for item in sources.plan.wanted_by[name]] for name in planned]
    known = {"Run": planned, "Status": runs.column("status").fillna("not trained"), **took}
    return pd.DataFrame(known | {"Items": list(map(", ".join, readers))})


def data_uri(path: Path) -> str:
    """A file as a `data:` address."""
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def render(sources: Sources) -> str:
    """The page, which holds everything that it shows, fetches nothing and needs no script."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown = {group: [show(item, sources) for item in sources.items(group)] for group in (*PAPERS, CLAIMS)}
    judged = claims.read(sources.verdicts)
    counts = judged.drop_duplicates("id")["claim_verdict"].value_counts()
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, **options)
    environment.filters |= {f.__name__: f for f in (data_uri, human_bytes, plural)}
    return environment.get_template("page.html.j2").render(
        papers=PAPERS,
        scale=sources.plan.scale.name,
        overview=overview(sources, [item["built"] for own in shown.values() for item in own]),
        claims=claims.by_claim(judged),
        verdicts=", ".join(f"{count} {verdict}" for verdict, count in counts.items()),
        shown=shown,  # by paper, and about the claims
        provenance=provenance(sources.frames),
        runs={paper: list_of_runs(paper, sources) for paper in PAPERS},
        build_all=sources.command("all"),
    )


def write(sources: Sources, out: Path) -> Path:
    page = render(sources)
    return atomically(out, lambda path: path.write_text(page, encoding="utf-8"))
