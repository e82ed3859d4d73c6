"""Who trains on what: a data set's samples dealt to workers.

Road: configs -> plan -> train (vision serves it) -> record -> item.

Every function takes the labels (N,) and returns one sorted int64 array of indices per worker. All draws come from
`seeding.generator(seed, "partition")`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlocked import seeding
from unlocked.errors import SettingError, choose

REDRAWS = 100  # how often a Dirichlet partition is drawn before it is given up
SHARDS = 2  # label-sorted shards that each worker gets


@dataclass(frozen=True)
class _Deal:
    labels: np.ndarray
    workers: int
    concentration: float
    least: int
    draws: np.random.Generator


def partition(
    name: str, labels: Any, workers: int, *, seed: int, concentration: float = 0.3, least: int = 1
) -> list[np.ndarray]:
    """The indices of each worker's samples, by the rule `name`: "iid", "dirichlet" or "label_sorted".

    labels: integers (N,), an array, a tensor or a list. concentration: of the Dirichlet distribution; the smaller, the
    more the workers differ. least: the number of samples that no worker may stay below.
    Raises `SettingError` if the setting is unknown or nobody can be dealt `least` samples.
    """
    deal = _RULES[choose("partition", name, names())]
    labels = np.asarray(labels.cpu() if hasattr(labels, "cpu") else labels)
    if workers < 1:
        raise SettingError("workers", workers, "must be 1 or more")
    if least < 0:
        raise SettingError("least", least, "must be 0 or more")
    if not 0 < concentration < np.inf:
        raise SettingError("concentration", concentration, "must be a positive finite number")
    return deal(_Deal(labels, workers, concentration, least, seeding.generator(seed, "partition")))


def _iid(deal: _Deal) -> list[np.ndarray]:
    """Every worker has the whole set; the workers differ in the order in which they draw from it."""
    if len(deal.labels) < deal.least:
        raise SettingError("least", deal.least, f"must be at most {len(deal.labels)}, the number of samples")
    return [np.arange(len(deal.labels)) for _ in range(deal.workers)]


def _dirichlet(deal: _Deal) -> list[np.ndarray]:
    """Class by class, shares of the workers ~ Dirichlet(concentration) (Hsu et al. 2019); disjoint, covering.

    A partition that leaves a worker below `least` samples is drawn again, `REDRAWS` times at most.
    """
    _refuse_too_many(deal, deal.workers * deal.least)
    for _ in range(REDRAWS):
        parts = _dirichlet_once(deal)
        if min(map(len, parts)) >= deal.least:
            return parts
    raise SettingError(
        "concentration",
        deal.concentration,
        f"{REDRAWS} partitions of {len(deal.labels)} samples left one of {deal.workers} workers with fewer than "
        f"{deal.least}; must be larger, or workers or least smaller",
    )


def _dirichlet_once(deal: _Deal) -> list[np.ndarray]:
    owner = np.empty(len(deal.labels), np.int64)
    for label in np.unique(deal.labels):
        members = deal.draws.permutation(np.flatnonzero(deal.labels == label))
        shares = deal.draws.dirichlet(np.full(deal.workers, deal.concentration))
        ends = np.round(np.cumsum(shares) * len(members))
        # Member k belongs to the first worker whose part ends after k; rounding must not leave the last one out.
        owner[members] = np.searchsorted(ends, np.arange(len(members)), side="right").clip(max=deal.workers - 1)
    return _by_owner(owner, deal.workers)


def _label_sorted(deal: _Deal) -> list[np.ndarray]:
    """Sorted by label and cut into shards, two for each worker (McMahan et al. 2017); disjoint, covering."""
    _refuse_too_many(deal, deal.workers * max(deal.least, SHARDS))
    shuffled = deal.draws.permutation(len(deal.labels))
    by_label = shuffled[np.argsort(deal.labels[shuffled], kind="stable")]
    shards = np.array_split(by_label, SHARDS * deal.workers)
    owner = np.empty(len(deal.labels), np.int64)
    for position, shard in enumerate(deal.draws.permutation(len(shards))):
        owner[shards[shard]] = position // SHARDS
    parts = _by_owner(owner, deal.workers)
    if min(map(len, parts)) < deal.least:
        most = SHARDS * (len(deal.labels) // (SHARDS * deal.workers))
        raise SettingError("least", deal.least, f"must be at most {most} for any deal of {deal.workers} workers")
    return parts


def _by_owner(owner: np.ndarray, workers: int) -> list[np.ndarray]:
    """The sorted indices that each worker owns."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.searchsorted(owner[order], np.arange(1, workers)))


def _refuse_too_many(deal: _Deal, needed: int) -> None:
    if needed > len(deal.labels):
        right = f"must be at most {len(deal.labels) * deal.workers // needed} for {len(deal.labels)} samples"
        raise SettingError("workers", deal.workers, f"{right} and at least {needed // deal.workers} for each")


_RULES: dict[str, Callable[[_Deal], list[np.ndarray]]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "label_sorted": _label_sorted,
}


def names() -> tuple[str, ...]:
    """The rules that `partition` knows."""
    return tuple(_RULES)
