"""What a worker has done and what it is between two gradients; what is kept of a run of processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Tally:
    """What a worker has done so far. Seconds are wall-clock seconds unless they are called CPU seconds."""

    steps: int = 0  # gradients
    loss_sum: float = 0.0  # over them
    gradient_seconds: float = 0.0  # from one gradient to the next, waiting included
    idle_seconds: float = 0.0  # of the gradient loop: for gradients to do, or for the gossip to catch up
    averagings: int = 0
    transfer_seconds: float = 0.0  # between asking a peer and having averaged
    useful_cpu_seconds: float = 0.0  # of gossip: in transfers and updates
    overhead_cpu_seconds: float = 0.0  # of the gossip's threads: all the rest
    # histograms: the k-th entry counts gradients with k averagings ...
    staleness: list[int] = field(default_factory=list)  # ... between their read and their step
    between: list[int] = field(default_factory=list)  # ... between the last gradient's step and theirs
    # averagings, by peer: the k-th entry counts those with worker k that ...
    asked: list[int] = field(default_factory=list)  # ... this worker began
    answered: list[int] = field(default_factory=list)  # ... worker k began
    in_vain: int = 0  # begun with a worker that was lost meanwhile


def count(histogram: list[int], value: int) -> None:
    """One more of a value."""
    histogram += [0] * (value + 1 - len(histogram))
    histogram[value] += 1


@dataclass(frozen=True)
class State:
    """A worker at some moment; between two gradients it can continue from this."""

    x: Tensor  # (d,), as of the last event, on the CPU, as is the rest
    x_tilde: Tensor  # without momentum x itself
    m: Tensor
    age: float  # gradient times since the last event, not yet mixed
    owed: int  # communications
    buffers: dict[str, Tensor]  # of BatchNorm
    tally: Tally

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> State:
        """From plain values, and arrays or tensors."""
        vectors = {name: torch.as_tensor(plain[name]) for name in ("x", "x_tilde", "m")}
        buffers = {name: torch.as_tensor(value) for name, value in plain["buffers"].items()}
        return cls(**{**plain, **vectors, "buffers": buffers, "tally": Tally(**plain["tally"])})


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


@dataclass
class Checkpoint:
    """A run between gradients."""

    states: dict[int, State | None]  # of the workers that are there; None: from the start
    tallies: dict[int, Tally]  # of all workers, as last heard: what counts
    samples: dict[int, Sample] = field(default_factory=dict)  # by number, not yet evaluated
    deaths: list[Death] = field(default_factory=list)
    seconds: float = 0.0  # of training

    def plain(self) -> dict[str, Any]:
        """A copy as tensors and plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Checkpoint:
        """The inverse of `plain`."""
        return cls(
            {worker: state and State.of(state) for worker, state in plain["states"].items()},
            {worker: Tally(**tally) for worker, tally in plain["tallies"].items()},
            {
                number: Sample(sample["seconds"], {w: State.of(s) for w, s in sample["states"].items()})
                for number, sample in plain["samples"].items()
            },
            [Death(**death) for death in plain["deaths"]],
            plain["seconds"],
        )
