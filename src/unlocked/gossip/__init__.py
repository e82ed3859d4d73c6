"""Decentralised training by gossip: graphs, the update of A²CiD², and a simulator in virtual time.

Names are imported when they are first used, so that settings need neither torch nor scipy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlocked.gossip.distributed.async_gossip import AsyncGossip
    from unlocked.gossip.reference import replay
    from unlocked.gossip.simulator import Engine

__all__ = ["AsyncGossip", "Engine", "replay"]
_PLACES = {"AsyncGossip": "distributed.async_gossip", "Engine": "simulator", "replay": "reference"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
