"""Folders of results: where a run's record stands, whether it is what was written, and what is on disk for good.

A record's summary holds the SHA-256 of its other files and of itself, a checkpoint's name that of its content. What
does not agree counts as not there and is kept under another name. Without torch or pandas: every start of the workflow
asks.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import IO, Any

from unlocked import fingerprint
from unlocked.console import say
from unlocked.errors import StorageError, named
from unlocked.papers.run import Run

FILES = ("config.yaml", "history.parquet")  # of a record, besides its summary
NAME_BYTES = 255  # of a name in the usual file systems
PATH_BYTES = 3500  # of a folder, which leaves as much as a run's files need of the 4096 that systems allow


def folder_of(results: Path, run: Run) -> Path:
    """Where the record of a run stands."""
    return results / run.scale / run.paper / run.id


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary of the record in a folder, as it is."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_bytes())
    return summary


def digest_of_summary(summary: dict[str, Any]) -> str:
    """SHA-256 of all that a summary says besides this digest."""
    rest = {key: value for key, value in summary.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A summary with the digests of the files in `folder` and its own."""
    summary = summary | {"files": {name: digest(folder / name) for name in FILES}}
    return summary | {"digest": digest_of_summary(summary)}


def damage(folder: Path) -> str | None:
    """What is wrong with the record in a folder, None if nothing is. One from before there were digests is believed."""
    try:
        summary = summary_of(folder)
        if summary["run_id"] != folder.name.removesuffix(".partial"):
            return f"its summary is that of {summary['run_id']}"
        if "digest" not in summary:
            return None
        if summary["digest"] != digest_of_summary(summary):
            return "its summary.json was altered"
        altered = [name for name in FILES if summary["files"][name] != digest(folder / name)]
    except Exception as error:  # whatever a damaged file can raise
        return f"it cannot be read ({named(error)})"
    return f"its {' and '.join(altered)} was altered" if altered else None


def current(folder: Path, run: Run) -> bool:
    """Whether a whole record of this run exists and still holds: same settings, same code unless told otherwise."""
    if damage(folder) is not None:
        return False
    try:
        summary = summary_of(folder)
        same_code = summary["provenance"]["code"] == fingerprint.training(run.trainer)
        complete = summary["config_hash"] == run.hash and summary["status"] in ("completed", "diverged")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return complete and (same_code or run.runtime.reuse == "same_config")


def set_aside(path: Path, why: str) -> None:
    """Keep what is damaged beside its place as `damaged-...`, with one line."""
    names = (f"damaged-{path.name}" + f".{k}" * (k > 1) for k in itertools.count(1))
    kept = next(place for name in names if not (place := path.with_name(name)).exists())
    path.rename(kept)
    say(f"{path} is damaged ({why}) and was set aside as {kept.name}: the run goes on without it")


def flush(*paths: Path) -> None:
    """Wait until files, and the names in folders, are on disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def locked(file: IO[Any], kind: int = fcntl.LOCK_EX) -> bool | None:
    """Take the kernel's lock on an open file, without waiting: False while another process has it.

    None in a file system that has no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


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


def existing_part(folder: Path) -> Path:
    """The folder, or the closest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
