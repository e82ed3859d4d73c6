"""AR-SGD, the synchronous baseline: every step averages the gradients of all workers.

Third on the road, beside the virtual engine, with the same data streams, learning rates and number of gradients. All
workers hold the same parameters, so one vector stands for all; every worker still draws its own batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.nn.functional import cross_entropy

from unlocked import budget, optim
from unlocked.gossip import clock as clocks
from unlocked.gossip.workers import (
    Evaluator,
    Layout,
    Streams,
    bind,
    buffers_of,
    build_model,
    copy_buffers_,
    message_bytes,
)
from unlocked.loop import Measurement, evaluation_points
from unlocked.vision.data import Dataset
from unlocked.vision.evaluate import has_batch_norm

POOLED_IMAGES = 4096  # without BatchNorm, up to this many images of all workers go through the network at once


class Synchronous:
    """One parameter vector, and one BatchNorm state updated by every worker's batch in turn."""

    def __init__(self, run: DictConfig, data: Dataset) -> None:
        self.run, self.data = run, data
        self.model = build_model(run, data, run.seed).train()
        self.x = Layout(self.model).flatten([p.detach() for p in self.model.parameters()])
        self.gradient = torch.zeros_like(self.x)
        self.m = torch.zeros_like(self.x)
        bind(self.model, self.x, self.gradient)
        self.decay = optim.decay_vector(self.model, run.optim.weight_decay)
        self.streams = Streams(run, data.train.labels)
        per_pass = 1 if has_batch_norm(self.model) else max(1, POOLED_IMAGES // run.optim.batch_size)
        self.groups = [range(a, min(a + per_pass, run.workers)) for a in range(0, run.workers, per_pass)]
        self.settings, self.workers = OmegaConf.to_object(run.optim), int(run.workers)
        self.total = budget.total_gradients(run)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.x.device)
        self.losses = 0

    def step(self, number: int) -> None:
        """One synchronous step: the mean gradient over all workers' batches, then momentum SGD."""
        self.gradient.zero_()
        for group in self.groups:
            images, labels = self.streams.batches(self.data, list(group), [number] * len(group))
            loss = cross_entropy(self.model(images.flatten(0, 1)), labels.flatten())
            share = len(group) / self.workers
            (loss * share).backward()
            self.loss_sum += loss.detach() * share
        optim.momentum_(self.m, self.gradient, self.x, self.decay, self.settings.momentum)
        self.x -= optim.learning_rate(self.settings, number * self.workers, self.total, self.workers) * self.m
        self.losses += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "x": self.x,
            "m": self.m,
            "buffers": buffers_of(self.model),
            "loss_sum": self.loss_sum,
            "losses": self.losses,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.x.copy_(state["x"])
        self.m.copy_(state["m"])
        copy_buffers_(self.model, state["buffers"])
        self.loss_sum.copy_(state["loss_sum"])
        self.losses = int(state["losses"])


class Training:
    """A run of this baseline, as the training loop sees it: spans of steps between evaluation points.

    A step ends in virtual time when the slowest worker's gradient has, and the all-reduce after it.
    """

    def __init__(self, run: DictConfig, data: Dataset) -> None:
        self.run, self.data = run, data
        self.synchronous, self.evaluator = Synchronous(run, data), Evaluator(run, data)
        self.steps = self.synchronous.total // run.workers
        bounds = evaluation_points(self.steps, run.evaluation.points)
        self.cuts = [range(a, b) for a, b in zip([0, *bounds], bounds, strict=False)]
        self.spans = len(self.cuts)
        ends = clocks.synchronous_steps(OmegaConf.to_object(run.clock), run.workers, run.seed, message_bytes(run, data))
        self.ends = [0.0, *itertools.islice(ends, self.steps)]
        self.done = 0

    def advance(self, span: int, skip: int) -> Iterator[None]:
        """Execute the steps of a span from the `skip`-th on."""
        for number in self.cuts[span][skip:]:
            self.synchronous.step(number)
            self.done = number + 1
            yield

    def healthy(self) -> bool:
        """Whether the loss is still a finite number."""
        return bool(torch.isfinite(self.synchronous.loss_sum))

    def measure(self, spans: int) -> Measurement:
        """All metrics after that many spans; every worker is the average."""
        engine = self.synchronous
        steps = self.cuts[spans - 1].stop if spans else 0
        metrics = self.evaluator.averaged(engine.x, [buffers_of(engine.model)])
        if engine.losses:
            metrics["train_loss"] = float(engine.loss_sum) / engine.losses
        engine.loss_sum.zero_()
        engine.losses = 0
        gradients, time = steps * self.run.workers, self.ends[steps]
        metrics["virtual_seconds"] = time * self.run.clock.gradient_seconds
        return Measurement(metrics, gradients, gradients * self.run.optim.batch_size / len(self.data.train), time)

    def counts(self) -> dict[str, Any]:
        """Gradients, in total and per worker."""
        return {"gradients": self.done * self.run.workers, "gradients_per_worker": [self.done] * self.run.workers}

    def state(self) -> dict[str, Any]:
        """The synchronous state and how many steps led to it."""
        return {"synchronous": self.synchronous.state(), "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.synchronous.restore(state["synchronous"])
        self.done = int(state["done"])
