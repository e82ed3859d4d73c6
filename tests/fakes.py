"""Made-up records, item files and verdicts, so that reports are tested without training."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure as Canvas
from omegaconf import DictConfig

from unlocked import claims, config, record
from unlocked.items import output
from unlocked.items.build import context_of
from unlocked.plan import Plan
from unlocked.report import Sources

SMALL = ["seeds=[0,1]", "acid.workers=[4]", "acid.largest=4"]
BUILT = ("acid_figure_1", "acid_table_4", "forward_gradient_width", "forward_gradient_noise", "claims_effects")


def fake_record(run: DictConfig, results: Path, metrics: Iterable[str]) -> None:
    """A record as training writes it, with made-up numbers."""
    folder = record.folder_of(results, run)
    rows = [(step, step / 10, step / 4, 1.0, name, -1, 0.5) for step in (1, 2) for name in sorted(metrics)]
    summary = {
        "run_id": folder.name,
        "config_hash": config.config_hash(run),
        "status": "diverged" if run.seed == 1 and run.get("method") == "allreduce" else "completed",
        "metrics": dict.fromkeys(metrics, 0.5),
        "counts": {"gradients": 1234},
        "durations": {"wall_seconds": 30.0},
        "peak_memory_mb": 700.0,
        "provenance": {
            "commit": "c0ffee" * 6 + "c0ff",
            "dirty": run.seed == 1,
            "versions": {"python": "3.12.1", "torch": "2.11.0"},
            "hardware": {"processor": "Analytical Engine", "cores": 2, "platform": "Linux"},
            "threads": 1,
            "seed": int(run.seed),
            "code": "0123456789abcdef",
            "data": {"name": "digits", "source": "a <b>source</b>", "checksum": "f" * 64},
            "resumed": 0,
        },
    }
    record.write(folder, run, pd.DataFrame(rows, columns=list(record.HISTORY)), summary)


def fake_files(sources: Sources, name: str) -> None:
    """An item's files, drawn and written as items are, with made-up content."""
    item = sources.plan.item(name)
    context = context_of(item, sources.plan, sources.results)
    numbers = pd.DataFrame({"x": [1, 2], "y": [0.5, 0.25]})
    if item.config.kind == "figure":
        canvas = Canvas(figsize=(6.8, 2.2))
        canvas.subplots().plot(numbers["x"], numbers["y"])
        result: output.Figure | output.Table = output.Figure(canvas, numbers)
    else:
        printed = pd.DataFrame(
            {"n = 4": ["96.2 ± 0.2", "–"], "n = 16": ["1.0 < 2", "3.5"]}, index=["one", "two & more"]
        )
        printed.index.name = f"accuracy of {name} (%)"
        result = output.Table(printed, numbers, ["A note."])
    output.save(result, sources.stem(item), context)


def fake_verdicts(sources: Sources) -> None:
    """Verdicts as the claims' item writes them: two claims, the second with two parts."""
    shared = {"source": "the abstract", "conditions": "Ring.", "n": 2, "threshold": "< 1", "unit": "ratio"}
    good = {"verdict": claims.SUPPORTED, "reason": "", "effect": 0.36, "low": 0.138, "high": 0.952}
    none = {"verdict": claims.NOT_RUN, "reason": "no record of <x>", "effect": None, "low": None, "high": None}
    rows = [
        {"id": "A1", "paper": "acid", "part": "p", "claim": "It helps.", "statistic": "ratio of a to b",
         "claim_verdict": claims.SUPPORTED, **good},
        {"id": "B1", "paper": "forward_gradient", "part": "q", "claim": "It is close.", "statistic": "gap in weights",
         "claim_verdict": claims.NOT_RUN, **good},
        {"id": "B1", "paper": "forward_gradient", "part": "r", "claim": "It is close.", "statistic": "gap in outputs",
         "claim_verdict": claims.NOT_RUN, **none},
    ]  # fmt: skip
    sources.verdicts.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([shared | row for row in rows])[list(claims.COLUMNS)].to_csv(sources.verdicts, index=False)


def fake_sources(folder: Path) -> Sources:
    """The quick plan; records and files of a few of its items, and verdicts."""
    sources = Sources(Plan("quick", SMALL, {"wandb": "disabled"}), folder / "results", folder / "figures")
    panels = [item.config.panels for item in sources.plan.items.values()]
    plotted = {metric for own in panels for metrics in own.values() for metric in metrics}
    for name in dict.fromkeys(run for item in BUILT for run in sources.plan.item(item).runs):
        fake_record(sources.plan.runs[name], sources.results, plotted)
    for name in BUILT:
        fake_files(sources, name)
    fake_verdicts(sources)
    return Sources(sources.plan, sources.results, sources.figures)  # what it has read so far is not kept
