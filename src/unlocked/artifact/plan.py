"""From items and a scale to the de-duplicated list of runs, grouped into jobs: the Snakefile's only source.

Without torch, so that Snakemake can ask it at every start.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from unlocked import fingerprint
from unlocked.artifact import config, pilot
from unlocked.artifact.config import CONFIGS, Bases, Scale, read_yaml
from unlocked.errors import SettingError, choose
from unlocked.papers import PAPERS
from unlocked.papers.run import PaperScale, Run
from unlocked.settings import Settings, build, dotted, inside, setting
from unlocked.vision.data import DATASETS

CLAIMS = "claims"  # the third group of items, beside those of the papers
UNITS = ("ratio", "percentage points", "exponent", "cosine", "rank correlation")
PANELS = ("over_epochs", "over_time", "over_log_time", "final")
SUFFIXES = {"figure": ("pdf", "png", "svg", "csv", "json"), "table": ("md", "tex", "csv", "json")}


@dataclass(frozen=True)
class Need(Settings):
    """A grid of runs: every key is a setting, every value one value or a list of them."""

    grid: dict[str, Any] = setting(None, "settings", empty=dict)
    regimes: tuple[str, ...] = setting((), "the grid in each of these regimes of the scale")

    def points(self, seeds: Sequence[int], own: PaperScale) -> Iterator[dict[str, Any]]:
        """The grid points, seeds innermost, of one regime after the other."""
        grid = {**self.grid, "seed": self.grid.get("seed", list(seeds))}
        values = [value if isinstance(value, list) else [value] for value in grid.values()]
        for regime in [pilot.regime_of(own, name) for name in self.regimes] or [{}]:
            for point in itertools.product(*values):
                yield {**regime, **dict(zip(grid, point, strict=True))}


@dataclass(frozen=True)
class ItemConfig(Settings):
    """One entry of `configs/<paper>/items.yaml`."""

    kind: str = setting("figure", "what it is", names=tuple(SUFFIXES))
    title: str = setting("", "what it shows")
    caption: str = setting("", "under it")
    label: str | None = setting(None, 'the paper\'s own number, e.g. "Figure 5"')
    label_checked: bool = setting(False, "whether that number was seen in a source")
    build: str = setting("", "dotted path of a function (context) -> Figure | Table")
    note: str = setting("", "what a scale changes about it, e.g. which part of the grid it leaves out")
    panels: dict[str, Any] = setting(None, "of the W&B report: metrics by kind of panel", empty=dict)
    needs: tuple[Need, ...] = setting((), "runs, crossed with the scale's seeds")
    seeds: int | None = setting(None, "only the first so many of the scale's", least=1)
    pilot: tuple[str, ...] = setting(
        (), "cells of the pilot (mlp*) whose runs it is about, at a scale that has them, in place of what it needs"
    )

    def check(self) -> None:
        self.refuse_unless(fingerprint.exists(self.build), "build", "must be the dotted path of a function")
        for kind in self.panels:
            choose("panels", kind, PANELS)


@dataclass(frozen=True)
class Part(Settings):
    """One measurable statement of a claim: an effect, and the side of a threshold on which it should lie."""

    says: str = setting("", "what the effect is, in a few words")
    unit: str = setting("ratio", "of the effect", names=UNITS)
    statistic: str = setting("", "a registered statistic")
    arguments: dict[str, Any] = setting(None, "of the statistic, e.g. which runs it compares", empty=dict)
    above: float | None = setting(None, "the threshold: exactly one of these three")
    below: float | None = setting(None, "the threshold: exactly one of these three")
    between: tuple[float, ...] | None = setting(None, "low and high")
    margin: float | None = setting(
        None, "an effect within this of the threshold is no difference; of ratios: this share", above=0
    )

    def check(self) -> None:
        given = [name for name in ("above", "below", "between") if getattr(self, name) is not None]
        if len(given) != 1:
            raise SettingError("threshold", ", ".join(given) or None, "must be exactly one of above, below, between")
        ordered = self.between is None or (len(self.between) == 2 and self.between[0] < self.between[1])
        self.refuse_unless(ordered, "between", "must be two numbers, the lower one first")
        self.refuse_idle("margin", self.between is None, "one threshold")


@dataclass(frozen=True)
class ClaimConfig(Settings):
    """One entry of `configs/claims.yaml`: what a paper asserts, as something that can be measured."""

    paper: str = setting("", "whose claim", names=PAPERS)
    kind: str = setting(
        "published",
        "the paper's; ours, about the same methods; a check of a formula",
        names=("published", "ours", "check"),
    )
    claim: str = setting("", "the sentence")
    source: str = setting("", "where the paper says so")
    conditions: str = setting("", "under which it is tested here")
    settings: tuple[str, ...] = setting((), "of the runs, printed with the conditions")
    needs: tuple[Need, ...] = setting((), "runs, crossed with the scale's seeds")
    parts: dict[str, Any] = setting(None, "measurable statements by name", empty=dict)


@dataclass(frozen=True)
class Claim:
    """A claim with the runs that it is judged by."""

    id: str
    config: ClaimConfig
    parts: Mapping[str, Part]
    runs: Mapping[str, Run]


@dataclass(frozen=True)
class Item:
    """A table or figure with the runs that it reads."""

    paper: str  # or CLAIMS, for the items that are about all papers' claims
    id: str
    config: ItemConfig
    runs: tuple[str, ...]

    @property
    def name(self) -> str:
        """Unique over all papers, e.g. `acid_figure_5`."""
        return f"{self.paper}_{self.id}"

    @property
    def title(self) -> str:
        """The paper's number where there is one, and what the item shows."""
        label, title = self.config.label, self.config.title
        return f"{label}: {title}" if label else title[:1].upper() + title[1:]

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Files that the item consists of."""
        return SUFFIXES[self.config.kind]

    def stem(self, figures: Path, scale: str) -> Path:
        """Path of its files without suffix."""
        return figures / scale / self.paper / self.id


@dataclass(frozen=True)
class Batch:
    """Runs that one job trains in one process, as far as they are wanted and missing."""

    paper: str
    id: str
    runs: tuple[str, ...]


class Plan:
    """Items, runs and batches of a scale, of all papers and the claims: all, or what the items in `only` need."""

    def __init__(
        self,
        scale: str,
        overrides: Iterable[str] = (),
        runtime: Mapping[str, Any] | None = None,
        only: Iterable[str] | None = None,
    ) -> None:
        self.overrides = tuple(overrides)
        self.scale: Scale = config.load_scale(scale, self.overrides)
        self.runtime = dict(runtime or {})
        self.runs: dict[str, Run] = {}
        self.items: dict[str, Item] = {}
        self.claims: dict[str, Claim] = {}  # when an item about them is wanted
        self._ids: dict[tuple[Any, ...], str] = {}  # of runs, by grid point
        self._bases = {key: self._base(key) for key in PAPERS}
        entries = {group: read_yaml(CONFIGS / group / "items.yaml") for group in (*PAPERS, CLAIMS)}
        self._refuse_unknown(entries)
        known = [f"{group}_{key}" for group, own in entries.items() for key in own]
        wanted = known if only is None else [choose("item", name, known) for name in only]
        for group, own in entries.items():
            if chosen := {key: entry for key, entry in own.items() if f"{group}_{key}" in wanted}:
                self._read_items(group, chosen)
        self.pilot = {paper: self._pilot_runs(paper) for paper in PAPERS} if only is None else {}  # run ids by cell

    def _pilot_runs(self, paper: str, patterns: Sequence[str] = ("*",)) -> dict[str, list[str]]:
        """The runs of every cell of a paper's pilot whose name is like one of the patterns."""
        head = self.scale.head
        cells = [one for one in self.scale.cells[paper] if any(fnmatchcase(one.name, like) for like in patterns)]
        if cells:
            pilot.check_seeds(head.pilot_seeds, [*head.seeds, *head.claim_seeds, *head.more_seeds])
        return {cell.name: [self._add(paper, point) for point in cell.points(head.pilot_seeds)] for cell in cells}

    def _base(self, paper: str) -> Bases:
        """A scale that cannot work is refused, even for items that train nothing."""
        base = Bases(PAPERS[paper], self.scale, self._runtime_of(paper))
        with inside(f"{paper}.training"):
            base.run({})
        return base

    def _runtime_of(self, paper: str) -> dict[str, Any]:
        """The settings of `runtime` that some run of a paper has; one that no run of any paper has is refused."""
        known = {key: runtime_names(key) for key in PAPERS}
        for name in self.runtime:
            choose("runtime", name, sorted(set().union(*known.values())))
        return {name: value for name, value in self.runtime.items() if name in known[paper]}

    def _refuse_unknown(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """A scale may change items that there are."""
        for paper, own in self.scale.papers.items():
            for key in own.items:
                choose(f"{paper}.items", key, entries[paper])

    def _read_items(self, group: str, entries: Mapping[str, Any]) -> None:
        changes = self.scale.papers[group].items if group in PAPERS else {}
        merged = {key: {**entry, **changes.get(key, {})} for key, entry in entries.items()}
        shared = self._read_claims() if group == CLAIMS else []
        for key, entry in config.resolved(merged, self.scale).items():
            with inside(f"configs/{group}/items.yaml: {key}"):
                item = build(ItemConfig, entry)
                tuning = self._pilot_runs(group, item.pilot) if item.pilot else {}
                needs = item.needs if not any(tuning.values()) else ()
                own = self._add_runs(group, needs, self.scale.seeds[: item.seeds])
                runs = tuple(dict.fromkeys([*shared, *itertools.chain(*tuning.values()), *own]))
            self.items[f"{group}_{key}"] = Item(group, str(key), item, runs)

    def _read_claims(self) -> list[str]:
        """Fill `claims`; returns the runs that they need."""
        head, entries = self.scale.head, read_yaml(CONFIGS / "claims.yaml")
        for name in head.undecided:
            choose("undecided", name, entries)
        for key, entry in config.resolved(entries, self.scale).items():
            with inside(f"configs/claims.yaml: {key}"):
                claim = build(ClaimConfig, entry)
                parts = {name: self._part(name, part) for name, part in claim.parts.items()}
                added = self._add_runs(claim.paper, claim.needs, head.seeds_of(key))
                runs = {name: self.runs[name] for name in added}
            self.claims[str(key)] = Claim(str(key), claim, parts, runs)
        return [name for claim in self.claims.values() for name in claim.runs]

    def _part(self, name: str, entry: Mapping[str, Any]) -> Part:
        with inside(f"parts.{name}"):
            return build(Part, entry)

    def _add_runs(self, paper: str, needs: Iterable[Need], seeds: Sequence[int]) -> Iterator[str]:
        for need in needs:
            for point in need.points(seeds, self.scale.papers[paper]):
                yield self._add(paper, point)

    def _add(self, paper: str, point: Mapping[str, Any]) -> str:
        """The id of the run of a grid point, which the plan has from then on."""
        key = (paper, *sorted((name, str(value)) for name, value in point.items()))
        if key not in self._ids:
            run = self._bases[paper].run(point)
            self._ids[key] = run.id
            self.runs.setdefault(run.id, run)
        return self._ids[key]

    def item(self, name: str) -> Item:
        """The item called e.g. `acid_figure_5`."""
        return self.items[choose("item", name, self.items)]

    @cached_property
    def wanted_by(self) -> dict[str, list[Item]]:
        """For every run the items that read it, in the plan's order."""
        readers: dict[str, list[Item]] = {name: [] for name in self.runs}
        for item in self.items.values():
            for name in item.runs:
                readers.setdefault(name, []).append(item)
        return readers

    def items_of(self, run: str) -> list[str]:
        """The names of the items that read a run."""
        return [item.name for item in self.wanted_by.get(run, ())]

    @cached_property
    def batches(self) -> dict[str, Batch]:
        """Jobs of about equal cost. No job mixes trainers, data sets, or runs of the pilot alone with others. By seed:
        what an item waits for is in few jobs, and its seeds in different ones, if there are enough.
        """
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, run in sorted(self.runs.items(), key=lambda named: named[1].seed):
            data = run.data_set.name if run.data_set is not None else None
            groups.setdefault((run.paper, run.trainer, data, bool(self.wanted_by[name])), []).append(name)
        jobs: dict[str, Batch] = {}
        for (paper, *_), names in groups.items():
            costs = [self.runs[name].estimate().seconds for name in names]
            for members in cut(names, costs, 60 * self.scale.head.job_minutes):
                key = fingerprint.digest(*members)[:8]
                jobs[key] = Batch(paper, key, tuple(members))
        return jobs

    def batches_of(self, runs: Iterable[str]) -> list[Batch]:
        """The jobs that have one of these runs."""
        wanted = set(runs)
        return [batch for batch in self.batches.values() if not wanted.isdisjoint(batch.runs)]

    def caption(self, item: Item) -> str:
        """The caption of an item: the scale's data in the first sentence where it is not the paper's."""
        sentences = [item.config.note, item.config.caption]
        data = {run.data_set.name for run in map(self.runs.__getitem__, item.runs) if run.data_set is not None}
        if data and self.scale.name != "paper":
            papers = list(PAPERS) if item.paper == CLAIMS else [item.paper]
            about = "; ".join(dict.fromkeys(self.scale.about_paper(paper) for paper in papers))
            names = " and ".join(DATASETS[name].title for name in sorted(data))
            whose = "the paper's" if len(papers) == 1 else "the papers'"
            sentences.insert(0, f"On {names} in place of {whose} data ({self.scale.name} scale: {about}).")
        return " ".join(" ".join(sentences).split())

    def describe(self, paper: str | None = None) -> dict[str, Any]:
        """The whole plan as plain values: items, runs with their cost, totals."""
        runs = {name: run for name, run in self.runs.items() if paper in (None, run.paper)}
        costs = {name: run.estimate() for name, run in runs.items()}
        items = [item for item in self.items.values() if paper in (None, item.paper)]
        return {
            "scale": self.scale.name,
            "about": self.scale.about,
            "items": [
                {"name": i.name, "kind": i.config.kind, "label": i.config.label, "title": i.config.title,
                 "runs": list(i.runs)}
                for i in items
            ],
            "runs": [
                {"id": name, "paper": run.paper, "settings": run.identity(), **vars(costs[name])}
                for name, run in runs.items()
            ],
            "total": {
                "items": len(items),
                "runs": len(runs),
                "gradients": sum(cost.gradients for cost in costs.values()),
                "seconds": round(sum(cost.seconds for cost in costs.values()), 1),
                "memory_mb": max((cost.memory_mb for cost in costs.values()), default=0),
            },
        }  # fmt: skip


def runtime_names(paper: str) -> set[str]:
    """The settings of how runs of a paper are executed."""
    names = (name for kind in PAPERS[paper].kinds for name in dotted(kind))
    return {name.removeprefix("runtime.") for name in names if name.startswith("runtime.")}


def cut(names: Sequence[str], costs: Sequence[float], most: float) -> list[list[str]]:
    """`names` in order, in parts of about equal cost: as many as it takes for none to be much above `most`."""
    count = min(len(names), max(1, math.ceil(sum(costs) / most)))
    share = sum(costs) / count
    parts: list[list[str]] = [[] for _ in range(count)]
    before = 0.0
    for name, cost in zip(names, costs, strict=True):
        place = int((before + cost / 2) / share) if share else 0  # of its middle
        parts[min(place, count - 1)].append(name)
        before += cost
    return [part for part in parts if part]
