"""Where things stand: a run's record, whether it holds, and what is there of a path. Without torch or pandas."""

from __future__ import annotations

import json
from pathlib import Path

from unlocked import fingerprint
from unlocked.artifact import integrity
from unlocked.papers.run import Run


def folder_of(results: Path, run: Run) -> Path:
    """Where the record of a run stands."""
    return results / run.scale / run.paper / run.id


def existing_part(folder: Path) -> Path:
    """The folder, or the closest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def current(folder: Path, run: Run) -> bool:
    """Whether a whole record of this run exists and still holds: same settings, same code unless told otherwise."""
    if integrity.damage(folder) is not None:
        return False
    try:
        summary = json.loads((folder / "summary.json").read_text())
        same_code = summary["provenance"]["code"] == fingerprint.training(run.trainer)
        complete = summary["config_hash"] == run.hash and summary["status"] in ("completed", "diverged")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return complete and (same_code or run.runtime.reuse == "same_config")
