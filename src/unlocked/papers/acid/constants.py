"""The constants and dynamics of a run's gossip."""

from __future__ import annotations

from unlocked.gossip import topology
from unlocked.gossip.momentum import Constants
from unlocked.papers.acid.settings import AcidRun, Gossip, Momentum


def constants_of(run: AcidRun) -> Constants:
    """The method's constants on the run's graph."""
    if not (isinstance(run, Momentum) and isinstance(run, Gossip)):
        return Constants.baseline()
    graph = topology.build(run.graph, run.workers, run.seed)
    return Constants.accelerated(*topology.chi(graph, run.rate), run.strength)


def dynamics_of(run: AcidRun) -> str:
    """Of the averaging; without momentum both are the same."""
    return run.dynamics if isinstance(run, Momentum) else "exact"
