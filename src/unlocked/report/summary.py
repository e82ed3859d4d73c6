"""One W&B run per scale: figures as images, tables as tables, files and verdicts as a versioned artifact."""

from __future__ import annotations

from typing import Any, Literal

from unlocked.report import claims
from unlocked.report.sources import Sources, show

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
    figures = sources.figures / scale
    for path in sorted(path for path in figures.rglob("*") if path.suffix in KEPT):
        results.add_file(str(path), name=str(path.relative_to(figures)))
    run.log_artifact(results)
    judged = claims.read(sources.verdicts).itertuples()
    run.summary.update({f"verdict/{row.id}": row.claim_verdict for row in judged})
    run.finish()


def media(shown: dict[str, Any]) -> Any:
    """An item as W&B shows it."""
    import wandb

    if table := shown["table"]:
        return wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
    return wandb.Image(str(shown["picture"]["path"]), caption=shown["title"])
