"""Partitions: disjoint, covering, nobody below the least, seeded; impossible ones refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlocked.errors import SettingError
from unlocked.vision.partition import names, partition

LABELS = np.random.default_rng(0).integers(0, 10, 600)


def test_names() -> None:
    assert names() == ("iid", "dirichlet", "label_sorted")
    with pytest.raises(SettingError, match="partition = 'sorted'"):
        partition("sorted", LABELS, 4, seed=0)


def test_iid_gives_everybody_everything() -> None:
    parts = partition("iid", LABELS, 3, seed=0)
    assert len(parts) == 3
    assert all(np.array_equal(part, np.arange(600)) for part in parts)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["dirichlet", "label_sorted"]),
    labels=st.lists(st.integers(0, 6), min_size=60, max_size=200),
    workers=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    concentration=st.floats(0.3, 100),
)
def test_partitions_are_disjoint_covering_and_leave_nobody_out(
    name: str, labels: list[int], workers: int, seed: int, concentration: float
) -> None:
    if name == "dirichlet":
        concentration = max(concentration, workers / 4)  # a few labels among many workers are rarely enough for all
    parts = partition(name, labels, workers, seed=seed, concentration=concentration, least=2)
    assert len(parts) == workers
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) >= 2
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("name", ["dirichlet", "label_sorted"])
def test_the_seed_decides(name: str) -> None:
    def deal(seed: int) -> list[list[int]]:
        return [part.tolist() for part in partition(name, torch.from_numpy(LABELS), 5, seed=seed)]

    assert deal(1) == deal(1)
    assert deal(1) != deal(2)


def class_shares(concentration: float) -> np.ndarray:
    """(workers, classes): the share of every class that each worker got."""
    labels = np.repeat(np.arange(10), 2000)
    parts = partition("dirichlet", labels, 8, seed=3, concentration=concentration)
    return np.stack([np.bincount(labels[part], minlength=10) for part in parts]) / 2000


@pytest.mark.parametrize("concentration", [0.3, 1.0, 30.0])
def test_dirichlet_shares_have_the_variance_of_the_distribution(concentration: float) -> None:
    variance = (1 / 8) * (7 / 8) / (8 * concentration + 1)
    assert class_shares(concentration).var() == pytest.approx(variance, rel=0.5)


def test_label_sorted_gives_few_labels_and_equal_sizes() -> None:
    labels = np.repeat(np.arange(10), 100)
    parts = partition("label_sorted", labels, 10, seed=0)
    assert [len(part) for part in parts] == [100] * 10
    assert max(len(np.unique(labels[part])) for part in parts) <= 2


@pytest.mark.parametrize(
    ("name", "workers", "options", "setting"),
    [
        ("dirichlet", 61, {"least": 10}, "workers"),
        ("label_sorted", 301, {}, "workers"),
        ("label_sorted", 7, {"least": 86}, "workers"),
        ("dirichlet", 0, {}, "workers"),
        ("iid", 2, {"least": 601}, "least"),
        ("iid", 2, {"least": -1}, "least"),
        ("dirichlet", 2, {"concentration": 0.0}, "concentration"),
        ("dirichlet", 2, {"concentration": float("nan")}, "concentration"),
        ("dirichlet", 60, {"least": 10, "concentration": 0.01}, "concentration"),
    ],
)
def test_impossible_partitions_are_refused(name: str, workers: int, options: dict, setting: str) -> None:
    with pytest.raises(SettingError) as error:
        partition(name, LABELS, workers, seed=0, **options)
    assert error.value.setting == setting
    assert "\n" not in str(error.value)


def test_a_partition_is_drawn_again_until_nobody_is_short() -> None:
    sizes = [len(part) for part in partition("dirichlet", LABELS, 10, seed=0, least=20)]
    assert min(sizes) >= 20
    assert any(min(map(len, partition("dirichlet", LABELS, 10, seed=s, least=0))) < 20 for s in range(5))
