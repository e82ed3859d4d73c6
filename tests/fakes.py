"""Made-up records, item files and verdicts, so that reports are tested without training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure as Canvas

from unlocked.artifact import record
from unlocked.artifact.build import context_of
from unlocked.artifact.plan import Plan
from unlocked.items import output
from unlocked.items.table import Table
from unlocked.papers.run import Run
from unlocked.report import claims
from unlocked.report.page import Sources

SMALL = ["seeds=[0,1]", "acid.workers=[4]", "acid.largest=4"]
BUILT = ("acid_figure_1", "acid_table_4", "forward_gradient_width", "forward_gradient_noise", "claims_effects")


def fake_record(run: Run, results: Path, metrics: list[str]) -> None:
    """A record as training writes it, with made-up numbers."""
    folder = record.folder_of(results, run)
    rows = [(step, step / 10, step / 4, 1.0, name, -1, 0.5) for step in (1, 2) for name in metrics]
    summary = {
        "run_id": folder.name,
        "config_hash": run.hash,
        "status": "diverged" if run.seed == 1 and getattr(run, "method", "") == "allreduce" else "completed",
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
            "seed": run.seed,
            "code": "0123456789abcdef",
            "data": {"name": "digits", "source": "a <b>source</b>", "checksum": "f" * 64},
            "resumed": 0,
        },
    }
    record.write(folder, run, pd.DataFrame(rows, columns=list(record.HISTORY)), summary)


def fake_files(sources: Sources, name: str) -> None:
    """An item's files, drawn and written as items are, with made-up content."""
    item = sources.plan.item(name)
    numbers = pd.DataFrame({"x": [1, 2], "y": [0.5, 0.25]})
    canvas = Canvas(figsize=(6.8, 2.2))
    canvas.subplots().plot(numbers["x"], numbers["y"])
    cells = (("one", "96.2 ± 0.2", "1.0 < 2"), ("two & more", "–", "3.5"))
    header = (f"accuracy of {name} (%)", "n = 4", "n = 16")
    table = Table(header, cells, (False, True, True), ("A note.",), numbers=numbers)
    made = output.Figure(canvas, numbers) if item.config.kind == "figure" else table
    stem = item.stem(sources.figures, sources.plan.scale.name)
    output.save(made, stem, context_of(item, sources.plan, sources.results))


def fake_verdicts(sources: Sources) -> None:
    """Verdicts as the claims' item writes them: two claims, the second with two parts."""
    a1 = {"id": "A1", "paper": "acid", "claim": "It helps.", "claim_verdict": claims.SUPPORTED}
    b1 = {"id": "B1", "paper": "forward_gradient", "claim": "It is close.", "claim_verdict": claims.NOT_RUN}
    shared = {
        "kind": "published",
        "decides": "all",
        "source": "the abstract",
        "conditions": "Ring.",
        "n": 2,
        "threshold": "< 1",
        "unit": "ratio",
        "part": "p",
    }
    good = {"verdict": claims.SUPPORTED, "reason": "", "effect": 0.36, "low": 0.138, "high": 0.952, **shared}
    none = {"verdict": claims.NOT_RUN, "reason": "no record of <x>", **shared}
    rows = [
        {**a1, **good, "statistic": "ratio of a to b"},
        {**b1, **good, "statistic": "gap in weights"},
        {**b1, **none, "statistic": "gap in outputs"},
    ]
    sources.verdicts.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=list(claims.COLUMNS)).to_csv(sources.verdicts, index=False)


def fake_sources(folder: Path) -> Sources:
    """The quick plan; records and files of a few of its items, and verdicts."""
    sources = Sources(Plan("quick", SMALL, {"wandb": "disabled"}), folder / "results", folder / "figures")
    panels = [item.config.panels for item in sources.plan.items.values()]
    plotted = {metric for own in panels for metrics in own.values() for metric in metrics}
    for name in dict.fromkeys(run for item in BUILT for run in sources.plan.item(item).runs):
        fake_record(sources.plan.runs[name], sources.results, sorted(plotted))
    for name in BUILT:
        fake_files(sources, name)
    fake_verdicts(sources)
    return sources
