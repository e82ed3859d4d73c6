"""Calls of the workflow in a process of its own, from any folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from unlocked.artifact.config import ROOT


def environment(root: Path = ROOT, **more: str) -> dict[str, str]:
    """The process environment, with this source and without what other tests left of W&B."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return inherited | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", **more}


def snakemake(*words: str, settings: tuple[str, ...], root: Path = ROOT, profile: str = "default") -> list[str]:
    """The command line, with the workflow and a profile of the repository or of a copy."""
    own = ["--snakefile", str(root / "Snakefile"), "--workflow-profile", str(root / "profiles" / "default")]
    own += ["--profile", str(root / "profiles" / profile)] if profile != "default" else ["--cores", "2"]
    return [sys.executable, "-m", "snakemake", *words, *own, "--config", *settings]
