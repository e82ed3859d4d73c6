"""The two papers: how reports and categories call them. Beside the road; their keys stand in `config.PAPERS`."""

from __future__ import annotations

from typing import NamedTuple

from unlocked import config


class Paper(NamedTuple):
    """Names of a paper."""

    short: str
    title: str
    venue: str


PAPERS = {
    "acid": Paper(
        "A²CiD²",
        "A²CiD²: Accelerating Asynchronous Communication in Decentralized Deep Learning",
        "NeurIPS 2023",
    ),
    "forward_gradient": Paper("Forward gradients", "Can Forward Gradient Match Backpropagation?", "ICML 2023"),
}
assert tuple(PAPERS) == config.PAPERS
