"""What the tests of gossip share: trainings driven without the loop, and float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from unlocked.artifact.train import training_of
from unlocked.gossip.workers import Streams


@pytest.fixture(scope="session")
def train_of(data_of: Callable[..., Any]) -> Callable[..., Any]:
    """The training of a run, its data loaded."""
    return lambda run: training_of(run, data_of(run))


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All parameters and images in float64, so that executions must agree to far below any real difference."""
    single = Streams.batches

    def batches(self: Streams, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = single(self, *arguments)
        return images.double(), labels

    monkeypatch.setattr(Streams, "batches", batches)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
