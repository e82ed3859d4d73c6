"""Whether torchrun or Slurm started this process, and as which of how many.

Beside the engine of processes, without torch: every training asks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """This process among those that were started together."""

    rank: int
    size: int
    local_rank: int


def place() -> Place | None:
    """From the environment of torchrun or of srun; None where this process was started alone."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        env.setdefault("MASTER_ADDR", env["SLURM_LAUNCH_NODE_IPADDR"])
        env.setdefault("MASTER_PORT", str(20000 + int(env["SLURM_JOB_ID"]) % 20000))
        env["RANK"], env["WORLD_SIZE"] = env["SLURM_PROCID"], env["SLURM_STEP_NUM_TASKS"]
        return Place(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["SLURM_LOCALID"]))
    return None
