"""ResNet-18 cut into blocks that can be trained apart, for forward gradients.

Stands under `train` on the road configs -> plan -> train -> record -> item: the forward-gradient trainer builds its
net here and one auxiliary net per block in `unlocked.vision.auxiliary`. The classifier is no part of the blocks: it is
the last auxiliary net.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlocked import seeding
from unlocked.errors import SettingError, choose

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # channels at width 1 and stride of ResNet-18's four stages
_LAYERS_PER_STAGE = {"resnet18_8": 2, "resnet18_16": 4, "resnet18_2": 2}
_NORMS = ("batch", "group")


@dataclass(frozen=True)
class Blocks:
    """A net as a chain of blocks.

    `modules[k]` maps (N, channels of block k - 1, size, size) to (N, `channels[k]`, `sizes[k]`, `sizes[k]`).
    """

    name: str
    width: float
    norm: str
    modules: nn.ModuleList
    channels: tuple[int, ...]
    sizes: tuple[int, ...]


def names() -> tuple[str, ...]:
    """The nets that `build` knows; the number is that of the blocks."""
    return tuple(_LAYERS_PER_STAGE)


def build(
    name: str, *, channels: int = 3, size: int = 32, width: float = 1.0, norm: str = "batch", seed: int | None = None
) -> Blocks:
    """Build the blocks of a ResNet-18 for small images: 3×3 stem, no max-pooling, convolutions without bias.

    `resnet18_8`: one block per residual block; `resnet18_16`: one block per convolution, without skips;
    `resnet18_2`: the residual blocks in two halves of four. The stem belongs to the first block.
    With the classifier of `auxiliary.build_all`, 10 classes and 3 channels: 11,174,986 parameters, 11,001,162 without
    skips.

    channels, size: of the images, which are (N, channels, size, size); any size works, strides stop at one pixel.
    width: factor of every layer's channels (1 is the paper's). norm: `batch`, or `group`, where samples of a batch
    do not interact. seed: draws the weights without touching the global generators; None draws from them.
    Raises SettingError for an unknown name or norm, or a width that leaves a layer without channels.
    """
    layers_per_stage = _LAYERS_PER_STAGE[choose("model", name, names())]
    choose("norm", norm, _NORMS)
    if channels < 1 or size < 1:
        raise SettingError("channels, size", (channels, size), "images need at least one channel and one pixel")
    widths = [_scaled(stage, width) for stage, _ in _STAGES]
    kind = PlainBlock if name == "resnet18_16" else ResidualBlock
    units: list[nn.Module] = []
    with fresh_weights(seed, "blocks"):
        stem = Stem(channels, widths[0], norm)
        before = widths[0]
        for after, (_, stride) in zip(widths, _STAGES, strict=True):
            for position in range(layers_per_stage):
                units.append(kind(before, after, stride if position == 0 else 1, norm))
                before = after
    units[0] = nn.Sequential(stem, units[0])
    if name == "resnet18_2":
        units = [nn.Sequential(*units[:4]), nn.Sequential(*units[4:])]
    return Blocks(name, width, norm, nn.ModuleList(units), *_shapes(name, widths, size))


class Stem(nn.Sequential):
    """3×3 convolution, normalisation, ReLU on the image."""

    def __init__(self, before: int, after: int, norm: str) -> None:
        super().__init__(nn.Conv2d(before, after, 3, padding=1, bias=False), normalisation(norm, after), nn.ReLU())


class PlainBlock(nn.Sequential):
    """3×3 convolution, normalisation, ReLU: one layer of a ResNet-18 whose skips were taken out."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        super().__init__(convolution, normalisation(norm, after), nn.ReLU())


class ResidualBlock(nn.Module):
    """The basic block of ResNet-18 (He et al. 2016): two 3×3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            normalisation(norm, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            normalisation(norm, after),
        )
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
    if choose("norm", norm, _NORMS) == "batch":
        return nn.BatchNorm2d(channels)
    groups = max(g for g in range(1, 9) if channels % g == 0 and (g == 1 or channels // g >= 4))
    return nn.GroupNorm(groups, channels)


@contextmanager
def fresh_weights(seed: int | None, *names: str | int, parameters: Iterable[Tensor] = ()) -> Iterator[None]:
    """Draw what is drawn inside from `seed` and `names`, and leave torch's global generators as they were.

    With seed None the draws come from the global generators. parameters: tensors drawn in place inside; the generators
    of their devices are kept too.
    """
    if seed is None:
        yield
        return
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seeding.integer(seed, *names))
        yield


def _scaled(channels: int, width: float) -> int:
    scaled = round(channels * width)
    if scaled < 1:
        raise SettingError("width", width, f"a layer of {channels} channels would keep none; take {1 / channels:g} up")
    return scaled


def _shapes(name: str, widths: list[int], size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels and pixels along one side at the output of every block."""
    channels, sizes = [], []
    for after, (_, stride) in zip(widths, _STAGES, strict=True):
        size = (size - 1) // stride + 1
        channels += [after] * _LAYERS_PER_STAGE[name]
        sizes += [size] * _LAYERS_PER_STAGE[name]
    if name == "resnet18_2":
        channels, sizes = channels[3::4], sizes[3::4]
    return tuple(channels), tuple(sizes)
