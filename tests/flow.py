"""Calls of the workflow in a process of its own, from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from unlocked.artifact.config import ROOT

LITTLE = (
    "seeds=[0] acid.workers=[4] acid.largest=4 acid.horizon=40 acid.training.optim.epochs=60 "
    "acid.training.evaluation.points=4"
)


def environment(root: Path = ROOT, **more: str) -> dict[str, str]:
    """The process environment, with this source and without what other tests left of W&B."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return inherited | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1", **more}


def snakemake(*words: str, settings: tuple[str, ...], root: Path = ROOT, profile: str = "default") -> list[str]:
    """The command line, with the workflow and a profile of the repository or of a copy."""
    own = ["--snakefile", str(root / "Snakefile"), "--workflow-profile", str(root / "profiles" / "default")]
    own += ["--profile", str(root / "profiles" / profile)] if profile != "default" else ["--cores", "2"]
    return [sys.executable, "-m", "snakemake", *words, *own, "--config", *settings]


def workflow(*items: str, settings: tuple[str, ...] = (), little: str = LITTLE) -> list[str]:
    """A call of Snakemake; checkpoints as often as possible."""
    return snakemake(*items, settings=("wandb=disabled", "checkpoint_minutes=0", f"set={little}", *settings))


def finish(line: list[str], folder: Path, **options: Any) -> subprocess.CompletedProcess:
    """Run a command to its end."""
    options = {"env": environment(), "timeout": 600} | options
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, **options)
