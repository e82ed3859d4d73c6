"""Counts by hand against the real models: parameters and multiply-adds exactly, activations by watching layers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unlocked.errors import SettingError
from unlocked.vision import models
from unlocked.vision.cost import Cost, count

SHAPES = [
    {"classes": 10, "channels": 1, "size": 8, "width": 0.5},
    {"classes": 10, "channels": 3, "size": 32, "width": 1.0},
    {"classes": 100, "channels": 2, "size": 14, "width": 0.13},
    {"classes": 10, "channels": 3, "size": 65, "width": 0.25},
    {"classes": 1000, "channels": 3, "size": 224, "width": 1.0},
]


def measured(name: str, shape: dict) -> Cost:
    """The cost of one sample through the real model, on tensors without storage."""
    with torch.device("meta"):
        model = models.build(name, **shape).eval()
        images = torch.empty(1, shape["channels"], shape["size"], shape["size"])
    outputs: list[int] = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.Linear)):
            module.register_forward_hook(lambda module, inputs, output: outputs.append(output.numel()))
    with FlopCounterMode(display=False) as counter:
        model(images)
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2, sum(outputs))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s['channels']}x{s['size']}@{s['width']}")
@pytest.mark.parametrize("name", models.names())
def test_counts_are_those_of_the_model(name: str, shape: dict) -> None:
    assert count(name, **shape) == measured(name, shape)


def test_known_sizes() -> None:
    assert count("resnet18", classes=10, channels=3, size=32).parameters == 11_173_962
    assert count("resnet50", classes=1000, channels=3, size=224).parameters == 25_557_032
    assert count("resnet50", classes=1000, channels=3, size=224).forward_macs == pytest.approx(4.09e9, rel=0.01)


def test_errors_are_settings() -> None:
    with pytest.raises(SettingError, match="model = 'vgg'"):
        count("vgg", classes=10, channels=3, size=32)
    with pytest.raises(SettingError, match=r"width = 0\.001"):
        count("conv", classes=10, channels=3, size=32, width=0.001)


def test_counting_needs_no_torch() -> None:
    code = "import sys, unlocked.vision.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
