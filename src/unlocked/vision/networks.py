"""The networks by name, and what they cost, for planning: no torch needed.

The idea: shapes stand in `models`, `blocks` and `auxiliary` alone. Here a net is a handful of numbers measured at
width 1, with the laws by which they grow with the width, the image and the classes: good to a factor of two.
"""

from __future__ import annotations

from typing import NamedTuple

from unlocked.errors import SettingError, choose

SMALL_IMAGE = 64  # up to this size, in pixels, a ResNet has the stem for small images


class Cost(NamedTuple):
    """Numbers for one sample."""

    parameters: float
    forward_macs: float  # multiply-adds of convolutions and linear layers
    activations: float  # floats kept for the backward pass: outputs of convolution, norm, pooling and linear layers


class Law(NamedTuple):
    """The cost at width 1, and how it grows. A pixel is one of the image, or 16 where the stem reduces it by 4 × 4."""

    kernels: float = 0  # weights of convolutions, × width²
    macs: float = 0  # multiply-adds of convolutions per pixel, × width²
    maps: float = 0  # activations per pixel, × width
    dense: float = 0  # weights of linear layers that are neither first nor last, × width²
    units: float = 0  # activations that do not depend on the image, × width
    first: float = 0  # units that see every value of the image, × width
    last: float = 0  # inputs of the layers that give scores, × width and classes
    narrowest: float = 0  # the width below which it stays as it is


class Network(NamedTuple):
    """What the plan knows of a network. `thinnest`: channels or units of its thinnest layer at width 1."""

    title: str
    thinnest: int
    law: Law
    blocks: int = 1
    largest_block: float = 1.0  # its share of the parameters


RESNET18 = Law(kernels=11.17e6, macs=542e3, maps=1200, last=512)
RESNET18_PLAIN = Law(kernels=11.0e6, macs=536e3, maps=1100, last=512)
RESNET50 = Law(kernels=23.5e6, macs=1.267e6, maps=6700, last=2048)

NETWORKS = {
    "mlp": Network("multilayer perceptron", 64, Law(first=64, dense=4096, units=128, last=64)),
    "conv": Network("small convolutional net", 16, Law(kernels=23.4e3, macs=2450, maps=56, last=64)),
    "resnet18": Network("ResNet-18", 64, RESNET18),
    "resnet50": Network("ResNet-50", 64, RESNET50),
    "resnet18_8": Network("ResNet-18, 8 blocks", 64, RESNET18, 8, 0.42),
    "resnet18_16": Network("ResNet-18 without skips, 16 blocks", 64, RESNET18_PLAIN, 16, 0.21),
    "resnet18_2": Network("ResNet-18, 2 blocks", 64, RESNET18, 2, 0.94),
}
WHOLE = tuple(name for name, network in NETWORKS.items() if network.blocks == 1)  # trained end to end: `models`
IN_BLOCKS = tuple(name for name in NETWORKS if name not in WHOLE)  # trained block by block: `blocks`

# All auxiliary nets of a kind together, without the classifier.
HEADS = {
    "cnn": {
        "resnet18_8": Law(kernels=240e3, macs=15.4e3, maps=230, last=900, narrowest=1 / 8),
        "resnet18_16": Law(kernels=159e3, macs=11.6e3, maps=230, last=960, narrowest=1 / 4),
        "resnet18_2": Law(kernels=32e3, macs=1780, maps=21, last=130, narrowest=1 / 8),
    },
    "mlp": {
        "resnet18_8": Law(dense=20.5e6, units=27e3, last=7200),
        "resnet18_16": Law(dense=14.7e6, units=36e3, last=7700),
        "resnet18_2": Law(dense=2.62e6, units=3600, last=1000),
    },
    "linear": {
        "resnet18_8": Law(maps=240, last=5600),
        "resnet18_16": Law(maps=490, last=13.3e3),
        "resnet18_2": Law(maps=33, last=512),
    },
    "copy": {
        "resnet18_8": Law(kernels=66.1e6, macs=1.87e6, maps=2300, last=3600),
        "resnet18_16": Law(kernels=137e6, macs=3.98e6, maps=4400, last=7700),
        "resnet18_2": Law(kernels=10.5e6, macs=262e3, maps=250, last=512),
    },
}
AUXILIARIES = tuple(HEADS)
VARIANTS = ("default", "as_released")  # of details in which the released code of forward gradients differs


def cost(
    name: str, auxiliary: str | None = None, *, classes: int, channels: int, size: int, width: float = 1.0
) -> Cost:
    """The cost of one sample through a network and its classifier, or through all its auxiliary nets of a kind."""
    law = NETWORKS[name].law if auxiliary is None else HEADS[auxiliary][name]
    width = max(width, law.narrowest)
    pixels = size**2 / (1 if size <= SMALL_IMAGE else 16)
    linear = law.dense * width**2 + (law.first * channels * size**2 + law.last * classes) * width
    kernels, macs = law.kernels * width**2, law.macs * pixels * width**2
    return Cost(linear + kernels, linear + macs, law.maps * pixels * width + law.units * width)


def check_width(name: str, width: float) -> None:
    """`SettingError` if a layer of the network would keep no channel at this width."""
    scaled(NETWORKS[choose("model", name, NETWORKS)].thinnest, width)


def scaled(channels: int, width: float) -> int:
    """`channels` times the width factor, rounded; `SettingError` if nothing is left."""
    if not (0 < width < 1e6 and round(channels * width)):
        raise SettingError("width", width, f"must leave at least one of {channels} channels, so {1 / channels} or more")
    return round(channels * width)
