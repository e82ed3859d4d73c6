"""Gradients of many networks in one computation: the same as one network at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked.gossip import stacked
from unlocked.gossip.stacked import Layout, stacked_gradient
from unlocked.vision import models

NETWORKS = {
    "mlp": lambda: models.build("mlp", classes=5, channels=2, size=8, seed=0),
    "conv": lambda: models.build("conv", classes=5, channels=2, size=8, width=0.5, seed=0),
    "odd sizes": lambda: nn.Sequential(
        nn.Conv2d(2, 6, 5, 3, 2, bias=False), nn.GroupNorm(3, 6), nn.ReLU(), nn.Flatten(), nn.Linear(54, 5)
    ),
    "no padding": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2, 1, bias=False),
        nn.Conv2d(3, 4, 3, 2, bias=False),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ),
}
GENERAL = {
    "bias": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    ),
}


def one_by_one(model: nn.Module, flat: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The obvious version."""
    gradients, losses, layout = [], [], Layout(model)
    for row, own, right in zip(flat, images, labels, strict=True):
        for parameter, view in zip(model.parameters(), layout.views(row), strict=True):
            parameter.data = view.clone()
        loss = cross_entropy(model(own), right)
        gradients.append(layout.flatten(torch.autograd.grad(loss, list(model.parameters()))))
        losses.append(loss.detach())
    return torch.stack(gradients), torch.stack(losses)


@pytest.mark.parametrize("name", [*NETWORKS, *GENERAL])
@pytest.mark.parametrize("workers", [1, 3, stacked.CHUNK + 2])
def test_stacked_is_one_by_one(name: str, workers: int) -> None:
    """Every network's gradient and loss to float64 rounding, for known chains and for any other model."""
    model = (NETWORKS | GENERAL)[name]().double()
    assert stacked.is_chain(model) == (name in NETWORKS)
    draws = torch.Generator().manual_seed(1)
    flat = torch.randn(workers, Layout(model).size, generator=draws, dtype=torch.float64)
    images = torch.randn(workers, 4, 2, 8, 8, generator=draws, dtype=torch.float64)
    labels = torch.randint(5, (workers, 4), generator=draws)
    found = stacked_gradient(model)(flat, images, labels)
    assert not found[0].requires_grad
    for mine, reference in zip(found, one_by_one(model, flat, images, labels), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 2, 3, bias=True),
        nn.Conv2d(2, 2, 3, bias=False, groups=2),
        nn.Conv2d(2, 2, 3, bias=False, padding="same"),
        nn.Conv2d(2, 2, (3, 1), bias=False),
        nn.GroupNorm(1, 2, affine=False),
        nn.Linear(3, 3, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Dropout(),
    ],
)
def test_what_is_not_known_is_left_to_torch(layer: nn.Module) -> None:
    """Forms of layers that the fast way does not cover go the general way."""
    assert not stacked.is_chain(nn.Sequential(layer))
