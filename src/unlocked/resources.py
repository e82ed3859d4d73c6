"""What a training job asks of a machine or a scheduler: cores, memory, time, GPUs, from the plan's estimate.

Beside the plan, without torch: the workflow asks it for every job, `unlocked doctor` and docs/cluster.md quote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from unlocked.plan import estimate

MEMORY_MARGIN = 2.0  # of the estimate, which is good to a factor of about two
TIME_MARGIN = 3.0
STARTING_MINUTES = 10  # a node's first import of torch from a network file system, and the data set
SNAKEMAKE_MB = 500  # of Snakemake itself, which runs twice inside a Slurm job (measured: 2 x 240)
PROCESS_MB = 600  # of a process with torch and nothing else; the estimate holds one


@dataclass(frozen=True)
class Resources:
    """Of one job, in the units of Snakemake's resources."""

    threads: int  # cores
    mem_mb: int  # main memory
    runtime: int  # minutes
    gpu: int
    tasks: int  # processes of the largest run
    task_gpus: int  # GPUs if every process has its own


def of_job(runs: Sequence[DictConfig], attempt: int = 1) -> Resources:
    """What a job that trains `runs` one after the other asks for; memory and time grow with every attempt."""
    costs = [estimate(run) for run in runs]
    memory = max(cost.memory_mb + PROCESS_MB * (processes(run) - 1) for cost, run in zip(costs, runs, strict=True))
    minutes = sum(cost.seconds for cost in costs) / 60
    return Resources(
        threads=max(processes(run) * int(run.runtime.threads) for run in runs),
        mem_mb=SNAKEMAKE_MB + round(attempt * MEMORY_MARGIN * memory),
        runtime=attempt * (STARTING_MINUTES + round(TIME_MARGIN * minutes)),
        gpu=max(gpus(run) for run in runs),
        tasks=max(map(processes, runs)),
        task_gpus=max(gpus(run) * processes(run) for run in runs),
    )


def gpus(run: DictConfig) -> int:
    """GPUs of a run on one machine: its processes share one."""
    return int(str(run.runtime.device).startswith("cuda"))


def processes(run: DictConfig) -> int:
    """Processes that a run computes in: one, or one per worker."""
    return int(run.workers) if run.get("engine") == "processes" else 1


def most(jobs: Iterable[Resources]) -> Resources:
    """The largest request in every respect, zeros for no jobs."""
    jobs = list(jobs) or [Resources(0, 0, 0, 0, 0, 0)]
    return Resources(*(max(getattr(job, name) for job in jobs) for name in Resources.__dataclass_fields__))
