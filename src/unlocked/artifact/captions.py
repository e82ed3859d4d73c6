"""Titles and captions of items, from the plan alone: for Snakemake and for the items themselves."""

from __future__ import annotations

from collections.abc import Iterable

from unlocked.artifact.plan import CLAIMS, Item, Plan
from unlocked.papers import PAPERS
from unlocked.vision.data import DATASETS


def title_of(item: Item) -> str:
    """The paper's number where there is one, and what the item shows."""
    label, title = item.config.label, item.config.title
    return f"{label}: {title}" if label else title[:1].upper() + title[1:]


def numbering(items: Iterable[Item]) -> str:
    """What readers should know of the papers' numbers in titles."""
    checked = [item for item in items if item.config.label and item.config.label_checked]
    seen = ", ".join(f"{item.config.label} of {PAPERS[item.paper].short}" for item in checked)
    return f"The papers' numbers of figures and tables were not checked against the published PDFs, except: {seen}."


def caption_of(item: Item, plan: Plan) -> str:
    """The caption: the scale's data in the first sentence where it is not the paper's."""
    sentences = [item.config.note, item.config.caption]
    data = {run.data_set.name for run in map(plan.runs.__getitem__, item.runs) if run.data_set is not None}
    if data and plan.scale.name != "paper":
        papers = list(PAPERS) if item.paper == CLAIMS else [item.paper]
        about = "; ".join(dict.fromkeys(plan.scale.about_paper(paper) for paper in papers))
        names = " and ".join(DATASETS[name].title for name in sorted(data))
        whose = "the paper's" if len(papers) == 1 else "the papers'"
        sentences.insert(0, f"On {names} in place of {whose} data ({plan.scale.name} scale: {about}).")
    return " ".join(" ".join(sentences).split())
