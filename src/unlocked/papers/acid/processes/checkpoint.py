"""What is kept of a run of processes: workers' states, samples not yet evaluated, what was counted, who was lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from unlocked.gossip.distributed.matchmaking import Ended
from unlocked.papers.acid.processes.messages import State, Tally


@dataclass
class Sample:
    """The states of all workers at about the same moment."""

    seconds: float  # of training until then
    states: dict[int, State] = field(default_factory=dict)  # by worker


@dataclass(frozen=True)
class Death:
    """A worker that was lost."""

    worker: int
    reason: str
    seconds: float  # of training until then
    tally: Tally  # as last heard: what counts


@dataclass
class Checkpoint:
    """A run between gradients."""

    states: dict[int, State | None]  # of the workers that are there; None: from the start
    samples: dict[int, Sample] = field(default_factory=dict)  # by number
    ended: Ended = field(default_factory=Ended)
    deaths: list[Death] = field(default_factory=list)
    seconds: float = 0.0  # of training

    def plain(self) -> dict[str, Any]:
        """A copy as tensors and plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Checkpoint:
        """The inverse of `plain`."""
        return cls(
            {worker: state and with_tally(State, state) for worker, state in plain["states"].items()},
            {
                number: Sample(sample["seconds"], {w: with_tally(State, s) for w, s in sample["states"].items()})
                for number, sample in plain["samples"].items()
            },
            Ended(**plain["ended"]),
            [with_tally(Death, death) for death in plain["deaths"]],
            plain["seconds"],
        )


def with_tally(kind: type, values: Mapping[str, Any]) -> Any:
    """An object of a kind that has a tally, from plain values."""
    return kind(**{**values, "tally": Tally(**values["tally"])})
