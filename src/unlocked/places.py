"""Whether torchrun or Slurm started this process, and as which of how many: read from its environment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """This process among those that were started together."""

    rank: int
    size: int


def place() -> Place | None:
    """From the environment of torchrun or of srun, whose own is completed; None where this process is alone.

    Slurm's rank 0 is on the first node of the step, wherever srun itself was called.
    """
    env = os.environ
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        job, step = int(env["SLURM_JOB_ID"]), int(env.get("SLURM_STEP_ID", 0))
        env.setdefault("MASTER_ADDR", first_node(env["SLURM_STEP_NODELIST"]))
        env.setdefault("MASTER_PORT", str(20000 + (job + 1009 * step) % 20000))
        env.setdefault("RANK", env["SLURM_PROCID"])
        env.setdefault("WORLD_SIZE", env["SLURM_STEP_NUM_TASKS"])
    return Place(int(env["RANK"]), int(env["WORLD_SIZE"])) if {"RANK", "WORLD_SIZE"} <= env.keys() else None


def first_node(nodes: str) -> str:
    """The first of a list that Slurm has shortened: `cn003` of `cn[003-007,012],gpu1`."""
    return re.sub(r"\[(\w+)[^]]*\]", r"\1", nodes).split(",")[0]
