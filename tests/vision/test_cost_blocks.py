"""Counts of nets in blocks and of their auxiliary nets, by hand, against the real modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unlocked.errors import SettingError
from unlocked.vision import auxiliary, blocks
from unlocked.vision.cost import Cost, count_blocks

SHAPES = [
    {"classes": 10, "channels": 1, "size": 8, "width": 0.125},
    {"classes": 1000, "channels": 3, "size": 32, "width": 0.3},
    {"classes": 10, "channels": 3, "size": 28, "width": 0.02},
]


def measured(module: nn.Module, images: torch.Tensor) -> tuple[Cost, torch.Tensor]:
    """The cost of one sample through a real module, and its outputs."""
    outputs: list[int] = []
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d, nn.Linear)
    handles = [
        layer.register_forward_hook(lambda layer, inputs, output: outputs.append(output.numel()))
        for layer in module.modules()
        if isinstance(layer, kinds)
    ]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        after = module.eval()(images)
    for handle in handles:
        handle.remove()
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2, sum(outputs)), after


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s['channels']}x{s['size']}@{s['width']}")
@pytest.mark.parametrize("kind", auxiliary.names())
@pytest.mark.parametrize("name", blocks.names())
def test_counts_are_those_of_the_modules(name: str, kind: str, shape: dict) -> None:
    if kind == "copy" and name != "resnet18_2":
        pytest.skip("copies of copies are slow to build and add nothing")
    classes, of_images = shape["classes"], {k: shape[k] for k in ("channels", "size", "width")}
    network = blocks.build(name, **of_images, seed=0)
    heads = auxiliary.build_all(kind, network, classes=classes, seed=0)
    counted = count_blocks(name, kind, **shape)
    features = torch.zeros(1, shape["channels"], shape["size"], shape["size"])
    for index, block in enumerate(network.modules):
        cost, features = measured(block, features)
        assert counted.blocks[index] == cost
        head, _ = measured(heads[index], features)
        assert head == (counted.classifier if index == len(network.modules) - 1 else counted.auxiliaries[index])


def test_published_sizes() -> None:
    images = {"classes": 10, "channels": 3, "size": 32}
    assert count_blocks("resnet18_8", "cnn", **images).net.parameters == 11_174_986
    assert count_blocks("resnet18_16", "cnn", **images).net.parameters == 11_001_162
    assert count_blocks("resnet18_2", "copy", **images).net.parameters == 11_174_986


def test_errors_are_settings() -> None:
    shape = {"classes": 10, "channels": 3, "size": 32}
    with pytest.raises(SettingError, match="auxiliary = 'tree'"):
        count_blocks("resnet18_8", "tree", **shape)
    with pytest.raises(SettingError, match="model = 'resnet18'"):
        count_blocks("resnet18", "cnn", **shape)
    with pytest.raises(SettingError, match=r"width = 0\.001"):
        count_blocks("resnet18_8", "cnn", **shape, width=0.001)
