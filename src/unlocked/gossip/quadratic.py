"""Gossip on a problem that can be written down: what the momentum does, without a network in the way.

Third on the road, beside the trainings of networks and with the same engine, in float64. Worker i minimises
`1/2 sum_k a_k (x_k - b_ik)^2` with noisy gradients (study `quadratic`), or the workers only average what they start
with (study `averaging`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unlocked import seeding
from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.gossip.schedule import Schedule
from unlocked.gossip.virtual import Engine, Sgd, consensus, constants_of, counts
from unlocked.loop import Measurement, evaluation_points

BLOCK = 128  # steps whose noise is drawn at a time


class Quadratic:
    """The engine's source: gradients `a (x - b_i) + noise`, the same for a worker's k-th gradient in every method.

    `a` runs evenly from .1 to 1 over the `dimension` coordinates. `b` is 0 (`heterogeneous: false`), or standard
    normal with mean zero over workers.
    """

    def __init__(self, run: DictConfig) -> None:
        q = run.quadratic
        self.seed, self.noise, self.dimension = int(run.seed), float(q.noise), int(q.dimension)
        self.a = torch.linspace(0.1, 1.0, self.dimension, dtype=torch.float64)
        self.b = torch.zeros(run.workers, self.dimension, dtype=torch.float64)
        if q.heterogeneous:
            drawn = seeding.generator(self.seed, "optima").standard_normal(self.b.shape)
            self.b = torch.from_numpy(drawn - drawn.mean(0))
        self._drawn = np.full(run.workers, -1)  # which block of every worker's noise `_blocks` holds
        self._blocks = np.empty((run.workers, BLOCK, self.dimension))

    def _noise(self, workers: list[int], steps: list[int]) -> np.ndarray:
        """Standard normal (k, d), a function of the seed, the worker and the step."""
        numbers, positions = np.divmod(steps, BLOCK)
        for worker, number in zip(workers, numbers.tolist(), strict=True):
            if self._drawn[worker] != number:
                draws = seeding.generator(self.seed, "gradient noise", worker, number)
                self._blocks[worker], self._drawn[worker] = draws.standard_normal((BLOCK, self.dimension)), number
        return self._blocks[workers, positions]

    def batches(self, workers: list[int], steps: list[int]) -> tuple[Tensor, Tensor]:
        """Optima and noise, (k, d) each."""
        return self.b[workers], torch.from_numpy(self.noise * self._noise(workers, steps))

    def one(self, worker: int, batch: Any) -> tuple[Tensor, Tensor]:
        """The engine is asked for stacks only."""
        raise NotImplementedError

    def stacked(self, vectors: Tensor, batches: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Gradients (k, d) and losses (k,)."""
        b, noise = batches
        pull = self.a * (vectors - b)
        return pull + noise, (pull * (vectors - b)).sum(1) / 2


def schedule_of(run: DictConfig) -> Schedule:
    """Events up to about `horizon` gradient times; without gradients in the study `averaging`."""
    graph = topology.build(run.graph, run.workers, run.seed)
    count = int(run.quadratic.horizon * run.workers)
    events = schedules.draw(run.pairing, graph, run.rate, count, run.seed, clock=OmegaConf.to_object(run.clock))
    return events.only(events.kind == schedules.COMMUNICATION) if run.study == "averaging" else events


def start_of(run: DictConfig) -> Tensor:
    """Zero, or for pure averaging standard normal: (n, d)."""
    shape = (run.workers, run.quadratic.dimension)
    if run.study == "quadratic":
        return torch.zeros(shape, dtype=torch.float64)
    return torch.from_numpy(seeding.generator(run.seed, "start").standard_normal(shape))


class Training:
    """A run of either study, as the training loop sees it."""

    def __init__(self, run: DictConfig, data: object) -> None:
        self.run, self.events = run, schedule_of(run)
        bounds = evaluation_points(len(self.events), run.evaluation.points)
        self.cuts = [range(a, b) for a, b in zip([0, *bounds], bounds, strict=False)]
        self.spans = len(self.cuts)
        self.problem = Quadratic(run)
        rates = [float(run.optim.lr)] * int(self.events.gradients_per_worker().max())
        decay = torch.zeros(run.quadratic.dimension, dtype=torch.float64)
        self.engine = Engine(
            start_of(run),
            constants_of(run),
            Sgd(float(run.optim.momentum), decay, rates),
            dynamics=run.dynamics,
            batched=True,
            read_at_start=run.gradient_read == "start",
        )
        self.state, self.restore = self.engine.state, self.engine.restore

    def advance(self, span: int, skip: int) -> Iterator[None]:
        """Execute the levels of a span from the `skip`-th on."""
        for level in itertools.islice(schedules.levels(self.events, self.cuts[span]), skip, None):
            self.engine.execute(self.events, *level, self.problem)
            yield

    def healthy(self) -> bool:
        """Whether the workers' loss is still a finite number."""
        return bool(torch.isfinite(self.engine.loss_sum))

    def measure(self, spans: int) -> Measurement:
        """Consensus distances, and the squared distance of the average from the optimum."""
        time = float(self.events.time[self.cuts[spans - 1].stop - 1]) if spans else 0.0
        mean, metrics = consensus(self.engine, time)
        metrics["distance_to_optimum"] = float(mean.square().sum())
        if (loss := self.engine.mean_loss()) is not None:
            metrics["train_loss"] = loss
        # where there are no gradients to count, averagings are the steps
        done = (
            int(self.engine.steps.sum()) if self.run.study == "quadratic" else self.cuts[spans - 1].stop * (spans > 0)
        )
        return Measurement(metrics, done, 0.0, time)

    def counts(self) -> dict[str, Any]:
        """Events of the whole run."""
        return counts(self.events)
