"""Gradients of many networks in one computation: the same as one network at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from unlocked.gossip import stacked
from unlocked.gossip.workers import flat_parameters
from unlocked.vision import models

SHAPE: dict[str, Any] = {"classes": 5, "channels": 2, "size": 8, "seed": 0}
CHAINS = {
    "mlp": lambda: models.build("mlp", **SHAPE),
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 5)),
}
OTHERS = {
    "conv": lambda: models.build("conv", **SHAPE, width=0.5),
    "tanh": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    ),
}


@pytest.mark.parametrize("name", [*CHAINS, *OTHERS])
@pytest.mark.parametrize("workers", [1, 3, stacked.CHUNK + 2])
def test_stacked_is_one_by_one(name: str, workers: int) -> None:
    model = (CHAINS | OTHERS)[name]().double()
    assert (stacked.chain(model) is not None) == (name in CHAINS)
    draws = torch.Generator().manual_seed(1)
    flat = torch.randn(workers, len(flat_parameters(model)), generator=draws, dtype=torch.float64)
    images = torch.randn(workers, 4, 2, 8, 8, generator=draws, dtype=torch.float64)
    labels = torch.randint(5, (workers, 4), generator=draws)
    gradients, losses = stacked.stacked_gradient(model)(flat, images, labels)
    assert not gradients.requires_grad
    for k in range(workers):
        vector_to_parameters(flat[k], model.parameters())
        loss = cross_entropy(model(images[k]), labels[k])
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        torch.testing.assert_close(gradients[k], gradient, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(losses[k], loss.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "layers",
    [[nn.Linear(3, 3)], [nn.Flatten(2)], [nn.Flatten(), nn.Linear(3, 3, bias=False)], [nn.Flatten(), nn.Dropout()], []],
)
def test_what_is_not_known_is_left_to_torch(layers: list[nn.Module]) -> None:
    assert stacked.chain(nn.Sequential(*layers)) is None
