"""One W&B run per scale: figures as images, tables as tables, files and verdicts as a versioned artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from unlocked.report import claims
from unlocked.report.page import show
from unlocked.report.sources import Sources

KEPT = (".csv", ".pdf", ".tex", ".md")  # what a paper or a reader takes from a scale


def send(sources: Sources, to: dict[str, str], mode: Literal["online", "offline"] = "online") -> None:
    """Write the run. It has one name per scale: a later call continues it and adds a version of the artifact."""
    import wandb

    scale, folder = sources.plan.scale.name, sources.results / sources.plan.scale.name
    folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        entity=to["entity"] or None,
        project=to["project"],
        mode=mode,
        dir=folder,
        id=f"summary-{scale}",
        name=f"summary, {scale}",
        job_type="summary",
        tags=["summary", f"scale:{scale}"],
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
    )
    shown = [show(item, sources) for item in sources.plan.items.values()]
    run.log({own["name"]: media(own) for own in shown if own["built"]})
    results = wandb.Artifact(f"results-{scale}", type="results", description=sources.plan.scale.about)
    for path in files(sources):
        results.add_file(str(path), name=str(path.relative_to(sources.figures / scale)))
    run.log_artifact(results)
    run.summary.update({f"verdict/{name}": word for name, word in verdicts(sources).items()})
    run.finish()


def media(shown: dict[str, Any]) -> Any:
    """An item as W&B shows it."""
    import wandb

    if table := shown["table"]:
        return wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
    return wandb.Image(str(shown["picture"]["path"]), caption=shown["title"])


def files(sources: Sources) -> list[Path]:
    """The table of runs, numbers, vector figures and tables of the scale."""
    folder = sources.figures / sources.plan.scale.name
    return sorted(path for path in folder.rglob("*") if path.suffix in KEPT)


def verdicts(sources: Sources) -> dict[str, str]:
    """The verdict on every claim."""
    judged = claims.read(sources.verdicts).drop_duplicates("id")
    return dict(zip(judged["id"], judged["claim_verdict"], strict=True))
