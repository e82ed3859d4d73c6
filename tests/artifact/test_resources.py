"""What jobs ask for: from the plan's estimate, with a margin, more at every attempt."""

from __future__ import annotations

from typing import Any

import pytest

from unlocked.artifact import resources
from unlocked.artifact.resources import of_job


def test_a_job_asks_for_more_than_its_estimate(tiny_run: Any) -> None:
    """Memory of its largest run, time of all of them, both with a margin, and more when it is tried again."""
    runs = [tiny_run(), tiny_run(workers=64)]
    costs = [run.estimate() for run in runs]
    first, second = of_job(runs), of_job(runs, attempt=2)
    assert first.mem_mb > resources.MEMORY_MARGIN * max(cost.memory_mb for cost in costs)
    assert first.runtime * 60 > resources.TIME_MARGIN * sum(cost.seconds for cost in costs)
    assert (second.runtime, second.mem_mb > first.mem_mb) == (2 * first.runtime, True)


@pytest.mark.parametrize(
    ("runtime", "processes", "asked"),
    [
        ({}, False, (1, 0, 1, 0)),
        ({"runtime.threads": 4, "runtime.device": "cuda:1"}, False, (4, 1, 1, 1)),
        ({"runtime.threads": 2}, True, (16, 0, 8, 0)),
        ({"runtime.device": "cuda"}, True, (8, 1, 8, 8)),
    ],
)
def test_cores_and_gpus(tiny_run: Any, runtime: dict[str, Any], processes: bool, asked: tuple[int, ...]) -> None:
    """Threads of a run, for every worker that is a process of its own; GPUs where some run uses one."""
    other = {"engine": "processes", "workers": 8} if processes else {}
    job = of_job([tiny_run({**runtime, **other})])
    assert (job.threads, job.gpu, job.tasks, job.task_gpus) == asked
    assert not processes or job.mem_mb > of_job([tiny_run(workers=8)]).mem_mb
