"""The models that are trained, from a net of microseconds to torchvision's ResNets.

Road: configs -> plan -> train (vision serves it) -> record -> item.

`build` maps (B, channels, size, size) to logits (B, classes). A new model is one function and its name; its cost
belongs into `cost`, which also holds the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn

from unlocked import seeding
from unlocked.errors import choose
from unlocked.vision import cost
from unlocked.vision.cost import scaled


def build(
    name: str, *, classes: int, channels: int, size: int, width: float = 1.0, seed: int | None = None
) -> nn.Module:
    """A freshly initialised model for images (channels, size, size), on the CPU, in training mode.

    width: factor on the number of channels. seed: of the initialisation, which then neither reads nor moves torch's
    global generator; None draws from the global one.
    Raises `SettingError` if the name is unknown or the width leaves no channel.
    """
    make = _MODELS[choose("model", name, names())]
    with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
        if seed is not None:
            # Unlike torch.manual_seed this leaves the GPUs' generators alone.
            torch.random.default_generator.manual_seed(seeding.integer(seed, "init"))
        return make(classes, channels, size, width)


def _mlp(classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Two hidden layers of 64 × width with ReLU."""
    shapes = [channels * size**2, *(scaled(hidden, width) for hidden in cost.MLP_HIDDEN)]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(shapes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(shapes[-1], classes))


def _conv(classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Three 3×3 convolutions of 16, 32 and 64 × width channels, the last two of stride 2, with GroupNorm and ReLU."""
    layers: list[nn.Module] = []
    inputs = channels
    for planes, stride in zip(cost.CONV_CHANNELS, cost.CONV_STRIDES, strict=True):
        outputs = scaled(planes, width)
        groups = math.gcd(4, outputs)  # four groups where the channels allow it
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.GroupNorm(groups, outputs),
            nn.ReLU(),
        ]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))


class ResNet(nn.Module):
    """torchvision's ResNet out of torchvision's blocks, with a width factor, any number of channels, and two stems.

    torchvision's own class fixes 64, 128, 256, 512 planes and 3 channels. The modules have its names, so that at
    width 1 and with the large stem the weights are interchangeable with torchvision's. Images of up to 64 pixels get
    the stem of the CIFAR ResNets: a 3×3 convolution of stride 1 and no max-pool.
    """

    def __init__(
        self, block: type[nn.Module], blocks: tuple[int, ...], classes: int, channels: int, size: int, width: float
    ) -> None:
        super().__init__()
        planes = [scaled(p, width) for p in cost.RESNET_PLANES]
        small = cost.has_small_stem(size)
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(channels, planes[0], kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(planes[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        inputs = [planes[0], *(p * block.expansion for p in planes)]
        self.layer1 = _stage(block, inputs[0], planes[0], blocks[0], stride=1)
        self.layer2 = _stage(block, inputs[1], planes[1], blocks[1], stride=2)
        self.layer3 = _stage(block, inputs[2], planes[2], blocks[2], stride=2)
        self.layer4 = _stage(block, inputs[3], planes[3], blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs[4], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.fc(self.avgpool(features).flatten(1))


def _stage(block: type[nn.Module], inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` residual blocks; the first changes resolution and channels, through a projection where they differ."""
    outputs = planes * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    rest = (block(outputs, planes) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, planes, stride, shortcut), *rest)


def _resnet18(classes: int, channels: int, size: int, width: float) -> nn.Module:
    from torchvision.models.resnet import BasicBlock

    return ResNet(BasicBlock, cost.RESNET_BLOCKS["resnet18"], classes, channels, size, width)


def _resnet50(classes: int, channels: int, size: int, width: float) -> nn.Module:
    from torchvision.models.resnet import Bottleneck

    return ResNet(Bottleneck, cost.RESNET_BLOCKS["resnet50"], classes, channels, size, width)


_MODELS: dict[str, Callable[[int, int, int, float], nn.Module]] = {
    "mlp": _mlp,
    "conv": _conv,
    "resnet18": _resnet18,
    "resnet50": _resnet50,
}


def names() -> tuple[str, ...]:
    """The models that `build` knows."""
    return tuple(_MODELS)
