"""The paper's own settings, cut to a few gradients: its networks and image sizes, on images made of noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trainings import advance_all

from unlocked.artifact.train import training_of
from unlocked.papers.acid.paper import kind_of
from unlocked.settings import build, nest
from unlocked.vision.data import Dataset, Split

pytestmark = pytest.mark.slow

FEW = {
    "workers": 4,
    "optim.batch_size": 2,
    "optim.epochs": 1.0,
    "optim.warmup_epochs": 0.5,
    "data.train_limit": 16,
    "data.test_limit": 4,
    "evaluation.points": 1,
    "evaluation.recalibration_batches": 2,
    "evaluation.train_limit": 4,
}
IMAGENET = {
    "data.name": "imagenet",
    "model.name": "resnet50",
    "optim.epochs": 0.5,
    "optim.milestones": [1 / 3, 2 / 3, 8 / 9],
    "data.test_limit": 2,
    "evaluation.train_limit": 2,
    "evaluation.workers": "never",
}


def noise(name: str, size: int) -> Dataset:
    """16 images to train and 4 to test, augmented."""
    draws = torch.Generator().manual_seed(0)
    pixels, labels = torch.randint(256, (20, 3, size, size), generator=draws), torch.randint(10, (20,), generator=draws)
    train, test = (
        Split(pixels[part].byte(), labels[part], (0.5,) * 3, (0.29,) * 3, "crop_flip", 4)
        for part in (slice(16), slice(16, 20))
    )
    return Dataset(name, train, test, 10, 3, size, "noise", "none")


def metrics_of(data: Dataset, settings: dict[str, Any], gradients: int) -> dict[str, Any]:
    """Train a run of the paper's settings; its metrics, after a look at what every such run has."""
    run = build(kind_of(settings), nest(FEW | settings))
    training: Any = training_of(run, data)
    advance_all(training)
    metrics, counts = training.measure(training.spans).metrics, training.counts()
    assert counts["gradients"] == gradients
    assert np.isfinite([metrics["train_loss"], metrics["test_loss"]]).all()
    right = metrics["test_accuracy"] * len(data.test)
    assert right == pytest.approx(round(right))
    if run.method != "allreduce":
        assert metrics["consensus_distance"] > 0
        assert counts["communications"] > 0
    return metrics


@pytest.mark.parametrize(
    "cell",
    [
        {"method": "acid", "graph": "ring"},
        {"method": "acid", "graph": "exponential"},
        {"method": "baseline", "graph": "ring", "rate": 2.0},
        {"method": "baseline", "graph": "exponential"},
        {"method": "baseline", "graph": "complete"},
        {"method": "allreduce"},
    ],
)
def test_cifar10_cells(cell: dict[str, Any]) -> None:
    """ResNet-18 at 32×32, crops and flips."""
    metrics = metrics_of(noise("cifar10", 32), cell, gradients=8)
    assert cell["method"] == "allreduce" or 0 <= metrics["worker_test_accuracy_min"] <= 1


@pytest.mark.parametrize(
    "cell",
    [
        {"method": "acid", "workers": 4},
        {"method": "acid", "graph": "exponential", "workers": 2},
        {"method": "baseline", "graph": "complete", "workers": 2},
        {"method": "allreduce", "workers": 2},
    ],
)
def test_imagenet_cells(cell: dict[str, Any]) -> None:
    """ResNet-50 at 224×224: the parameters of a whole network per worker, a few gradients."""
    metrics_of(noise("imagenet", 224), IMAGENET | cell, gradients=4)
