"""What all reports read: a scale's plan, the records that are there, and the results in the folder of figures, items
from the `<id>.json` beside each.

Who trained nothing has the table of runs that was shipped (`<figures>/<scale>/runs.csv`), figures, tables and verdicts;
who removed the records has those that were built here. A record counts before the same run in such a table.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from unlocked.artifact import config, record
from unlocked.artifact.build import records_there
from unlocked.artifact.plan import CLAIMS, Item, Plan
from unlocked.errors import DataError, named
from unlocked.items.context import facts
from unlocked.items.frames import Frames
from unlocked.items.table import Table
from unlocked.vision.data import DATASETS

DOWNLOADS = {"csv": "CSV", "pdf": "PDF", "tex": "LaTeX"}
LARGEST_DOWNLOAD = 300_000  # bytes; a larger file stays beside the page
SHIPPED, EARLIER = "shipped with this version", "built here earlier"
SUMS = config.ROOT / "paper_figures" / "SHA256SUMS"  # of the tables that were shipped, as `sha256sum -c` reads them
COLUMNS = (
    "paper", "status", "seed", "test_accuracy", "train_loss", "consensus_distance", "history", "gradients",
    "communications", "seconds", "memory_mb", "config", "code", "commit", "modified", "data", "data_sha256",
    "processor", "threads", "python", "torch", "items", "group",
)  # fmt: skip
RENAMED = {
    "gradients": "counts.gradients", "communications": "counts.communications", "seconds": "wall_seconds",
    "modified": "dirty", "data": "data.name", "data_sha256": "data_checksum",
}  # fmt: skip  # columns that `Frames` calls otherwise


def read_runs(path: Path) -> pd.DataFrame:
    """A table of runs, by the names of its columns."""
    try:
        return pd.read_csv(path).set_index("run")[list(COLUMNS)]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: no table of runs ({named(error)})") from None


def origin(path: Path) -> str:
    """Where a table of results is from: whatever is not exactly as it was shipped was built here."""
    known = SUMS.read_text() if SUMS.is_file() else ""
    return SHIPPED if hashlib.sha256(path.read_bytes()).hexdigest() in known else EARLIER


def kept(path: Path) -> pd.DataFrame:
    """A table of runs as `Frames.runs` has it, with `items`, a list of names, and `origin`; no rows without a file."""
    if not path.is_file():
        return pd.DataFrame()
    rows = read_runs(path).rename(columns=RENAMED)
    names = rows["data.name"].replace("none", None)
    return rows.assign(
        hardware=[{"processor": name} for name in rows["processor"]],
        versions=rows[["python", "torch"]].to_dict("records"),
        data_source=[DATASETS[name].title if name in DATASETS else "none" for name in names],
        diverged=rows["status"] == "diverged",
        items=rows["items"].str.split(),
        origin=origin(path),
        **{"runtime.device": "cpu", "data.name": names},
    )


@dataclass(frozen=True)
class Sources:
    """Where reports read, and the plan that says what there should be."""

    plan: Plan
    results: Path
    figures: Path

    @cached_property
    def frames(self) -> Frames:  # the finished runs of the plan, in its order
        return record.frames(records_there(self.plan.runs, self.plan, self.results))

    @cached_property
    def runs(self) -> Frames:
        """Every run of which something is known; those that are not recorded here have no history."""
        own = self.frames.runs
        wanted = [self.plan.items_of(name) for name in own.index]
        own = own.assign(items=pd.Series(wanted, own.index, dtype=object), origin="")
        more = kept(self.table_of_runs)
        more = more[~more.index.isin(own.index)]
        both = [frame for frame in (own, more) if len(frame)]
        return Frames(pd.concat(both) if both else own, self.frames.history)

    def runs_of(self, item: Item) -> pd.DataFrame:
        """Those that an item reads: recorded here, or else those that a table of runs tells of."""
        runs = self.runs.runs
        own = runs[runs["items"].map(lambda names: item.name in names).astype(bool)]
        here = own["origin"] == ""
        return own[here] if here.any() else own

    def beside(self) -> list[Sources]:
        """All scales of which something stands in the folder of figures, this one among them."""
        own = self.plan.scale.name
        return [
            self if name == own else Sources(Plan(name, runtime=self.plan.runtime), self.results, self.figures)
            for name in dict.fromkeys((*config.SCALES, *config.scale_names()))
            if name == own or (self.figures / name).is_dir()
        ]

    def items(self, paper: str) -> list[Item]:
        """The items of a paper, or those about the claims, in the order of their configs."""
        return [item for item in self.plan.items.values() if item.paper == paper]

    @property
    def table_of_runs(self) -> Path:
        return self.figures / self.plan.scale.name / "runs.csv"

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
    """An item as reports show it; `picture` and `table` are both None while it is not built."""
    runs, scale = sources.runs_of(item), sources.plan.scale.name
    stem, origin = item.stem(sources.figures, scale), origin_of(runs)
    shown = {
        "name": item.name, "kind": item.config.kind, "scale": scale, "command": sources.command(item.name),
        "title": item.title, "caption": sources.plan.caption(item), "runs": list(runs.index),
        "facts": facts(runs, scale, len(item.runs), origin), "picture": None, "table": None, "downloads": [],
        "built": all(stem.with_suffix(f".{suffix}").is_file() for suffix in item.suffixes),
    }  # fmt: skip
    if shown["built"]:
        shown |= as_built(stem, item.config.kind) | ({"facts": shown["facts"]} if origin else {})
        files = [(label, stem.with_suffix(f".{kind}")) for kind, label in DOWNLOADS.items()]
        shown["downloads"] = [own for own in files if own[1].is_file() and own[1].stat().st_size <= LARGEST_DOWNLOAD]
    return shown


def as_built(stem: Path, kind: str) -> dict[str, Any]:
    """Title, caption, facts, and picture or table of an item, from its JSON file.

    A picture is a PNG, because an SVG's text waits for fonts that readers may lack.
    """
    path = stem.with_suffix(".json")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        shown = {key: about[key] for key in ("title", "caption", "facts")}
        if kind == "table":
            return shown | {"table": Table.from_json(about["table"]).narrow()}
        return shown | {"picture": {"path": stem.with_suffix(".png"), **about["picture"]}}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({named(error)}); delete it and build the item again") from None


def origin_of(runs: pd.DataFrame) -> str:
    """Where runs are from of which none is recorded here; empty for others, and for none at all."""
    return runs["origin"].iloc[0] if len(runs) and runs["origin"].all() else ""
