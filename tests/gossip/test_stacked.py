"""Gradients of many networks in one computation, and chains without autograd: the same as one network at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

from unlocked.gossip import stacked
from unlocked.gossip.workers import flat_parameters
from unlocked.vision import models

SHAPE: dict[str, Any] = {"classes": 5, "channels": 2, "size": 8, "seed": 0}
CHAINS = {
    "mlp": lambda: models.build("mlp", **SHAPE),
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 5)),
    "not all rectified": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(128, 9), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU()
    ),
}
OTHERS = {
    "conv": lambda: models.build("conv", **SHAPE, width=0.5),
    "tanh": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)
    ),
}


def problem(model: nn.Module, workers: int, batch: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters, images and labels of so many workers."""
    draws, like = torch.Generator().manual_seed(1), flat_parameters(model)
    flat = torch.randn(workers, len(like), generator=draws, dtype=like.dtype) / 4
    images = torch.randn(workers, batch, 2, 8, 8, generator=draws, dtype=like.dtype)
    return flat, images, torch.randint(5, (workers, batch), generator=draws)


def by_autograd(model: nn.Module, flat: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and loss of one network."""
    vector_to_parameters(flat, model.parameters())
    loss = cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients]), loss.detach()


@pytest.mark.parametrize("name", [*CHAINS, *OTHERS])
@pytest.mark.parametrize("workers", [1, 3, 18])
def test_stacked_is_one_by_one(name: str, workers: int) -> None:
    model = (CHAINS | OTHERS)[name]().double()
    assert (stacked.chain(model) is not None) == (name in CHAINS)
    flat, images, labels = problem(model, workers)
    gradients = torch.empty_like(flat)
    losses = stacked.stacked_gradient(model)(flat, images, labels, gradients)
    assert not gradients.requires_grad
    for k in range(workers):
        gradient, loss = by_autograd(model, flat[k], images[k], labels[k])
        torch.testing.assert_close(gradients[k], gradient, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(losses[k], loss, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("batch", [3, 16])
@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_gives_the_bits_of_autograd(name: str, batch: int) -> None:
    """In float32, for one network: the same products of the same matrices."""
    model = CHAINS[name]()
    known = stacked.chain(model)
    assert known is not None
    for flat, images, labels in zip(*problem(model, 5, batch), strict=True):
        loss = known.gradient_(flat, images, labels, gradient := torch.empty_like(flat))
        expected, expected_loss = by_autograd(model, flat, images, labels)
        assert expected.norm() > 0.1
        assert torch.equal(gradient, expected)
        assert torch.equal(loss, expected_loss)


@pytest.mark.parametrize(
    "layers",
    [[nn.Linear(3, 3)], [nn.Flatten(2)], [nn.Flatten(), nn.Linear(3, 3, bias=False)], [nn.Flatten(), nn.Dropout()],
     [nn.Flatten(), nn.ReLU(), nn.Linear(3, 3)], [nn.Flatten(), nn.Linear(3, 3), nn.Tanh()], [nn.Flatten()], []],
)  # fmt: skip
def test_what_is_not_known_is_left_to_torch(layers: list[nn.Module]) -> None:
    assert stacked.chain(nn.Sequential(*layers)) is None
