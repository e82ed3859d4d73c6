"""Image data sets, read from local files (downloaded at need) and served as seeded batches.

`load` returns a `Dataset` of two splits. A data set is one file of this folder (see `registry`); all of them are
imported here, without torch.

What is trusted: CIFAR-10 and ImageNet32 come as pickles, a format that can run code. They are read by an unpickler that
can build NumPy arrays and plain values and nothing else; CIFAR-10's files must also have torchvision's MD5 sums.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlocked import seeding
from unlocked.errors import SettingError, choose
from unlocked.vision.data.registry import AUGMENTATIONS, DATASETS, Description, Part

if TYPE_CHECKING:
    import torch

    from unlocked.vision.data.splits import Dataset, Split, StreamedSplit

__all__ = ["AUGMENTATIONS", "DATASETS", "Dataset", "Description", "Split", "StreamedSplit", "load"]

SUBSET_SEED = 0  # of the random subsets that `train_limit` and `test_limit` keep

for _module in pkgutil.iter_modules(__path__):
    if _module.name != "splits":  # the one that imports torch
        importlib.import_module(f"{__name__}.{_module.name}")
for _about in sorted(DATASETS.values(), key=lambda about: about.train * about.channels * about.size**2):
    DATASETS[_about.name] = DATASETS.pop(_about.name)  # small ones first, whatever their files are called


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.splits"), name)


def load(
    name: str,
    root: str | Path = "data",
    *,
    device: str | torch.device = "cpu",
    size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    augmentation: str | None = None,
    download: bool = True,
    verify: bool = True,
) -> Dataset:
    """Read the data set `name` from `root`, at need downloading it there, and put it on `device`.

    size: resize to size × size pixels once, by area interpolation; None keeps the set's own.
    train_limit, test_limit: keep that many samples, a random subset that is always the same, in the set's order.
    augmentation: of seeded batches, "crop_flip" or "none"; None takes what is usual for the set.
    download: whether Fashion-MNIST and CIFAR-10 may be fetched if they are missing.
    verify: whether the files must have the known checksums; False serves files that are meant to differ.

    Raises `SettingError` for a setting that cannot work, `DataError` for files that are missing or damaged.
    """
    from unlocked.vision.data.splits import Dataset

    about = DATASETS[choose("data", name, DATASETS)]
    size = size or about.size
    style = choose("augmentation", augmentation or about.augmentation, AUGMENTATIONS), size
    train_part, test_part, source = about.read(Path(root), download, verify)
    classes = about.classes if about.in_memory else int(train_part[1].max()) + 1  # a folder may hold some of them
    train = _split(about, train_part, *style, "train_limit", train_limit)
    test = _split(about, test_part, *style, "test_limit", test_limit)
    sha = hashlib.sha256()
    for array in (*train.contents(), *test.contents()):
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return Dataset(name, train, test, classes, about.channels, size, source, sha.hexdigest()).to(device)


def _split(
    about: Description, part: Part, augmentation: str, size: int, setting: str, limit: int | None
) -> Split | StreamedSplit:
    import torch

    from unlocked.vision.data import splits

    images, labels = part
    if limit is not None:
        if not 1 <= limit <= len(labels):
            raise SettingError(setting, limit, f"must be 1 to {len(labels)}, the samples there are, or null for all")
        kept = np.sort(seeding.generator(SUBSET_SEED, setting).permutation(len(labels))[:limit])
        images, labels = images[kept], labels[kept]
    style = torch.from_numpy(labels.astype(np.int64, copy=False)), about.mean, about.std, augmentation
    if not about.in_memory:
        return splits.StreamedSplit(tuple(images), *style, size)
    pixels, padding = torch.from_numpy(images), about.padding
    if size != about.size:
        pixels, padding = splits.resized(pixels, size), padding and max(1, round(padding * size / about.size))
    return splits.Split(pixels, *style, padding)
