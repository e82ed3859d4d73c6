"""ImageNet, in full size and at 32 × 32 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unlocked.errors import DataError, one_line
from unlocked.vision.data.files import unpickled
from unlocked.vision.data.registry import Part, data_set

IMAGES = (1_281_167, 50_000)
ARCHIVES = ("Imagenet32_train", "Imagenet32_val")
ABOUT: dict[str, Any] = {
    "classes": 1000,
    "train": IMAGES[0],
    "test": IMAGES[1],
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


@data_set(title="ImageNet", size=224, in_memory=False, **ABOUT)
def imagenet(root: Path, _download: bool, _verify: bool) -> tuple[Part, Part, str]:
    """ImageNet (ILSVRC 2012): JPEG files in train/<class>/ and val/<class>/, of all classes or of some."""
    from torchvision.datasets import ImageFolder

    base = root / "imagenet"
    try:
        train, test = (ImageFolder(str(base / part)) for part in ("train", "val"))
    except FileNotFoundError as error:
        advice = f"get ILSVRC 2012 from image-net.org and unpack it into {base}/train/<class>/ and {base}/val/<class>/"
        raise DataError(f"ImageNet is not (or not whole) in {base} ({one_line(error)}): {advice}") from error
    if train.classes != test.classes:
        odd = min(set(train.classes) ^ set(test.classes))
        raise DataError(f"{base}: train and val must hold the same classes; {odd} is in one only")
    parts = [(np.array([path for path, _ in part.samples], object), np.array(part.targets)) for part in (train, test)]
    return parts[0], parts[1], str(base)


@data_set(title="ImageNet32", size=32, padding=4, **ABOUT)
def imagenet32(root: Path, _download: bool, verify: bool) -> tuple[Part, Part, str]:
    """ImageNet at 32×32 (Chrabaszcz et al. 2017): ten training batches and a validation batch, 3.9 GB in memory.

    A file may lie in the folder itself, in the archives' folders below it, or in those folders beside it.
    """
    base = root / "imagenet32"
    folders = [base, *(base / archive for archive in ARCHIVES), *(root / archive for archive in ARCHIVES)]
    files = []
    for name in (*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"):
        file = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if file is None:
            advice = f"get {ARCHIVES[0]}.zip and {ARCHIVES[1]}.zip from image-net.org/download-images.php"
            where = f"ImageNet32's {name} is not in {', '.join(map(str, folders))}"
            raise DataError(f"{where}: {advice} (an account is needed) and unpack them into {base}")
        files.append(file)
    train, test = unpickled(files[:10], 1000, first=1), unpickled(files[10:], 1000, first=1)
    counts = len(train[0]), len(test[0])
    if verify and counts != IMAGES:
        raise DataError(f"{base} holds {counts} training and test images instead of {IMAGES}")
    return train, test, str(base)
