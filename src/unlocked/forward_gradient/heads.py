"""Auxiliary nets for blocks of one's own: one for every shape that a block gives, drawn from torch's generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlocked.errors import SettingError
from unlocked.forward_gradient.passes import frozen_statistics
from unlocked.vision import auxiliary

Shape = Sequence[int]  # of one sample: (features,) or (channels, height, width)


def shapes(blocks: Sequence[nn.Module], inputs: Tensor) -> list[torch.Size]:
    """The shape of one sample at the output of every block but the last, for a batch of `inputs`; nothing changes."""
    found = []
    with torch.no_grad(), frozen_statistics(*blocks):
        for block in list(blocks)[:-1]:
            inputs = block(inputs)
            found.append(inputs.shape[1:])
    return found


def linear(given: Sequence[Shape], classes: int) -> list[nn.Module]:
    """Normalisation, pooling to 2×2 and one linear layer; of plain features one linear layer."""
    return [_head("linear", shape, classes, 1) if len(shape) > 1 else nn.Linear(shape[0], classes) for shape in given]


def cnn(given: Sequence[Shape], classes: int, hidden: int = 32) -> list[nn.Module]:
    """The paper's convolutional net of `hidden` channels, for maps (channels, height, width)."""
    return [_head("cnn", shape, classes, hidden) for shape in given]


def mlp(given: Sequence[Shape], classes: int, hidden: int = 1024) -> list[nn.Module]:
    """Three dense layers of `hidden` units with ReLU and a linear one; maps are pooled to 2×2 first."""
    return [
        _head("mlp", shape, classes, hidden) if len(shape) > 1 else _dense(shape[0], classes, hidden) for shape in given
    ]


def _head(name: str, shape: Shape, classes: int, hidden: int) -> nn.Module:
    if len(shape) != 3:
        right = "must be (channels, height, width)" + ", or (features,)" * (name != "cnn")
        raise SettingError("shape", tuple(shape), right)
    return auxiliary.build(name, channels=shape[0], classes=classes, hidden=hidden, norm="batch")


def _dense(features: int, classes: int, hidden: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before in (features, hidden, hidden):
        layers += [nn.Linear(before, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))
