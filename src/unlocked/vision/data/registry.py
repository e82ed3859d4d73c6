"""The data sets by name, with all that planning, loading and captions need to know of each, and no torch.

The idea: a data set is one function, its reader, under the decorator `data_set`, in a file of this folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from unlocked import registry

AUGMENTATIONS = ("crop_flip", "none")

# The images of one part, uint8 (N, channels, size, size) or the paths of N files, and its N labels from 0.
Part: TypeAlias = tuple[np.ndarray, np.ndarray]
# Of (root, download, verify), the last two as in `load`: training part, test part, where they were read in one line.
Reader: TypeAlias = Callable[[Path, bool, bool], tuple[Part, Part, str]]


@dataclass(frozen=True)
class Description:
    """What is known of a data set without reading it.

    title: as captions have it. size: in pixels, images are square. train, test: numbers of images. mean, std: per
    channel, of training images scaled to [0, 1]. augmentation, padding: what is usual for seeded batches, and the black
    pixels around an image that is cropped. in_memory: whether the reader gives images, or files that are decoded batch
    by batch.
    """

    name: str
    read: Reader
    title: str
    classes: int
    size: int
    train: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str = "crop_flip"
    padding: int = 0
    in_memory: bool = True

    @property
    def channels(self) -> int:
        return len(self.mean)


DATASETS: dict[str, Description] = {}


def data_set(**about: Any) -> Callable[[Reader], Reader]:
    """Register a reader under its function's name; about: the other fields of `Description`.

    Raises `SettingError` if something is wrong with them.
    """

    def register(read: Reader) -> Reader:
        name = registry.name_of("data set", read, DATASETS, ("root", "download", "verify"))
        new = Description(name, read, **about)
        least = min(new.classes, new.channels, new.size, new.train, new.test)
        has_scale = len(new.std) == new.channels and all(std > 0 for std in new.std)
        problems = (
            (least < 1, "must have 1 or more classes, channels, pixels, training and test images"),
            (not has_scale, "must have a mean and a std above 0 per channel"),
            (new.augmentation not in AUGMENTATIONS, f"must have one of the augmentations {', '.join(AUGMENTATIONS)}"),
            (new.padding < 0, "must have a padding of 0 or more"),
        )
        registry.check("data set", name, DATASETS, *problems)
        DATASETS[name] = new
        return read

    return register
