"""Whether files are what was written: digests, what is on disk for good, and where damaged files go.

A record's summary holds the SHA-256 of its other files and of itself, a checkpoint's name that of its content. What
does not agree counts as not there and is kept under another name. Without torch or pandas: every start of the workflow
asks.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

from unlocked.console import say

FILES = ("config.yaml", "history.parquet")  # of a record, besides its summary


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
        return f"it cannot be read ({type(error).__name__}: {' '.join(str(error).split())})"
    return f"its {' and '.join(altered)} was altered" if altered else None


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
