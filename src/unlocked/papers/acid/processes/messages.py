"""What the coordinator and a worker say to each other."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor

from unlocked.papers.acid.settings import ProcessRun
from unlocked.vision.data import Dataset


@dataclass
class Tally:
    """What a worker has done so far. Seconds are wall-clock seconds unless they are called CPU seconds."""

    steps: int = 0  # gradients
    loss_sum: float = 0.0  # over them
    gradient_seconds: float = 0.0  # from one gradient to the next, waiting included
    idle_seconds: float = 0.0  # of the gradient loop: for gradients to do, or for the gossip to catch up
    averagings: int = 0
    transfer_seconds: float = 0.0  # between the start and the end of the exchanges of vectors
    useful_cpu_seconds: float = 0.0  # of the gossip's threads: in transfers and updates
    overhead_cpu_seconds: float = 0.0  # of the gossip's threads: all the rest
    # histograms: the k-th entry counts gradients with k averagings ...
    staleness: list[int] = field(default_factory=list)  # ... between their read and their step
    between: list[int] = field(default_factory=list)  # ... between the last gradient's step and theirs

    def copy(self) -> Tally:
        """As it is now."""
        return replace(self, staleness=list(self.staleness), between=list(self.between))


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


Occasion = int | str  # to show a state: the number of a sample, or one of these
SAVE, FINAL = "save", "final"

# The coordinator to a worker


@dataclass(frozen=True)
class Begin:
    """Everything that a worker needs; it answers `Ready`."""

    run: ProcessRun
    data: Dataset
    worker: int
    store: tuple[str, int]  # host and port of the key-value store that all workers share
    start: Tensor  # (d,): the vector that all start from
    state: State | None  # to continue from


@dataclass(frozen=True)
class Grant:
    """Gradients to do: until the worker has done `until` of its own. `unit`: mean seconds of one, over all workers."""

    until: int
    unit: float


@dataclass(frozen=True)
class Match:
    """Average with `peer`, after all that have lower numbers; both get the same number."""

    number: int
    peer: int


@dataclass(frozen=True)
class Alone:
    """Nobody is there to average with; a `Match` comes when somebody is."""


@dataclass(frozen=True)
class Show:
    """Show your state: answered by `Shown`.

    For a sample, without stopping. To `SAVE`, while nothing goes on: let no time pass until `Continue`. `FINAL`: there
    is nothing left to do; end the gossip first.
    """

    occasion: Occasion


@dataclass(frozen=True)
class Continue:
    """Time goes on."""


@dataclass(frozen=True)
class Ping:
    """Say that you are there: answered by `Progress`."""


@dataclass(frozen=True)
class Dismissed:
    """The coordinator goes on without this worker, or needs it no more (no reason)."""

    reason: str = ""


# A worker to the coordinator


@dataclass(frozen=True)
class Ready:
    """All is set up; `seconds`: of a gradient that was only for the measurement."""

    seconds: float


@dataclass(frozen=True)
class Progress:
    """A copy of the tally, sent every few gradients, and in answer to `Ping`.

    `busy`: seconds that the gradient loop has spent on one gradient so far, 0 if it rightly waits.
    """

    tally: Tally
    busy: float = 0.0


@dataclass(frozen=True)
class Offer:
    """After a gossip step (`number`, `applied`), or by itself: does the worker want one more partner?"""

    tally: Tally  # a copy
    wants: bool
    number: int | None = None
    applied: bool = False
    reason: str = ""  # why it was not


@dataclass(frozen=True)
class Shown:
    """The answer to `Show`."""

    occasion: Occasion
    state: State


@dataclass(frozen=True)
class Failed:
    """The worker cannot go on: one line."""

    reason: str
