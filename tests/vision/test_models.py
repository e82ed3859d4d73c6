"""Models: shapes, sizes, equality with torchvision where there is something to equal, seeded initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlocked.errors import SettingError
from unlocked.vision import models


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_names() -> None:
    assert models.names() == ("mlp", "conv", "resnet18", "resnet50")
    with pytest.raises(SettingError, match="model = 'vgg'"):
        models.build("vgg", classes=10, channels=3, size=32)


@pytest.mark.parametrize("name", models.names())
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
    assert parameters(model) == 11_173_962
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


@pytest.mark.parametrize("name", models.names())
def test_width_scales_every_layer(name: str) -> None:
    model = models.build(name, classes=10, channels=3, size=32, width=0.25)
    full = models.build(name, classes=10, channels=3, size=32)
    narrow = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    wide = [module.out_channels for module in full.modules() if isinstance(module, nn.Conv2d)]
    assert [4 * channels for channels in narrow] == wide
    assert parameters(full) / parameters(model) > 3.5


@pytest.mark.parametrize("width", [0.001, 0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", models.names())
def test_width_must_leave_a_channel(name: str, width: float) -> None:
    with pytest.raises(SettingError, match="width = "):
        models.build(name, classes=10, channels=3, size=32, width=width)


def test_width_that_is_not_a_multiple_of_the_groups_still_normalises() -> None:
    model = models.build("conv", classes=10, channels=1, size=8, width=0.33)
    norms = [module for module in model.modules() if isinstance(module, nn.GroupNorm)]
    assert [(n.num_groups, n.num_channels) for n in norms] == [(1, 5), (1, 11), (1, 21)]


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


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_small_models_can_be_stacked(name: str) -> None:
    """Workers are trained as one batched model: vmap over stacked weights must equal the loop."""
    nets = [models.build(name, classes=4, channels=1, size=8, width=0.5, seed=s) for s in range(3)]
    weights, buffers = torch.func.stack_module_state(nets)
    images = torch.randn(3, 5, 1, 8, 8)

    def forward(weights: dict, buffers: dict, images: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(nets[0], (weights, buffers), (images,))

    stacked = torch.func.vmap(forward)(weights, buffers, images)
    looped = torch.stack([net(part) for net, part in zip(nets, images, strict=True)])
    torch.testing.assert_close(stacked, looped, rtol=1e-4, atol=1e-5)
