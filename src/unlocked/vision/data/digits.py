"""scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unlocked import seeding
from unlocked.vision.data.registry import Part, data_set

SPLIT_SEED = 0  # of the split into training and test images


@data_set(
    title="scikit-learn digits",
    classes=10,
    size=8,
    train=1437,
    test=360,
    mean=(0.3048,),  # with std: of the training images, computed with NumPy in float64
    std=(0.3758,),
    augmentation="none",
    padding=1,
)
def digits(_root: Path, _download: bool, _verify: bool) -> tuple[Part, Part, str]:
    """scikit-learn's 8×8 digits (1797 images, in the package itself), values 0..16 spread over 0..255.

    The test set is every fifth image (360) of the images sorted by label, shuffled with `SPLIT_SEED` within labels.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.round(data.images[:, None] * 255 / 16).astype(np.uint8)
    order = seeding.generator(SPLIT_SEED, "digits").permutation(len(images))
    order = order[np.argsort(data.target[order], kind="stable")]
    is_test = np.zeros(len(images), bool)
    is_test[order[::5]] = True
    train, test = ((images[part], data.target[part]) for part in (~is_test, is_test))
    return train, test, "scikit-learn's load_digits"
