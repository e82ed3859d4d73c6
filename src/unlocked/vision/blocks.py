"""ResNet-18 cut into blocks that can be trained apart.

The classifier is no part of the blocks: it is the last auxiliary net (`unlocked.vision.auxiliary`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlocked.errors import choose
from unlocked.vision.models import RESNET_PLANES, draw_, fresh_weights
from unlocked.vision.networks import IN_BLOCKS, scaled


@dataclass(frozen=True)
class Blocks:
    """A net as a chain of blocks.

    `modules[k]` maps (N, channels of block k - 1, size, size) to (N, `channels[k]`, size or half of it).
    """

    width: float
    norm: str
    modules: nn.ModuleList
    channels: tuple[int, ...]
    init: str = "default"


def build(
    name: str, *, channels: int = 3, width: float = 1.0, norm: str = "batch", init: str = "default",
    seed: int | None = None,
) -> Blocks:  # fmt: skip
    """Build the blocks of a ResNet-18 for small images: 3×3 stem, no max-pooling, convolutions without bias.

    `resnet18_8`: one block per residual block; `resnet18_16`: one block per convolution, without skips;
    `resnet18_2`: the residual blocks in two halves of four. The stem belongs to the first block.
    With the classifier of `auxiliary.build_all`, 10 classes and 3 channels: 11,174,986 parameters, 11,001,162 without
    skips.

    channels: of the images, which are (N, channels, size, size); any size works, strides stop at one pixel.
    width: factor of every layer's channels (1 is the paper's). norm: `batch`, or `group`, where samples of a batch
    do not interact. init: how weights are drawn (`models.draw_`), those of auxiliary nets too. seed: draws them without
    touching the global generators; None draws from them.
    Raises SettingError for an unknown name, or a width that leaves a layer without channels.
    """
    plain = choose("model", name, IN_BLOCKS) == "resnet18_16"
    before = scaled(RESNET_PLANES[0], width)
    units: list[tuple[nn.Module, int]] = []  # with channels of the output
    with fresh_weights(seed, "blocks"):
        stem = _layer(channels, before, 1, norm)
        for stage, planes in enumerate(RESNET_PLANES):
            for position in range(4 if plain else 2):
                stride = 2 if stage > 0 and position == 0 else 1
                after = scaled(planes, width)
                unit = (_layer if plain else ResidualBlock)(before, after, stride, norm)
                units.append((unit if units else nn.Sequential(stem, unit), after))
                before = after
        if init != "default":
            draw_(nn.ModuleList(unit for unit, _ in units), init)
    if name == "resnet18_2":
        units = [(nn.Sequential(*(unit for unit, _ in half)), half[-1][1]) for half in (units[:4], units[4:])]
    modules, all_channels = zip(*units, strict=True)
    return Blocks(width, norm, nn.ModuleList(modules), all_channels, init)


def _layer(before: int, after: int, stride: int, norm: str) -> nn.Sequential:
    """3×3 convolution, normalisation, ReLU: the stem, and one layer of a ResNet-18 whose skips were taken out."""
    convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, normalisation(norm, after), nn.ReLU())


class ResidualBlock(nn.Module):
    """The basic block of ResNet-18 (He et al. 2016): two 3×3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(*_layer(before, after, stride, norm), *_layer(after, after, 1, norm)[:2])
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut.append(nn.Conv2d(before, after, 1, stride, bias=False))
            self.shortcut.append(normalisation(norm, after))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.body(inputs) + self.shortcut(inputs))


def normalisation(norm: str, channels: int) -> nn.Module:
    """The normalisation layer `norm` (`batch` or `group`) for `channels` channels.

    Groups: at most 8, of 4 channels or more, so that a group still has something to normalise at one pixel.
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    groups = max(g for g in range(1, 9) if channels % g == 0 and (g == 1 or channels // g >= 4))
    return nn.GroupNorm(groups, channels)
