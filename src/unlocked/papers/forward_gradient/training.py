"""Training with any target, guess and space, backpropagation and local learning included.

A step is a batch, an `estimate` and a plain SGD step; everything random in it is drawn from the run's seed under a name
and the step's number, so that runs with one seed see the same batches whatever their method, and a resumed run
continues bit by bit.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlocked import optim, seeding
from unlocked.forward_gradient import measures
from unlocked.papers import base
from unlocked.papers.base import Measurement
from unlocked.papers.forward_gradient import network
from unlocked.papers.forward_gradient.settings import Trained
from unlocked.vision.data.splits import Dataset


@functools.lru_cache(maxsize=1)
def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """A fresh permutation per epoch."""
    return seeding.generator(seed, "data order", epoch).permutation(images)


def by_block(part: str, accuracy: Tensor, loss: Tensor) -> dict[str, Any]:
    """Accuracy and loss (K,) of every block and of the net (the last block's), under their metric names."""
    accuracies, losses = accuracy.tolist(), loss.tolist()
    return {
        f"{part}_accuracy": accuracies[-1],
        f"{part}_loss": losses[-1],
        f"block_{part}_accuracy": accuracies,
        f"block_{part}_loss": losses,
    }


class ForwardTraining:
    """A run under way: spans of steps between evaluations."""

    def __init__(self, run: Trained, data: Dataset) -> None:
        self.run, self.data = run, data
        self.net = network.build(run, data)
        network.execute_as_set_(self.net, run)
        self.named = dict(self.net.named_parameters())
        self.buffers: dict[str, Tensor] = {}  # of SGD's momentum, of the parameters that were stepped
        # losses and right answers of every block, summed over the training samples since the last evaluation
        self.sums = torch.zeros(2, len(self.net.blocks), dtype=torch.float64, device=run.runtime.device)
        self.samples = 0
        self.best = 0.0
        self.notes: tuple[str, ...] = ()
        self.total = run.total_gradients
        self.cuts = base.spans(self.total, run.evaluation.points)
        self.spans = len(self.cuts)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images (B, C, H, W) and labels (B,); the incomplete last batch of an epoch is left out."""
        split, size, seed = self.data.train, self.run.optim.batch_size, self.run.seed
        epoch, place = divmod(step, len(split) // size)
        indices = epoch_order(seed, epoch, len(split))[place * size : (place + 1) * size]
        return split.batch(indices, seeding.integer(seed, "augmentation", step))

    def step(self, number: int) -> None:
        """`theta <- theta - lr m`, `m <- momentum m + g + decay theta`, for the parameters that got an estimate `g`."""
        sgd, runtime = self.run.optim, self.run.runtime
        images, labels = self.batch(number)
        network.redraw_(self.net, self.run, number)
        if runtime.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        found = network.estimated(
            self.net, self.run, images, labels, number, update_statistics=True, precision=runtime.precision
        )
        # without a gradient a parameter is not stepped at all: no decay and no momentum
        stepped = {name: parameter for name, parameter in self.named.items() if name in found.gradients}
        lr = sgd.lr * self.factor(number)
        optim.step_(stepped, found.gradients, self.buffers, lr, sgd.momentum, sgd.weight_decay)
        self.sums[0] += found.losses * len(labels)
        self.sums[1] += found.correct
        self.samples += len(labels)
        self.notes = found.notes

    def factor(self, number: int) -> float:
        """The schedule's factor on the learning rate of a step."""
        sgd = self.run.optim
        epochs = {"step": sgd.epochs, "proportional": 100, "constant": 0}[sgd.schedule]
        return optim.step_factor(int(number * epochs / self.total), sgd.step_every, sgd.step_gamma)

    def length(self, span: int) -> int:
        return len(self.cuts[span])

    def advance(self, span: int, skip: int) -> Iterator[None]:
        for number in self.cuts[span][skip:]:
            self.step(number)
            yield

    def healthy(self) -> bool:
        return bool(torch.isfinite(self.sums[0, -1]))

    def measure(self, spans: int) -> Measurement:
        """Accuracy and loss of the net and of every block, and how target, guess, estimate and gradient lie."""
        step = self.cuts[spans - 1].stop if spans else 0
        tested = network.tested(self.net, self.run, self.data)
        metrics = by_block("test", *network.accuracy_and_loss(tested, self.data.test))
        self.best = metrics["best_test_accuracy"] = max(self.best, metrics["test_accuracy"])
        if self.samples:
            loss, accuracy = self.sums / self.samples
            metrics |= by_block("train", accuracy, loss)
            self.sums.zero_()
            self.samples = 0
        metrics |= self.alignment(step)
        return Measurement(metrics, step, step * self.run.optim.batch_size / len(self.data.train), step)

    def alignment(self, step: int) -> dict[str, Any]:
        """How target, guess, estimate and true gradient lie to each other: means over batches that never change.

        One value per estimated block (the last block has its true gradient, and none); `net_…`: of these blocks joined.
        Nothing here touches the training.
        """
        values: dict[tuple[str, int], list[float]] = {}
        for number in range(self.run.measure.batches):
            for (name, block), value in self._measured(step, number).items():
                if self.run.measure.tensors or "/" not in name:
                    values.setdefault((name, block), []).append(value)
        metrics: dict[str, Any] = {}
        for (name, block), several in values.items():
            mean = sum(several) / len(several)
            if block == measures.WHOLE:
                metrics[f"net_{name}"] = mean
            else:
                # a block without the value (a zero norm, or no such tensor) keeps its place in the list
                metrics.setdefault(name, [math.nan] * (len(self.net.blocks) - 1))[block] = mean
        return metrics

    def _measured(self, step: int, number: int) -> measures.Measures:
        size, net = self.run.measure.batch_size, self.net
        order = seeding.generator(self.run.seed, "measured batches").permutation(len(self.data.train))
        images, labels = self.data.train.batch(np.sort(order[number * size : (number + 1) * size]))
        if self.run.method.of_guess.redrawn:
            net = copy.deepcopy(net)
            network.redraw_(net, self.run, "measure", step, number)
        return network.estimated(net, self.run, images, labels, "measure", step, number, measure=True).measures

    def counts(self) -> dict[str, Any]:
        """Gradient estimates of the whole run, and what each did in another way than usual."""
        return {"gradients": self.total} | dict.fromkeys(self.notes, 1)

    def state(self) -> dict[str, Any]:
        parts = {"net": self.net.state_dict(), "buffers": dict(self.buffers)}
        return parts | {"sums": self.sums, "samples": self.samples, "best": self.best}

    def restore(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        device = self.run.runtime.device
        self.buffers = {name: buffer.to(device) for name, buffer in state["buffers"].items()}
        self.sums.copy_(state["sums"])
        self.samples, self.best = state["samples"], state["best"]
