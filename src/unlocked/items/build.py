"""Build an item: read its records, call its function, write its files."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path

from omegaconf import OmegaConf

from unlocked import budget, config, published, record
from unlocked.errors import DataError
from unlocked.items import output
from unlocked.plan import CLAIMS, Item, Plan

NUMBERING = "Numbering not checked against the published PDF."


def title_of(item: Item) -> str:
    """The paper's number where there is one, and what the item shows."""
    label, title = item.config.label, item.config.title
    return f"{label}: {title}" if label else title[:1].upper() + title[1:]


def caption_of(item: Item, plan: Plan) -> str:
    """The caption: the scale's data in the first sentence where it is not the paper's, and what is not checked."""
    runs = [plan.runs[name] for name in item.runs]
    data = sorted({str(run.data.name) for run in runs if budget.has_data(run)})
    papers = config.RUNS if item.paper == CLAIMS else (item.paper,)
    about = "; ".join(dict.fromkeys(plan.scale[paper].about or plan.scale.about for paper in papers))
    sentences = []
    if data and plan.scale.name != "paper":
        names = " and ".join(output.DATA_NAMES[name] for name in data)
        whose = "the paper's" if len(papers) == 1 else "the papers'"
        sentences.append(f"On {names} in place of {whose} data ({plan.scale.name} scale: {about}).")
    sentences += [" ".join(text.split()) for text in (item.config.note, item.config.caption) if text]
    if item.config.label and not item.config.label_checked:
        sentences.append(NUMBERING)
    return " ".join(sentences)


def records_there(names: Iterable[str], plan: Plan, results: Path) -> list[record.Record]:
    """The records of those runs that have one."""
    folders = [record.folder_of(results, plan.runs[name]) for name in names]
    return [record.load(folder) for folder in folders if record.is_record(folder)]


def context_of(item: Item, plan: Plan, results: Path) -> output.Context:
    """The records of an item and what its function may know. A claim can be judged without its records: as not run."""
    if item.paper == CLAIMS:
        records = records_there(item.runs, plan, results)
    else:
        records = [record.load(record.folder_of(results, plan.runs[name])) for name in item.runs]
    scale = OmegaConf.to_container(plan.scale, resolve=True)
    assert isinstance(scale, dict)
    return output.Context(
        paper=item.paper,
        id=item.id,
        scale=plan.scale.name,
        title=title_of(item),
        caption=caption_of(item, plan),
        records=records,
        settings=scale.get(item.paper, {}) | {"seeds": scale["seeds"]},
        claims=plan.claims,
    )


def build(item: Item, plan: Plan, results: Path, figures: Path) -> list[Path]:
    """Write the files of an item below `figures/<scale>/<paper>/`; returns their paths."""
    module, name = item.config.build.rsplit(".", 1)
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise DataError(f"item {item.name}: its build function {item.config.build} does not exist") from None
    context = context_of(item, plan, results)
    result = function(context)
    if isinstance(result, output.Table):
        result = published.beside(result, published.of_item(item.paper, item.id))
    return output.save(result, figures / plan.scale.name / item.paper / item.id, context)
