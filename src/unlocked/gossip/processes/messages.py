"""What the coordinator and a worker say to each other, and the line between them.

Beside the engine of processes. Messages are pickled by value: nothing of them lives in shared memory. A line is a pipe
between processes of one program, or a TCP connection whose both ends have proved that they know the run's key; nothing
is unpickled before that.
"""

from __future__ import annotations

import os
import pickle
import socket
import threading
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from unlocked.vision.data import Dataset

GONE = (EOFError, OSError)  # what sending and receiving raise when the other end is not there any more


class Channel:
    """One end of a line: `send` from any thread, `receive` from one."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._sending = connection, threading.Lock()

    def send(self, message: Any) -> None:
        """Send one message, whole."""
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with self._sending:
            self._connection.send_bytes(data)

    def receive(self) -> Any:
        """The next message; blocks until it is there."""
        return pickle.loads(self._connection.recv_bytes())

    def hang_up(self) -> None:
        """End the line for both ends; whoever is blocked in `receive`, here or there, gets `EOFError`."""
        try:
            with socket.socket(fileno=os.dup(self._connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close(self) -> None:
        """Free this end; only for the thread that receives."""
        self._connection.close()


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
    """A worker between two gradients, as a checkpoint keeps it."""

    x: Tensor  # (d,), on the CPU, as is the rest
    x_tilde: Tensor
    m: Tensor
    age: float  # gradient times since the last event, not yet mixed
    owed: int  # communications
    buffers: dict[str, Tensor]  # of BatchNorm
    tally: Tally


# The coordinator to a worker


@dataclass(frozen=True)
class Begin:
    """Everything that a worker needs; it answers `Ready`."""

    run: DictConfig
    data: Dataset
    worker: int
    store: tuple[str, int]  # host and port of the rendezvous
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
class Sample:
    """Show your vectors without stopping: answered by `Sampled`."""

    number: int


@dataclass(frozen=True)
class Save:
    """Show your state, and let no time pass until `Continue`: answered by `Saved`. Sent while nothing goes on."""


@dataclass(frozen=True)
class Continue:
    """Time goes on."""


@dataclass(frozen=True)
class Finish:
    """There is nothing left to do: join the gossip and send `Final`."""


@dataclass(frozen=True)
class Ping:
    """Say that you are there: answered by `Pong`."""


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
    """A copy of the tally, sent every few gradients."""

    tally: Tally


@dataclass(frozen=True)
class Offer:
    """After an averaging (`number`, `applied`), or by itself: does the worker want one more partner?"""

    steps: int
    wants: bool
    number: int | None = None
    applied: bool = False
    reason: str = ""  # why it was not


@dataclass(frozen=True)
class View:
    """A worker as an observer sees it."""

    x: Tensor  # (d,), mixed up to now, on the CPU
    x_tilde: Tensor  # the same; x itself without momentum
    stored: Tensor  # x since the last event; x itself without momentum
    buffers: dict[str, Tensor]  # of BatchNorm
    tally: Tally


@dataclass(frozen=True)
class Sampled:
    """The answer to `Sample`."""

    number: int
    view: View


@dataclass(frozen=True)
class Saved:
    """The answer to `Save`."""

    state: State


@dataclass(frozen=True)
class Final:
    """The worker after its gossip has ended."""

    view: View


@dataclass(frozen=True)
class Pong:
    """`busy`: seconds that the gradient loop has spent on one gradient so far, 0 if it rightly waits."""

    steps: int
    busy: float


@dataclass(frozen=True)
class Failed:
    """The worker cannot go on: one line."""

    reason: str
