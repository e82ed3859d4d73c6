"""The nets in blocks: sizes, widths, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlocked.errors import SettingError
from unlocked.vision import auxiliary, blocks


@pytest.mark.parametrize(
    ("name", "count", "parameters"),
    [("resnet18_8", 8, 11_174_986), ("resnet18_16", 16, 11_001_162), ("resnet18_2", 2, 11_174_986)],
)
def test_full_width_parameters(name: str, count: int, parameters: int) -> None:
    net = blocks.build(name, seed=0)
    head = auxiliary.classifier(net.channels[-1], classes=10)
    assert len(net.modules) == len(net.channels) == len(net.sizes) == count
    assert sum(p.numel() for p in (*net.modules.parameters(), *head.parameters())) == parameters


@pytest.mark.parametrize("name", blocks.names())
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (2, 5), (1, 1)])
def test_stated_shapes_are_the_outputs_shapes(name: str, norm: str, channels: int, size: int) -> None:
    net = blocks.build(name, channels=channels, size=size, width=1 / 8, norm=norm, seed=0)
    values = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    for module, after, pixels in zip(net.modules, net.channels, net.sizes, strict=True):
        values = module(values)
        assert values.shape == (3, after, pixels, pixels)
    assert net.channels[-1] == 64


def test_sixteen_blocks_have_no_skips() -> None:
    net = blocks.build("resnet18_16", width=1 / 8, seed=0)
    assert all(sum(isinstance(m, nn.Conv2d) for m in block.modules()) == 1 for block in net.modules[1:])


def test_with_group_norm_samples_do_not_interact() -> None:
    net = blocks.build("resnet18_8", channels=1, size=8, width=1 / 8, norm="group", seed=0)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = nn.Sequential(*net.modules)
    torch.testing.assert_close(whole(images)[:2], whole(images[:2]))
    assert whole(images).std() > 0  # at one pixel a group still holds several values


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator() -> None:
    kept = torch.get_rng_state()
    one, same, other = (blocks.build("resnet18_8", width=1 / 16, seed=seed).modules.state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), kept)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.0.0.weight"], other["0.0.0.weight"])


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"name": "resnet18_4"}, "model"),
        ({"name": "resnet18_8", "width": 0.001}, "width"),
        ({"name": "resnet18_8", "width": 0.0}, "width"),
        ({"name": "resnet18_8", "norm": "layer"}, "norm"),
        ({"name": "resnet18_8", "channels": 0}, "channels, size"),
        ({"name": "resnet18_8", "size": 0}, "channels, size"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: dict, setting: str) -> None:
    with pytest.raises(SettingError) as raised:
        blocks.build(**settings)
    assert raised.value.setting == setting
    assert "\n" not in str(raised.value)
