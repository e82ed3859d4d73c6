"""What a training job asks of a machine or a scheduler: cores, memory, time, GPUs, from the plan's estimates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unlocked.papers.run import Run

MEMORY_MARGIN = 2.0  # of the estimate, which is good to a factor of about two
TIME_MARGIN = 3.0
STARTING_MINUTES = 10  # a node's first import of torch from a network file system, and the data set
SNAKEMAKE_MB = 500  # of Snakemake itself, which runs twice inside a Slurm job (measured: 2 x 240)


@dataclass(frozen=True)
class Resources:
    """Of one job, in the units of Snakemake's resources."""

    threads: int  # cores
    mem_mb: int  # main memory
    runtime: int  # minutes
    gpu: int  # on one machine, where the processes of a run share one
    tasks: int  # processes of the largest run
    task_gpus: int  # GPUs if every process has its own


def of_job(runs: Sequence[Run], attempt: int = 1) -> Resources:
    """What a job that trains `runs` one after the other asks for; memory and time grow with every attempt."""
    costs = [run.estimate() for run in runs]
    minutes = sum(cost.seconds for cost in costs) / 60
    return Resources(
        threads=max((run.processes * run.runtime.threads for run in runs), default=1),
        mem_mb=SNAKEMAKE_MB + round(attempt * MEMORY_MARGIN * max((cost.memory_mb for cost in costs), default=0)),
        runtime=attempt * (STARTING_MINUTES + round(TIME_MARGIN * minutes)),
        gpu=int(any(run.runtime.kind == "cuda" for run in runs)),
        tasks=max((run.processes for run in runs), default=1),
        task_gpus=max((run.processes * (run.runtime.kind == "cuda") for run in runs), default=0),
    )
