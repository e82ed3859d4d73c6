"""Auxiliary nets for blocks of one's own: one for every shape that a block gives, drawn from torch's generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unlocked.errors import SettingError
from unlocked.forward_gradient.passes import chain
from unlocked.vision import auxiliary
from unlocked.vision.models import dense

Shape = Sequence[int]  # of one sample: (features,) or (channels, height, width)


def shapes(blocks: Sequence[nn.Module], inputs: Tensor) -> list[torch.Size]:
    """The shape of one sample at the output of every block but the last, for a batch of `inputs`; nothing changes."""
    return [features.shape[1:] for features in chain(blocks, inputs)[1:]]


def linear(given: Sequence[Shape], classes: int) -> list[nn.Module]:
    """Normalisation, pooling to 2×2 and one linear layer; of plain features one linear layer."""
    return [_head("linear", shape, classes) for shape in given]


def cnn(given: Sequence[Shape], classes: int, hidden: int = 32) -> list[nn.Module]:
    """The paper's convolutional net of `hidden` channels, for maps (channels, height, width)."""
    return [_head("cnn", shape, classes, hidden) for shape in given]


def mlp(given: Sequence[Shape], classes: int, hidden: int = 1024) -> list[nn.Module]:
    """Three dense layers of `hidden` units with ReLU and a linear one; maps are pooled to 2×2 first."""
    return [_head("mlp", shape, classes, hidden) for shape in given]


def _head(name: str, shape: Shape, classes: int, hidden: int = 0) -> nn.Module:
    if len(shape) == 1 and name != "cnn":
        return nn.Linear(*shape, classes) if name == "linear" else dense(*shape, hidden, hidden, hidden, classes)
    if len(shape) != 3:
        right = "must be (channels, height, width)" + ", or (features,)" * (name != "cnn")
        raise SettingError("shape", tuple(shape), right)
    return auxiliary.build(name, channels=shape[0], classes=classes, hidden=hidden, norm="batch")
