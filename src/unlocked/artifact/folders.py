"""Where things stand: a run's record, whether it holds, and what is there of a path. Without torch or pandas."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO, Any

from unlocked import fingerprint
from unlocked.artifact import integrity
from unlocked.errors import StorageError
from unlocked.papers.run import Run

NAME_BYTES = 255  # of a name in the usual file systems
PATH_BYTES = 3500  # of a folder, which leaves as much as a run's files need of the 4096 that systems allow


def folder_of(results: Path, run: Run) -> Path:
    """Where the record of a run stands."""
    return results / run.scale / run.paper / run.id


def refuse_impossible(folder: Path) -> None:
    """`StorageError` where no folder can be: a file or a dangling link in the way, or too long a name."""
    whole = folder.absolute()
    if any(len(os.fsencode(name)) > NAME_BYTES for name in whole.parts) or len(os.fsencode(whole)) > PATH_BYTES:
        possible = f"names have at most {NAME_BYTES} bytes, {PATH_BYTES} with the folders that they are in"
        raise StorageError(f"{str(folder)[:60]}... is too long: {possible}")
    for path in (*reversed(whole.parents), whole):
        if path.is_symlink() and not path.exists():
            raise StorageError(f"{path} is a link to {os.readlink(path)}, which is not there: choose another folder")
        if path.exists() and not path.is_dir():
            raise StorageError(f"{path} is a file where a folder should be: remove it, or choose another folder")


def locked(file: IO[Any], kind: int = fcntl.LOCK_EX) -> bool:
    """Take the kernel's lock on an open file, without waiting: False while another process has it.

    `OSError` in a file system that has no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def existing_part(folder: Path) -> Path:
    """The folder, or the closest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def current(folder: Path, run: Run) -> bool:
    """Whether a whole record of this run exists and still holds: same settings, same code unless told otherwise."""
    if integrity.damage(folder) is not None:
        return False
    try:
        summary = integrity.summary_of(folder)
        same_code = summary["provenance"]["code"] == fingerprint.training(run.trainer)
        complete = summary["config_hash"] == run.hash and summary["status"] in ("completed", "diverged")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return complete and (same_code or run.runtime.reuse == "same_config")
