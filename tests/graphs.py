"""Which graphs there are for a number of workers."""

from __future__ import annotations

from unlocked.errors import SettingError
from unlocked.gossip import topology


def fits(graph: str, workers: int) -> bool:
    """Whether there is such a graph."""
    try:
        topology.check(graph, workers)
    except SettingError:
        return False
    return True
