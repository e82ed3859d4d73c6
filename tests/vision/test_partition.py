"""Partitions: disjoint, covering, nobody left out, seeded; impossible ones refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlocked import seeding
from unlocked.errors import SettingError
from unlocked.vision.partition import PARTITIONS, partition

LABELS = np.random.default_rng(0).integers(0, 10, 600)


def test_iid_gives_everybody_everything() -> None:
    parts = partition("iid", LABELS, 3, seed=0)
    assert len(parts) == 3
    assert all(np.array_equal(part, np.arange(600)) for part in parts)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(PARTITIONS[1:]),
    labels=st.lists(st.integers(0, 6), min_size=60, max_size=200),
    workers=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    concentration=st.floats(0.3, 100),
)
def test_partitions_are_disjoint_covering_and_leave_nobody_out(
    name: str, labels: list[int], workers: int, seed: int, concentration: float
) -> None:
    concentration = max(concentration, workers / 4)  # a few labels among many workers are rarely enough for all
    parts = partition(name, np.array(labels), workers, seed=seed, concentration=concentration)
    assert len(parts) == workers
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part in parts:
        assert part.dtype == np.int64
        assert len(part) > 0
        assert (np.diff(part) > 0).all()


@pytest.mark.parametrize("name", PARTITIONS[1:])
def test_the_seed_decides(name: str) -> None:
    one, same, other = ([p.tolist() for p in partition(name, LABELS, 5, seed=seed)] for seed in (1, 1, 2))
    assert one == same != other


def test_a_worker_has_two_whole_shards() -> None:
    """Where every sample has a label of its own, shards are runs of labels."""
    parts = partition("label_sorted", np.arange(60), 6, seed=0)
    shards = [np.unique(part // 5) for part in parts]
    assert [len(part) for part in parts] == [10] * 6
    assert [len(own) for own in shards] == [2] * 6
    assert sorted(np.concatenate(shards)) == list(range(12))


def test_dirichlet_parts_follow_their_shares() -> None:
    """Of a class of many samples every worker has its share, drawn as the docstring says, to one sample."""
    labels = np.zeros(1000, int)
    parts = partition("dirichlet", labels, 4, seed=7, concentration=5.0)
    draws = seeding.generator(7, "partition")
    draws.permutation(np.arange(1000))
    shares = draws.dirichlet(np.full(4, 5.0))
    assert [len(part) for part in parts] == pytest.approx(1000 * shares, abs=1)
    assert min(shares) > 0.05


def test_the_most_workers_that_there_can_be() -> None:
    """Two samples each where samples come in shards."""
    assert [len(part) for part in partition("label_sorted", LABELS, 300, seed=0)] == [2] * 300
    with pytest.raises(SettingError, match="concentration"):  # a sample each is not forbidden, only hardly ever drawn
        partition("dirichlet", LABELS, 600, seed=0, concentration=1.0)


@pytest.mark.parametrize(
    ("name", "workers", "concentration", "setting"),
    [
        ("sorted", 4, 0.3, "partition"),
        ("dirichlet", 601, 0.3, "workers"),
        ("label_sorted", 301, 0.3, "workers"),
        ("dirichlet", 60, 0.01, "concentration"),
    ],
)
def test_impossible_partitions_are_refused(
    refused, name: str, workers: int, concentration: float, setting: str
) -> None:
    refused(partition, name, LABELS, workers, seed=0, concentration=concentration, parts=(f"{setting} = ",))


def test_a_partition_is_drawn_again_until_nobody_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlocked.vision.partition.REDRAWS", 1)
    with pytest.raises(ValueError, match="1 partitions left one of 60 workers"):
        partition("dirichlet", LABELS, 60, seed=0, concentration=0.2)
    monkeypatch.undo()
    assert min(map(len, partition("dirichlet", LABELS, 60, seed=0, concentration=0.2))) > 0
