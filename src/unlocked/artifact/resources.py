"""What a training job asks of a machine or a scheduler: cores, memory, time, GPUs, from the plan's estimates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlocked.errors import SettingError
from unlocked.papers.run import Run
from unlocked.units import human_bytes, human_time

MEMORY_MARGIN = 2.0  # of the estimate, which is good to a factor of about two
TIME_MARGIN = 3.0
STARTING_MINUTES = 10  # a node's first import of torch from a network file system, and the data set
MOST_DAYS = 30  # that a run may be expected to take
LIMITS = [
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
]  # of a container or a job
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


def memory_of_machine() -> int:
    """Bytes of main memory that this process and its children may have."""
    import psutil

    texts = (path.read_text().strip() for path in LIMITS if path.is_file())
    return min([psutil.virtual_memory().total, *(int(text) for text in texts if text.isdigit())])


def refuse_excess(run: Run, processes: int) -> None:
    """`SettingError` with the estimate for a run that takes more than this machine has, with `processes` of it here."""
    cost, have, cores = run.estimate(), memory_of_machine(), os.cpu_count() or 1
    need, force = cost.memory_mb * 2**20 * processes / run.processes, "or --runtime force=true"
    if run.runtime.threads > cores:
        raise SettingError(
            "runtime.threads", run.runtime.threads, f"this machine has {cores} cores: use as many, {force}"
        )
    if need > have:
        right = (
            f"takes about {human_bytes(need)} of memory, this machine has {human_bytes(have)}: make it smaller, {force}"
        )
        raise SettingError("run", run.id, right)
    if cost.seconds > MOST_DAYS * 86400:
        right = f"takes about {human_time(cost.seconds)}, more than {MOST_DAYS} days: make it smaller, {force}"
        raise SettingError("run", run.id, right)
