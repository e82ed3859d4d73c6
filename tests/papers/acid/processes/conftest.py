"""What the tests of the engine of processes share: short runs on the digits, and trainings that end with their test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from driving import Short, Started

from unlocked.papers.acid.processes.training import ProcessTraining
from unlocked.papers.acid.settings import ProcessRun

BATCHES = 1437 // 8  # of the digits in an epoch


@pytest.fixture
def short(tiny_run: Any) -> Short:
    """A factory of runs of this engine with so many gradients over all workers."""

    def make(gradients: int, changes: dict[str, Any] | None = None) -> ProcessRun:
        settings = {"engine": "processes", "optim.epochs": (gradients + 0.5) / BATCHES, "runtime.timeout": 20}
        return tiny_run(settings | {"evaluation.points": 2} | (changes or {}))

    return make


@pytest.fixture
def started(data_of: Any) -> Iterator[Started]:
    """A factory of trainings whose processes are gone when the test ends."""
    made: list[ProcessTraining] = []

    def make(run: ProcessRun) -> ProcessTraining:
        made.append(ProcessTraining(run, data_of(run)))
        return made[-1]

    yield make
    for training in made:
        training.close()
