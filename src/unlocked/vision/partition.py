"""Who trains on what: a data set's samples dealt to workers."""

from __future__ import annotations

import numpy as np

from unlocked import seeding
from unlocked.errors import SettingError, choose

PARTITIONS = ("iid", "dirichlet", "label_sorted")
REDRAWS = 100  # how often a Dirichlet partition is drawn before it is given up
SHARDS = 2  # label-sorted shards that each worker gets


def partition(
    name: str, labels: np.ndarray, workers: int, *, seed: int, concentration: float = 0.3
) -> list[np.ndarray]:
    """The sorted indices of each worker's samples; nobody is left without one.

    `iid`: every worker has the whole set; the workers differ in the order in which they draw from it.
    `dirichlet`: class by class, shares of the workers ~ Dirichlet(concentration) (Hsu et al. 2019); disjoint, covering.
    `label_sorted`: sorted by label and cut into shards, two for each worker (McMahan et al. 2017); disjoint, covering.

    labels: integers (N,). concentration: the smaller, the more the workers differ.
    Raises `SettingError` if there is no such rule or not enough for all workers.
    """
    count = len(labels)
    if choose("partition", name, PARTITIONS) == "iid":
        return [np.arange(count) for _ in range(workers)]
    least = SHARDS if name == "label_sorted" else 1
    if workers * least > count:
        raise SettingError("workers", workers, f"must be at most {count // least} for {count} samples")
    draws = seeding.generator(seed, "partition")
    for _ in range(REDRAWS):
        if name == "dirichlet":
            owner = _dirichlet(labels, workers, concentration, draws)
        else:
            owner = _label_sorted(labels, workers, draws)
        order = np.argsort(owner, kind="stable")
        parts = np.split(order, np.searchsorted(owner[order], np.arange(1, workers)))
        if min(map(len, parts)) > 0:
            return parts
    reason = f"{REDRAWS} partitions left one of {workers} workers without a sample; must be larger, or workers fewer"
    raise SettingError("concentration", concentration, reason)


def _dirichlet(labels: np.ndarray, workers: int, concentration: float, draws: np.random.Generator) -> np.ndarray:
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        members = draws.permutation(np.flatnonzero(labels == label))
        shares = draws.dirichlet(np.full(workers, concentration))
        ends = np.round(np.cumsum(shares)[:-1] * len(members))
        # Member k belongs to the first worker whose part ends after k; what is left is the last one's.
        owner[members] = np.searchsorted(ends, np.arange(len(members)), side="right")
    return owner


def _label_sorted(labels: np.ndarray, workers: int, draws: np.random.Generator) -> np.ndarray:
    owner = np.empty(len(labels), np.int64)
    shuffled = draws.permutation(len(labels))
    shards = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], SHARDS * workers)
    for position, shard in enumerate(draws.permutation(len(shards))):
        owner[shards[shard]] = position // SHARDS
    return owner
