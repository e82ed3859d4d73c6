"""All workers in one process, in virtual time, seeded and exact.

The events are drawn beforehand (`schedule`), cut into levels of events that do not touch, and executed with the update
of `momentum`. All workers' vectors are rows of three matrices: parameters `x`, auxiliary variables `x_tilde`, SGD
buffers `m`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlocked import optim
from unlocked.gossip.momentum import Constants, communicate_, descend_, mix_
from unlocked.gossip.schedule import Schedule
from unlocked.gossip.workers import Source
from unlocked.optim import Sgd

TOGETHER = 4096  # vectors up to this length are also updated together, on CPU
STACK = 2**19  # on CPU, entries of the gradients that are computed as one: what its caches hold
KEPT = 2**22  # entries of all workers' vectors up to which the measurement of consensus keeps a copy
STATE = ("x", "x_tilde", "m", "read", "last", "steps", "averagings", "losses")


class Engine:
    """The state of all workers and what an event does to it.

    `x` and `m` are (n, d), and so is `x_tilde`; without momentum it is (n, 0). `read` is what gradients are taken at:
    `x` itself, or a copy from the start of each worker's computation. `last` (n,) is the time of every worker's last
    event; `steps` (n,) and `averagings` (n, n) count events; `losses` are the sum and the number of losses.
    """

    def __init__(
        self, start: Tensor, constants: Constants, sgd: Sgd, *, dynamics: str, batched: bool, read_at_start: bool
    ) -> None:
        self.constants, self.sgd, self.dynamics, self.batched = constants, sgd, dynamics, batched
        self.x = start
        self.x_tilde = start.clone() if constants.momentum else start.new_empty(len(start), 0)
        self.read = start.clone() if read_at_start else start
        self.m = torch.zeros_like(start)
        self.rows = list(zip(self.x, self.x_tilde, self.m, strict=True))
        # Long vectors are updated one worker at a time: they stay in the processor's cache meanwhile.
        self.together = batched and (start.is_cuda or start.shape[1] <= TOGETHER)
        self.most = len(start) if start.is_cuda else max(8, STACK // start.shape[1])
        self.stack = start.new_empty(min(self.most, len(start)) if batched and not self.together else 0, start.shape[1])
        self.last = np.zeros(len(start))
        self.steps = np.zeros(len(start), np.int64)
        self.averagings = np.zeros((len(start), len(start)), np.int64)
        self.losses = torch.zeros(2, dtype=torch.float64, device=start.device)
        self.total = self.losses[0]

    def execute(self, events: Schedule, computing: np.ndarray, talking: np.ndarray, source: Source) -> None:
        """One level: gradients and communications of distinct workers, by their indices."""
        if len(talking):
            self.communicate(events.i[talking], events.j[talking], events.time[talking])
        if len(computing):
            self.compute(events.i[computing], events.time[computing], source)

    def compute(self, workers: np.ndarray, times: np.ndarray, source: Source) -> None:
        """A gradient step of distinct workers; of a stack as many together as the processor's cache likes."""
        elapsed, update = times - self.last[workers], self._compute_together if self.together else self._compute_apart
        for first in range(0, len(workers), self.most):
            some = slice(first, first + self.most)
            steps = self.steps[workers[some]].tolist()
            rates = [self.sgd.rate(*of) for of in zip(workers[some].tolist(), steps, strict=True)]
            update(workers[some], steps, elapsed[some], rates, source)
        self.last[workers] = times
        self.steps[workers] += 1
        self.losses[1] += len(workers)

    def _compute_together(
        self, workers: np.ndarray, steps: list[int], elapsed: np.ndarray, rates: list[float], source: Source
    ) -> None:
        rows = self._rows(workers)
        x, x_tilde, m = (whole.index_select(0, rows) for whole in (self.x, self.x_tilde, self.m))
        mix_(x, x_tilde, self.constants.eta, self._column(elapsed))
        read = x if self.read is self.x else self.read.index_select(0, rows)
        gradients, losses = source.stacked(workers.tolist(), steps, read)
        optim.momentum_(m, gradients, x, self.sgd.decay, self.sgd.momentum)
        descend_(x, x_tilde, m, self.constants, self._column(rates))
        for whole, part in ((self.x, x), (self.x_tilde, x_tilde), (self.m, m)):
            whole.index_copy_(0, rows, part)
        if self.read is not self.x:
            self.read.index_copy_(0, rows, x)
        self.total += losses.double().sum()

    def _compute_apart(
        self, workers: np.ndarray, steps: list[int], elapsed: np.ndarray, rates: list[float], source: Source
    ) -> None:
        numbers = workers.tolist()
        for i, time in zip(numbers, elapsed.tolist(), strict=True):
            x, x_tilde, _ = self.rows[i]
            mix_(x, x_tilde, self.constants.eta, time)
        for i, gradient, rate in zip(numbers, self._gradients(numbers, steps, source), rates, strict=True):
            x, x_tilde, m = self.rows[i]
            optim.momentum_(m, gradient, x, self.sgd.decay, self.sgd.momentum)
            descend_(x, x_tilde, m, self.constants, rate)
            if self.read is not self.x:
                self.read[i] = x

    def _gradients(self, workers: list[int], steps: list[int], source: Source) -> Iterator[Tensor]:
        if self.batched:
            read = torch.index_select(self.read, 0, self._rows(workers), out=self.stack[: len(workers)])
            gradients, losses = source.stacked(workers, steps, read)
            self.total += losses.double().sum()
            yield from gradients
            return
        for gradient, loss in source.each(workers, steps):
            self.total += loss
            yield gradient

    def communicate(self, i: np.ndarray, j: np.ndarray, times: np.ndarray) -> None:
        elapsed_i, elapsed_j = times - self.last[i], times - self.last[j]
        if self.together:
            rows = self._rows(i), self._rows(j)
            sides = [(self.x.index_select(0, row), self.x_tilde.index_select(0, row)) for row in rows]
            elapsed = self._column(elapsed_i), self._column(elapsed_j)
            communicate_((*sides[0], elapsed[0]), (*sides[1], elapsed[1]), self.constants, self.dynamics)
            for row, (x, x_tilde) in zip(rows, sides, strict=True):
                self.x.index_copy_(0, row, x)
                self.x_tilde.index_copy_(0, row, x_tilde)
        else:
            for a, b, s, r in zip(i.tolist(), j.tolist(), elapsed_i.tolist(), elapsed_j.tolist(), strict=True):
                (x_a, tilde_a, _), (x_b, tilde_b, _) = self.rows[a], self.rows[b]
                communicate_((x_a, tilde_a, s), (x_b, tilde_b, r), self.constants, self.dynamics)
        self.last[i] = self.last[j] = times
        self.averagings[i, j] += 1

    def _rows(self, workers: Any) -> Tensor:
        return torch.as_tensor(workers, dtype=torch.long, device=self.x.device)

    def _column(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=self.x.dtype, device=self.x.device)[:, None]

    def now(self, worker: int, time: float) -> tuple[Tensor, Tensor]:
        """Copies of a worker's x and x_tilde, mixed up to `time`: looking at a worker does not change it."""
        x, x_tilde = self.x[worker].clone(), self.x_tilde[worker].clone()
        mix_(x, x_tilde, self.constants.eta, time - float(self.last[worker]))
        return x, x_tilde

    def counts(self) -> dict[str, Any]:
        """Events so far, in total, per worker and per edge."""
        i, j = np.nonzero(self.averagings)
        return {
            "gradients": int(self.steps.sum()),
            "communications": int(self.averagings.sum()),
            "gradients_per_worker": self.steps.tolist(),
            "communications_per_edge": np.stack([i, j, self.averagings[i, j]], 1).tolist(),
        }

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs, not copied."""
        return {name: torch.as_tensor(getattr(self, name)) for name in STATE}

    def restore(self, state: dict[str, Any]) -> None:
        for name, own in self.state().items():
            own.copy_(state[name])


def consensus(engine: Engine, time: float) -> tuple[Tensor, dict[str, float]]:
    """The average of all workers at `time`, and consensus distances `1/n sum ||x_i - x_mean||^2`.

    Of x and x_tilde (`_auxiliary`) mixed up to `time`, which is what a gradient at that moment would see; and of x as
    it lies in memory since each worker's last event (`_stored`), which is what an observer of real machines would see.
    In float64. Of long vectors no more than one worker's are copied at a time.
    """
    names = ("", "_auxiliary", "_stored") if engine.constants.momentum else ("",)
    count, long = len(engine.x), torch.float64
    means = [torch.zeros_like(engine.x[0], dtype=long) for _ in names]
    totals = [torch.zeros((), dtype=long, device=engine.x.device) for _ in names]

    def workers() -> Iterator[tuple[Tensor, ...]]:
        return ((*engine.now(worker, time), engine.x[worker]) for worker in range(count))

    kept = list(workers()) if engine.x.numel() <= KEPT else None
    for views in kept or workers():
        for mean, view in zip(means, views, strict=False):
            mean += view / count
    for views in kept or workers():
        for total, mean, view in zip(totals, means, views, strict=False):
            total += (view - mean).square_().sum()
    distances = {f"consensus_distance{name}": float(total) / count for name, total in zip(names, totals, strict=True)}
    return means[0].to(engine.x.dtype), distances
