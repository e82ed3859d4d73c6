"""What jobs ask for: from the plan's estimate, with a margin, more at every attempt."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from unlocked import plan, resources
from unlocked.resources import Resources, of_job

MakeRun = Callable[..., DictConfig]


def test_a_job_asks_for_more_than_its_estimate(tiny_run: MakeRun) -> None:
    """Memory of its largest run, time of all of them, both with a margin, and more when it is tried again."""
    runs = [tiny_run(), tiny_run(workers=64)]
    costs = [plan.estimate(run) for run in runs]
    first, second = of_job(runs), of_job(runs, attempt=2)
    assert first.mem_mb > resources.MEMORY_MARGIN * max(cost.memory_mb for cost in costs)
    assert first.runtime * 60 > resources.TIME_MARGIN * sum(cost.seconds for cost in costs)
    assert second.runtime == 2 * first.runtime
    assert second.mem_mb > first.mem_mb


def test_a_gpu_only_where_one_is_used(tiny_run: MakeRun) -> None:
    """By the device of the runs."""
    assert of_job([tiny_run()]).gpu == 0
    assert of_job([tiny_run({"runtime.device": "cuda"})]).gpu == 1
    assert of_job([tiny_run({"runtime.device": "cuda:1"})]).gpu == 1


def test_cores_of_threads_and_processes(tiny_run: MakeRun) -> None:
    """Threads of a run, for every worker that is a process of its own."""
    assert of_job([tiny_run()]).threads == 1
    assert of_job([tiny_run({"runtime.threads": 4})]).threads == 4
    alone = tiny_run({"engine": "processes", "runtime.threads": 2}, workers=8)
    assert of_job([alone]).threads == 16
    assert of_job([alone]).mem_mb > of_job([tiny_run(workers=8)]).mem_mb
    assert (of_job([alone]).tasks, of_job([alone]).task_gpus) == (8, 0)
    on_gpus = of_job([tiny_run({"engine": "processes", "runtime.device": "cuda"}, workers=8)])
    assert (on_gpus.gpu, on_gpus.task_gpus) == (1, 8)


def test_the_largest_request() -> None:
    """Every part by itself, zeros for nothing."""
    one, other = Resources(1, 5, 2, 0, 1, 0), Resources(3, 4, 1, 1, 2, 2)
    assert resources.most([one, other]) == Resources(3, 5, 2, 1, 2, 2)
    assert resources.most([]) == Resources(0, 0, 0, 0, 0, 0)
