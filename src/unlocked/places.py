"""Whether torchrun or Slurm started this process, and as which of how many: read from its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """This process among those that were started together."""

    rank: int
    size: int


def place() -> Place | None:
    """From the environment of torchrun or of srun, whose own is completed; None where this process is alone."""
    env = os.environ
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        env.setdefault("MASTER_ADDR", env["SLURM_LAUNCH_NODE_IPADDR"])
        env.setdefault("MASTER_PORT", str(20000 + int(env["SLURM_JOB_ID"]) % 20000))
        env.setdefault("RANK", env["SLURM_PROCID"])
        env.setdefault("WORLD_SIZE", env["SLURM_STEP_NUM_TASKS"])
    return Place(int(env["RANK"]), int(env["WORLD_SIZE"])) if {"RANK", "WORLD_SIZE"} <= env.keys() else None
