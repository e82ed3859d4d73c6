"""All-reduce in virtual time, with the data, the learning rates and the number of gradients of gossip."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from unlocked import optim
from unlocked.gossip import clock as clocks
from unlocked.gossip.workers import Networks, flat_parameters
from unlocked.papers.acid import common
from unlocked.papers.acid.settings import AllReduce
from unlocked.papers.base import Measurement, spans
from unlocked.vision.data import Dataset
from unlocked.vision.evaluate import has_batch_norm

POOLED_IMAGES = 4096  # without BatchNorm, up to this many images of all workers go through the network at once


class AllReduceTraining:
    """AR-SGD: every step averages the gradients of all workers, who all hold the parameters `x`.

    One BatchNorm state is updated by every worker's batch in turn. A step ends in virtual time when the slowest
    worker's gradient has, and the all-reduce after it.
    """

    def __init__(self, run: AllReduce, data: Dataset) -> None:
        self.run, self.data = run, data
        model, self.steps = common.build_model(run, data), run.total_gradients // run.workers
        self.streams = common.streams_of(run, data)
        self.sgd = common.sgd_of(run, model, self.steps)
        self.evaluator = common.evaluator_of(run, model, data)
        self.x = flat_parameters(model)
        self.gradient, self.m = torch.zeros_like(self.x), torch.zeros_like(self.x)
        self.networks = Networks(model, data, self.streams, self.x[None])
        self.losses = torch.zeros(2, dtype=torch.float64, device=self.x.device)  # their sum and number
        at_once = 1 if has_batch_norm(model) else max(1, POOLED_IMAGES // run.optim.batch_size)
        self.groups = [range(run.workers)[first : first + at_once] for first in range(0, run.workers, at_once)]
        self.cuts = spans(self.steps, run.evaluation.points)
        self.spans = len(self.cuts)
        ends = clocks.synchronous_steps(run.clock, run.workers, run.seed, 4 * len(self.x))
        self.ends = [0.0, *itertools.islice(ends, self.steps)]
        self.done = 0

    def length(self, span: int) -> int:
        return len(self.cuts[span])

    def advance(self, span: int, skip: int) -> Iterator[None]:
        for number in self.cuts[span][skip:]:
            self.step(number)
            self.done = number + 1
            yield

    def step(self, number: int) -> None:
        """The mean gradient over all workers' batches, clipped as one, then momentum SGD."""
        self.gradient.zero_()
        for group in self.groups:
            images, labels = self.streams.batches(self.data, group, [number] * len(group))
            gradient, loss = self.networks.one(0, (images.flatten(0, 1), labels.flatten()))
            share = len(group) / self.run.workers
            self.gradient.add_(gradient, alpha=share)
            self.losses[0] += loss * share
        optim.clip_(self.gradient, self.run.optim.clip)
        optim.momentum_(self.m, self.gradient, self.x, self.sgd.decay, self.sgd.momentum)
        self.x -= self.sgd.rates[number] * self.m
        self.losses[1] += 1

    def healthy(self) -> bool:
        return math.isfinite(self.losses[0])

    def measure(self, spans: int) -> Measurement:
        metrics = self.evaluator.averaged(self.x, self.networks.statistics)
        if (loss := optim.mean_loss_(self.losses)) is not None:
            metrics["train_loss"] = loss
        gradients, time = self.done * self.run.workers, self.ends[self.done]
        metrics["virtual_seconds"] = time * self.run.clock.gradient_seconds
        return Measurement(metrics, gradients, gradients * self.run.optim.batch_size / len(self.data.train), time)

    def counts(self) -> dict[str, Any]:
        return {"gradients": self.done * self.run.workers, "gradients_per_worker": [self.done] * self.run.workers}

    def state(self) -> dict[str, Any]:
        vectors = {"x": self.x, "m": self.m, "losses": self.losses}
        return vectors | {"buffers": self.networks.statistics, "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        for own, value in ((self.x, state["x"]), (self.m, state["m"]), (self.losses, state["losses"])):
            own.copy_(value)
        self.networks.restore(state["buffers"])
        self.done = state["done"]
