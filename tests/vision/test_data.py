"""The registry of data sets, and what `load` makes of what a reader returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from unlocked.vision import data
from unlocked.vision.data.registry import data_set


def test_names_titles_and_places() -> None:
    assert tuple(data.DATASETS) == ("digits", "fashion_mnist", "cifar10", "imagenet32", "imagenet")
    titles = ["scikit-learn digits", "Fashion-MNIST", "CIFAR-10", "ImageNet32", "ImageNet"]
    assert [about.title for about in data.DATASETS.values()] == titles
    assert [name for name, about in data.DATASETS.items() if not about.in_memory] == ["imagenet"]


def new(root: Any, _download: bool, _verify: bool) -> Any:
    """Nothing."""


def undocumented(root: Any, download: bool, verify: bool) -> Any:
    return root, download, verify


def unasked(root: Any) -> Any:
    """Nothing."""


@pytest.mark.parametrize(
    ("wrong", "read", "right"),
    [
        ({}, data.digits.digits, "registered already"),
        ({}, undocumented, "docstring"),
        ({}, unasked, "must take (root, download, verify)"),
        ({"augmentation": "crop"}, new, "crop_flip, none"),
        *(({field: 0}, new, "1 or more") for field in ("classes", "size", "train", "test")),
        ({"mean": (), "std": ()}, new, "1 or more"),
        ({"mean": (0.1, 0.2)}, new, "per channel"),
        ({"std": ()}, new, "per channel"),
        ({"std": (0.0,)}, new, "above 0"),
        ({"padding": -1}, new, "0 or more"),
    ],
)
def test_wrong_registrations_are_refused(refused, wrong: dict[str, Any], read: Callable[..., Any], right: str) -> None:
    before = dict(data.DATASETS)
    about = {"title": "New", "classes": 2, "size": 4, "train": 6, "test": 2, "mean": (0.5,), "std": (0.2,)} | wrong
    refused(data_set(**about), read, parts=(f"data set = '{read.__name__}'", right))
    assert before == data.DATASETS


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"name": "mnist"}, "data = 'mnist': must be one of digits, fashion_mnist"),
        ({"train_limit": 0}, "train_limit = 0"),
        ({"test_limit": 361}, "test_limit = 361"),
        ({"augmentation": "mixup"}, "augmentation = 'mixup'"),
    ],
)
def test_impossible_settings_are_named(refused, settings: dict[str, Any], part: str) -> None:
    refused(data.load, **{"name": "digits"} | settings, parts=(part,))


def test_limits_keep_a_fixed_sorted_subset() -> None:
    whole, part = data.load("digits"), data.load("digits", train_limit=50, test_limit=7)
    assert (len(part.train), len(part.test)) == (50, 7)
    rows = {bytes(image): i for i, image in enumerate(whole.train.images.numpy())}
    positions = [rows[bytes(image)] for image in part.train.images.numpy()]
    assert positions == sorted(set(positions))
    assert part.checksum == data.load("digits", train_limit=50, test_limit=7).checksum != whole.checksum


def test_resizing_averages_areas() -> None:
    whole, half = data.load("digits"), data.load("digits", size=4, augmentation="crop_flip")
    means = whole.test.images.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert half.size == half.test.images.shape[2] == 4
    assert half.test.images.dtype == torch.uint8
    assert (half.test.images - means).abs().max() <= 0.5
    assert (half.train.augmentation, half.train.padding) == ("crop_flip", 1)


def test_moving_keeps_everything() -> None:
    moved = data.load("digits").to("meta")
    assert moved.train.images.device.type == moved.test.labels.device.type == "meta"
    assert moved.classes == 10
