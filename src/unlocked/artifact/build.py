"""Build an item: read its runs, call its function, write its files."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from pathlib import Path

from unlocked.artifact import published, record
from unlocked.artifact.plan import CLAIMS, Item, Plan
from unlocked.items import output
from unlocked.items.context import Context
from unlocked.items.table import Table


def records_there(names: Iterable[str], plan: Plan, results: Path) -> list[record.Record]:
    """The records of those runs that have one."""
    return list(record.readable(record.folder_of(results, plan.runs[name]) for name in names))


def context_of(item: Item, plan: Plan, results: Path) -> Context:
    """The runs of an item and what its function may know. A claim can be judged without its runs: as not run."""
    if item.paper == CLAIMS:
        records = records_there(item.runs, plan, results)
    else:
        records = [record.load(record.folder_of(results, plan.runs[name])) for name in item.runs]
    return Context(
        name=item.name, title=item.title, caption=plan.caption(item), scale=plan.scale.name,
        frames=record.frames(records), seeds=plan.scale.seeds, settings=plan.scale.papers.get(item.paper),
        claims=plan.claims, planned=len(item.runs), label=item.config.label, rates=why_rates(item.paper, plan),
    )  # fmt: skip


def why_rates(paper: str, plan: Plan) -> str:
    """Where the learning rates of a paper's runs come from."""
    chosen = any(cell.choice for cell in plan.scale.cells.get(paper, ()))
    return "chosen for each method by accuracy, on other seeds" if chosen else "the scale's own, not tuned by method"


def build(item: Item, plan: Plan, results: Path, figures: Path) -> list[Path]:
    """Write the files of an item below `figures/<scale>/<paper>/`; returns their paths."""
    context = context_of(item, plan, results)
    made = pkgutil.resolve_name(item.config.build)(context)
    if isinstance(made, Table):
        made = published.beside(made, published.of_item(item.paper, item.id))
    return output.save(made, item.stem(figures, plan.scale.name), context)
