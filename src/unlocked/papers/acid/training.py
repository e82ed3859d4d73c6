"""Trainings in virtual time as the training loop drives them: spans of steps, a measurement after each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from unlocked import seeding
from unlocked.errors import SettingError
from unlocked.gossip import clock as clocks
from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.gossip.quadratic import Quadratic
from unlocked.gossip.schedule import COMMUNICATION, GRADIENT, Schedule
from unlocked.gossip.simulator import Engine, consensus
from unlocked.gossip.stacked import chain
from unlocked.gossip.workers import Networks, Source
from unlocked.optim import Sgd, mean_loss_
from unlocked.papers.acid import common, gossip
from unlocked.papers.acid.settings import Baseline
from unlocked.papers.acid.study_settings import AveragingBaseline, QuadraticBaseline
from unlocked.papers.base import Measurement, evaluation_points, spans
from unlocked.vision.data import Dataset
from unlocked.vision.evaluate import has_batch_norm

# A level runs as one batched computation where that is faster than a loop over its workers (measured on CPU): small
# networks without BatchNorm (on CPU, of linear layers only), and enough workers for levels of ten and more.
BATCHED_PARAMETERS = 300_000
BATCHED_WORKERS = 32


def is_batched(run: Baseline, model: nn.Module, size: int) -> bool:
    """Whether the workers of a level run as one batched computation rather than in a loop."""
    if run.runtime.execution == "batched" and has_batch_norm(model):
        raise SettingError("runtime.execution", "batched", f"needs a network without BatchNorm, not {run.model.name}")
    if run.runtime.execution != "auto":
        return run.runtime.execution == "batched"
    small = run.workers >= BATCHED_WORKERS and size <= BATCHED_PARAMETERS
    return small and not has_batch_norm(model) and (chain(model) is not None or run.runtime.device != "cpu")


class Simulated:
    """Any run of the simulator: events between evaluation points, an engine that executes them."""

    def __init__(self, events: Schedule, cuts: list[range], engine: Engine, source: Source) -> None:
        self.events, self.cuts, self.engine, self.source = events, cuts, engine, source
        self.spans, self.counts = len(cuts), engine.counts

    def length(self, span: int) -> int:
        return sum(1 for _ in schedules.levels(self.events, self.cuts[span]))

    def advance(self, span: int, skip: int) -> Iterator[None]:
        for level in itertools.islice(schedules.levels(self.events, self.cuts[span]), skip, None):
            self.engine.execute(self.events, *level, self.source)
            yield

    def healthy(self) -> bool:
        return math.isfinite(self.engine.losses[0])

    def state(self) -> dict[str, Any]:
        return self.engine.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.engine.restore(state)


class GossipTraining(Simulated):
    """A training of networks by gossip, with or without momentum."""

    def __init__(self, run: Baseline, data: Dataset) -> None:
        self.run, self.data = run, data
        model = common.build_model(run, data)
        start = common.initial_parameters(run, data, model)
        graph = topology.build(run.graph, run.workers, run.seed)
        options = {"clock": run.clock, "message": clocks.message_time(run.clock, 4 * len(start))}
        events = schedules.PAIRINGS[run.pairing](graph, run.rate, run.total_gradients, run.seed, **options)
        computes = torch.from_numpy(events.i[events.kind == GRADIENT]) if run.schedule_count == "global" else None
        sgd = common.sgd_of(run, model, int(events.gradients_per_worker().max()), computes)
        engine = Engine(
            start.repeat(run.workers, 1),
            gossip.constants_of(run),
            sgd,
            dynamics=gossip.dynamics_of(run),
            batched=is_batched(run, model, len(start)),
            read_at_start=run.gradient_read == "start",
        )
        self.streams = common.streams_of(run, data)
        self.networks = Networks(model, data, self.streams, engine.read, run.optim.clip)
        self.measures = gossip.Measures(run, model, data)
        cuts = events.cut(evaluation_points(events.gradients, run.evaluation.points))
        super().__init__(events, cuts, engine, self.networks)

    def measure(self, spans: int) -> Measurement:
        engine, run, time = self.engine, self.run, float(self.engine.last.max())
        own = {"virtual_seconds": time * run.clock.gradient_seconds}
        if (loss := mean_loss_(engine.losses)) is not None:
            furthest = int(engine.steps.argmax())
            own |= {"train_loss": loss, "learning_rate": engine.sgd.rate(furthest, int(engine.steps[furthest]) - 1)}
        metrics = self.measures.of(engine, time, self.networks.statistics, own, final=spans == self.spans)
        step = int(engine.steps.sum())
        return Measurement(metrics, step, step * run.optim.batch_size / len(self.data.train), time)

    def state(self) -> dict[str, Any]:
        return super().state() | {"buffers": self.networks.statistics}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.networks.restore(state["buffers"])


class StudyTraining(Simulated):
    """In float64: the quadratic problem from zero, or averaging alone from standard normal vectors.

    Gradients are the steps; where there are none, averagings.
    """

    source: Quadratic

    def __init__(self, run: AveragingBaseline, data: object = None) -> None:
        self.run = run
        shape = run.workers, run.quadratic.dimension
        graph = topology.build(run.graph, run.workers, run.seed)
        count = int(run.quadratic.horizon * run.workers)
        events = schedules.PAIRINGS[run.pairing](graph, run.rate, count, run.seed, clock=run.clock)
        if isinstance(run, QuadraticBaseline):
            q = run.quadratic
            source = Quadratic(*shape, seed=run.seed, noise=q.noise, heterogeneous=q.heterogeneous)
            start, rates = np.zeros(shape), [run.optim.lr] * int(events.gradients_per_worker().max())
            momentum, at_start = run.optim.momentum, run.gradient_read == "start"
        else:
            source, events = Quadratic(*shape, seed=run.seed), events.only(events.kind == COMMUNICATION)
            start, rates = seeding.generator(run.seed, "start").standard_normal(shape), []
            momentum, at_start = 0.0, False
        engine = Engine(
            torch.from_numpy(start),
            gossip.constants_of(run),
            Sgd(momentum, torch.zeros(shape[1], dtype=torch.float64), rates),
            dynamics=gossip.dynamics_of(run),
            batched=True,
            read_at_start=at_start,
        )
        super().__init__(events, spans(len(events), run.evaluation.points), engine, source)

    def measure(self, spans: int) -> Measurement:
        time = float(self.engine.last.max())
        mean, metrics = consensus(self.engine, time)
        metrics["distance_to_optimum"] = float(mean.square().sum())
        if isinstance(self.run, QuadraticBaseline) and self.run.evaluation.disagreement:
            away = torch.stack([self.engine.now(i, time)[0] for i in range(self.run.workers)]) - mean
            metrics["loss_difference"] = float((self.source.a * away.square()).sum(1).mean() / 2)
        if (loss := mean_loss_(self.engine.losses)) is not None:
            metrics["train_loss"] = loss
        steps = self.engine.steps if self.events.gradients else self.engine.averagings
        return Measurement(metrics, int(steps.sum()), 0.0, time)
