"""Models: shapes, sizes, equality with torchvision where there is something to equal, seeded initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlocked.vision import models
from unlocked.vision.networks import WHOLE


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(("channels", "size", "width"), [(1, 8, 0.25), (3, 32, 0.125), (2, 65, 0.07)])
def test_logits_have_a_row_per_image_and_gradients_reach_every_parameter(
    name: str, channels: int, size: int, width: float
) -> None:
    model = models.build(name, classes=7, channels=channels, size=size, width=width, seed=0)
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_resnet18_for_cifar_has_the_known_size() -> None:
    model = models.build("resnet18", classes=10, channels=3, size=32)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962
    assert isinstance(model.maxpool, nn.Identity)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_large_resnets_are_torchvisions(name: str) -> None:
    from torchvision.models import get_model

    reference = get_model(name, num_classes=12).eval()
    model = models.build(name, classes=12, channels=3, size=96).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(images), reference(images), rtol=0, atol=0)


def test_seed_decides_the_initialisation_and_leaves_the_global_generator_alone() -> None:
    def weights(seed: int | None) -> torch.Tensor:
        model = models.build("conv", classes=10, channels=1, size=8, seed=seed)
        return nn.utils.parameters_to_vector(model.parameters())

    state = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(99)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))
    assert not torch.equal(weights(None), weights(None))
