"""The data sets by name: shapes, sizes and normalisation, without torch and without reading any file.

First on the road: the plan counts gradients and costs from here, validation refuses a batch larger than the data, and
`vision.data` loads what is described.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Description:
    """Shape of one data set. `size` in pixels, images are square; `train` and `test` count images."""

    classes: int
    channels: int
    size: int
    train: int
    test: int


DATASETS: dict[str, Description] = {
    "digits": Description(classes=10, channels=1, size=8, train=1437, test=360),
    "fashion_mnist": Description(classes=10, channels=1, size=28, train=60_000, test=10_000),
    "cifar10": Description(classes=10, channels=3, size=32, train=50_000, test=10_000),
    "cifar100": Description(classes=100, channels=3, size=32, train=50_000, test=10_000),
    "imagenet32": Description(classes=1000, channels=3, size=32, train=1_281_167, test=50_000),
    "imagenet": Description(classes=1000, channels=3, size=224, train=1_281_167, test=50_000),
}
