"""A folder of links to all offline Weights & Biases runs of a scale, by readable name, as `wandb leet` wants it."""

from __future__ import annotations

from pathlib import Path

from unlocked.artifact.record import folder_of
from unlocked.errors import DataError
from unlocked.report.sources import Sources


def offline(sources: Sources) -> dict[str, Path]:
    """Folders of the plan's offline runs, by the run's name; of a run that has several the last."""
    records = {name: folder_of(sources.results, sources.plan.runs[name]) for name in sources.frames.runs.index}
    found = {name: sorted(path.parent for path in folder.glob("wandb/*/*.wandb")) for name, folder in records.items()}
    return {name: folders[-1] for name, folders in found.items() if folders}


def gather(sources: Sources) -> Path:
    """Make `<results>/<scale>/browse/run-<name>` for every run, anew; returns the folder."""
    folder = sources.results / sources.plan.scale.name / "browse"
    runs = offline(sources)
    if not runs:
        raise DataError(
            f"{folder.parent}: there are no offline W&B runs; --config wandb=offline (the default) makes them"
        )
    folder.mkdir(exist_ok=True)
    for link in folder.glob("run-*"):
        link.unlink()
    for name, target in runs.items():
        (folder / f"run-{name}").symlink_to(target.resolve(), target_is_directory=True)
    return folder
