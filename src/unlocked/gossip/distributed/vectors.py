"""A worker's vectors and the lock that guards them: all threads of a worker change them here and nowhere else.

The lock is held for the length of an update (see `momentum`), never while a vector is on its way between workers, and
on a CPU never while a gradient is computed. On a GPU gradients and gossip use streams of their own: whoever holds the
lock lets its stream wait for the work that the last holder had queued, so that who copies x to the host waits for the
gradient that was queued before, and the training's thread may queue one more meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from unlocked import optim
from unlocked.gossip.momentum import Constants, average_, descend_, mix_


class Vectors:
    """A worker's parameters `x`, auxiliary variable `x_tilde` and SGD buffer `m`, each (d,), and its last event's time.

    Time is the wall clock's, in units of `unit` seconds, the mean duration of a gradient; it runs from `begin` on.
    """

    def __init__(
        self, start: Tensor, constants: Constants, dynamics: str, changed: threading.Condition | None = None
    ) -> None:
        """`changed`: its lock guards everything here, and what an owner puts under it."""
        self.constants, self.dynamics = constants, dynamics
        self.x = start.clone()
        self.x_tilde = start.clone() if constants.momentum else self.x
        self.m = torch.zeros_like(start)
        self.read = start.clone()  # what the current gradient is taken at
        self.unit = float("inf")
        self.last = time.perf_counter()
        self.averagings = 0
        self.changed = changed or threading.Condition()
        self._queued = torch.cuda.Event() if start.is_cuda else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock; on a GPU also order the streams of its holders."""
        with self.changed:
            if self._queued is None:
                yield
                return
            stream = torch.cuda.current_stream(self.x.device)
            stream.wait_event(self._queued)
            try:
                yield
            finally:
                self._queued.record(stream)

    def _mix(self) -> None:
        """Let the time since the last event pass. Only under the lock."""
        now = time.perf_counter()
        mix_(self.x, self.x_tilde, self.constants.eta, (now - self.last) / self.unit)
        self.last = now

    def start_gradient(self) -> int:
        """Copy the current x to `read`; returns the number of averagings so far."""
        with self.locked():
            self._mix()
            self.read.copy_(self.x)
            return self.averagings

    def descend(self, gradient: Tensor, rate: float, decay: Tensor, momentum: float) -> int:
        """A step of momentum SGD with a gradient taken at `read`; returns the number of averagings so far."""
        with self.locked():
            self._mix()
            optim.momentum_(self.m, gradient, self.x, decay, momentum)
            descend_(self.x, self.x_tilde, self.m, self.constants, rate)
            return self.averagings

    def offer(self, into: Tensor, fresh: bool = False) -> None:
        """What a worker sends: x is copied, mixed up to now unless the dynamics are `released`; `fresh`: it is so."""
        with self.locked():
            if self.dynamics == "exact" and not fresh:
                self._mix()
            into.copy_(self.x)

    def answer(self, received: Tensor, into: Tensor) -> None:
        """The other side, at once: copy x as `offer` does, and average with the vector that was received."""
        with self.locked():
            if self.dynamics == "exact":
                self._mix()
            into.copy_(self.x)
            if self.dynamics != "exact":
                self._mix()
            self._move(into, received)

    def average(self, sent: Tensor, received: Tensor) -> None:
        """Average with a vector that was received for one that was sent.

        `exact`: both workers move by the difference of the two vectors that were exchanged, whatever has happened to x
        meanwhile, so what one gains the other loses to the last bit, and the sums over workers do not change.
        `released`: by the difference of the own x, mixed up to now, to the peer's vector.
        """
        with self.locked():
            self._mix()
            self._move(sent, received)

    def _move(self, sent: Tensor, received: Tensor) -> None:
        own = sent.to(self.x.device) if self.dynamics == "exact" else self.x
        average_(self.x, self.x_tilde, own - received.to(self.x.device), self.constants)
        self.averagings += 1

    def copies(self) -> tuple[Tensor, Tensor, Tensor, float]:
        """Copies on the CPU of x, x_tilde and m as of the last event, and `age`; without momentum x_tilde is x."""
        with self.locked():
            x, m, age = self.x.clone(), self.m.clone(), self.age()
            x_tilde = self.x_tilde.clone() if self.constants.momentum else x
        x, m = x.cpu(), m.cpu()
        return x, x_tilde.cpu() if self.constants.momentum else x, m, age

    def restore(self, x: Tensor, x_tilde: Tensor, m: Tensor) -> None:
        """Overwrite the vectors."""
        with self.locked():
            for own, value in ((self.x, x), (self.x_tilde, x_tilde), (self.m, m)):
                own.copy_(value)

    def age(self) -> float:
        """Units of time since the last event."""
        return (time.perf_counter() - self.last) / self.unit

    def begin(self, unit: float, age: float) -> None:
        """Time runs from now on; the last event was `age` units ago."""
        with self.locked():
            self.unit, self.last = unit, time.perf_counter() - age * unit

    def pass_over(self, seconds: float) -> None:
        """Take that many seconds out of the time since the last event: a pause for a checkpoint."""
        with self.locked():
            self.last += seconds
