"""What the tests of the engine of processes share: short runs on the digits, driven as the training loop does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from omegaconf import DictConfig

from unlocked.gossip.processes.training import Training
from unlocked.loop import Measurement

BATCHES = 1437 // 8  # of the digits in an epoch
Drive = Callable[..., list[Measurement]]


@pytest.fixture
def short(tiny_run: Any) -> Callable[..., DictConfig]:
    """A factory of runs of this engine with so many gradients over all workers."""

    def make(gradients: int, changes: dict[str, Any] | None = None, **more: Any) -> DictConfig:
        settings = {"engine": "processes", "optim.epochs": (gradients + 0.5) / BATCHES, "runtime.timeout": 20}
        return tiny_run(settings | {"evaluation.points": 2} | (changes or {}) | more)

    return make


@pytest.fixture
def started(data_of: Any) -> Iterator[Callable[[DictConfig], Training]]:
    """A factory of trainings whose processes are gone when the test ends."""
    made: list[Training] = []

    def make(run: DictConfig) -> Training:
        made.append(Training(run, data_of(run)))
        return made[-1]

    yield make
    for training in made:
        training.close()


@pytest.fixture
def drive() -> Drive:
    """Train to the end, evaluating where the run says so; `each` is called with the number of gradients so far."""

    def go(training: Training, each: Callable[[int], None] = lambda count: None) -> list[Measurement]:
        found = [training.measure(0)]
        for span in range(training.spans):
            for count, _ in enumerate(training.advance(span, 0), training.bounds[span] + 1):
                each(count)
            found.append(training.measure(span + 1))
        training.close()
        return found

    return go
