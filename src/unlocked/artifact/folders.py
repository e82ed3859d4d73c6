"""Where things stand: a run's record, and what is there of a path."""

from __future__ import annotations

from pathlib import Path

from unlocked.papers.run import Run


def folder_of(results: Path, run: Run) -> Path:
    """Where the record of a run stands."""
    return results / run.scale / run.paper / run.id


def existing_part(folder: Path) -> Path:
    """The folder, or the closest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
