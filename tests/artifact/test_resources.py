"""What jobs ask for: from the plan's estimate, with a margin, more at every attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unlocked.artifact import resources, train
from unlocked.artifact.plan import Plan
from unlocked.artifact.resources import of_job
from unlocked.errors import SettingError


def test_a_job_asks_for_more_than_its_estimate(tiny_run: Any) -> None:
    """Memory of its largest run, time of all of them, both with a margin, and more when it is tried again."""
    runs = [tiny_run(), tiny_run(workers=64)]
    costs = [run.estimate() for run in runs]
    first, second = of_job(runs), of_job(runs, attempt=2)
    assert first.mem_mb > resources.MEMORY_MARGIN * max(cost.memory_mb for cost in costs)
    assert first.runtime * 60 > resources.TIME_MARGIN * sum(cost.seconds for cost in costs)
    assert (second.runtime, second.mem_mb > first.mem_mb) == (2 * first.runtime, True)


GB = 10**9
RESNET = {"data.name": "fashion_mnist", "model.name": "resnet18", "optim.batch_size": 128}
EXCESS: list[tuple[dict[str, Any], str]] = [
    ({"runtime.threads": 5}, "4 cores"),
    ({"data.size": 4096}, "GB of memory, this machine has 8.0 GB"),
    ({"model.name": "resnet18", "model.width": 64}, "GB of memory"),
    ({"workers": 100_000, "optim.epochs": 600}, "GB of memory"),
    ({"workers": 100_000, "optim.epochs": 600, "method": "baseline", "graph": "complete"}, "GB of memory"),
    ({"engine": "processes", "workers": 100}, "GB of memory"),
    ({"optim.epochs": 1e6}, "of memory"),
    ({"rate": 1e6}, "of memory"),
    ({"study": "quadratic", "quadratic.dimension": 10_000_000, "workers": 64}, "GB of memory"),
    ({"study": "quadratic", "quadratic.horizon": 1e9}, "GB of memory"),
    ({"study": "averaging", "quadratic.horizon": 1e9, "rate": 1e-9}, "GB of memory"),
    ({"study": "averaging", "rate": 1e6}, "GB of memory"),
    (RESNET | {"optim.epochs": 10_000}, " d, more than 30 days"),
    (RESNET | {"optim.epochs": 500, "evaluation.points": 100_000}, " d, more than 30 days"),
    (RESNET | {"evaluation.recalibration_batches": 100_000, "evaluation.points": 20}, " d, more than 30 days"),
]  # fmt: skip


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 GB, 4 cores."""
    monkeypatch.setattr(resources, "memory_of_machine", lambda: 8 * GB)
    monkeypatch.setattr("os.cpu_count", lambda: 4)


@pytest.mark.usefixtures("small_machine")
@pytest.mark.parametrize(("settings", "says"), EXCESS, ids=str)
def test_what_a_machine_does_not_have_is_refused_before_it_starts(
    tiny_run: Any, results: Path, settings: dict[str, Any], says: str
) -> None:
    """One line with the estimate and the way out; nothing is written."""
    run = tiny_run(settings)
    with pytest.raises(SettingError) as caught:
        train.train([tiny_run(), run], results)
    assert "\n" not in str(caught.value)
    assert says in str(caught.value)
    assert "--runtime force=true" in str(caught.value)
    assert not results.exists()
    train.check_machine(tiny_run({**settings, "runtime.force": True}))


@pytest.mark.usefixtures("small_machine")
def test_what_a_machine_has_is_not_refused(tiny_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the quick and reduced scales; of processes that others started only this one counts."""
    for scale in ("quick", "reduced"):
        for run in Plan(scale).runs.values():
            train.check_machine(run)
    run = tiny_run({"engine": "processes", "workers": 100})
    monkeypatch.setattr(train.places, "place", lambda: object())
    train.check_machine(run)


def test_the_memory_of_a_job_is_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest of the machine's and of those that a container or a scheduler sets; `max` is no limit."""
    limits = [tmp_path / "max", tmp_path / "bytes", tmp_path / "missing"]
    limits[0].write_text("max\n")
    monkeypatch.setattr(resources, "LIMITS", limits)
    whole = resources.memory_of_machine()
    assert whole > 0
    limits[1].write_text(f"{whole // 2}\n")
    assert resources.memory_of_machine() == whole // 2


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
