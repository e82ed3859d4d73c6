"""Training of paper B: one loop for every target, guess and space, backpropagation and local learning included.

Stands inside `train` on the road configs -> plan -> train -> record -> item. A step is a batch, an `estimate` and a
plain SGD step; everything random in it is drawn from the run's seed under a name and the step's number, so that runs
with one seed see the same batches whatever their method, and a resumed run continues bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from unlocked import budget, optim, seeding
from unlocked.forward_gradient import network
from unlocked.forward_gradient.alignment import Alignment
from unlocked.forward_gradient.estimator import Estimate, estimate
from unlocked.loop import Measurement, evaluation_points
from unlocked.vision.data import Dataset


class Batches:
    """The order of the training data: a fresh permutation per epoch, the incomplete last batch left out."""

    def __init__(self, run: DictConfig, data: Dataset) -> None:
        self.split, self.seed, self.size = data.train, run.seed, run.optim.batch_size
        self.per_epoch = len(data.train) // self.size
        self._order: tuple[int, np.ndarray] | None = None

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Augmented images (B, C, H, W) and labels (B,) of a step, a function of the seed and the step alone."""
        epoch, place = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, seeding.generator(self.seed, "data order", epoch).permutation(len(self.split))
        indices = self._order[1][place * self.size : (place + 1) * self.size]
        return self.split.batch(indices, seeding.integer(self.seed, "augmentation", step))


class Running:
    """Loss and accuracy of every block on the training batches since the last evaluation."""

    def __init__(self, blocks: int, device: str) -> None:
        self.loss = torch.zeros(blocks, dtype=torch.float64, device=device)
        self.correct = torch.zeros(blocks, dtype=torch.float64, device=device)
        self.samples = 0

    def add(self, found: Estimate, samples: int) -> None:
        """Count one batch."""
        self.loss += found.losses * samples
        self.correct += found.correct
        self.samples += samples

    def take(self) -> dict[str, Any]:
        """The metrics, none before the first batch; counting starts anew."""
        if not self.samples:
            return {}
        loss, accuracy = (self.loss / self.samples).tolist(), (self.correct / self.samples).tolist()
        self.loss.zero_()
        self.correct.zero_()
        self.samples = 0
        return by_block("train", accuracy, loss)


def by_block(part: str, accuracy: list[float], loss: list[float]) -> dict[str, Any]:
    """Accuracy and loss of the net (the last block's) and of every block, under their metric names."""
    return {
        f"{part}_accuracy": accuracy[-1],
        f"{part}_loss": loss[-1],
        f"block_{part}_accuracy": accuracy,
        f"block_{part}_loss": loss,
    }


class Training:
    """A run of paper B, as the training loop sees it: spans of steps between evaluation points."""

    def __init__(self, run: DictConfig, data: Dataset) -> None:
        self.run, self.data = run, data
        self.net = network.build(run, data)
        network.execute_as_set_(self.net, run)
        self.notes: tuple[str, ...] = ()
        self.named = dict(self.net.parameters())
        self.optimiser = torch.optim.SGD(
            self.named.values(), run.optim.lr, momentum=run.optim.momentum, weight_decay=run.optim.weight_decay
        )
        self.batches = Batches(run, data)
        self.alignment = Alignment(run, data)
        self.running = Running(len(self.net.blocks), run.runtime.device)
        self.best = 0.0
        self.total = budget.total_gradients(run)
        bounds = evaluation_points(self.total, run.evaluation.points)
        self.cuts = [range(a, b) for a, b in zip([0, *bounds], bounds, strict=False)]
        self.spans = len(self.cuts)

    def estimate(self, images: Tensor, labels: Tensor, step: int) -> Estimate:
        """The gradient estimate of a training step."""
        run = self.run
        if run.runtime.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        return estimate(
            self.net.blocks, self.net.auxiliaries, images, labels, target=run.target, guess=run.guess, space=run.space,
            averaged=run.averaged, mode=run.mode, distribution=run.distribution, tangents=network.tangents(run),
            generator=network.noise(run, step), per_sample_method=run.per_sample_method,
            guess_auxiliaries=self.net.guess_auxiliaries, update_statistics=True, precision=run.runtime.precision,
        )  # fmt: skip

    def step(self, number: int) -> None:
        """`theta <- theta - lr m`, `m <- momentum m + g + decay theta`, for the parameters that got an estimate `g`."""
        images, labels = self.batches(number)
        network.redraw_(self.net, self.run, number)
        found = self.estimate(images, labels, number)
        for name, parameter in self.named.items():
            # without a gradient a parameter is not stepped at all: no decay and no momentum
            parameter.grad = found.gradients.get(name)
        self.optimiser.param_groups[0]["lr"] = optim.learning_rate(self.run.optim, number, self.total)
        self.optimiser.step()
        self.running.add(found, len(labels))
        self.notes = found.notes

    def advance(self, span: int, skip: int) -> Iterator[None]:
        """Do the steps of a span from the `skip`-th on."""
        for number in self.cuts[span][skip:]:
            self.step(number)
            yield

    def healthy(self) -> bool:
        """Whether the net's training loss is still a finite number."""
        return bool(torch.isfinite(self.running.loss[-1]))

    def measure(self, spans: int) -> Measurement:
        """Accuracy and loss of the net and of every block, and how target, guess, estimate and gradient lie."""
        step = self.cuts[spans - 1].stop if spans else 0
        tested = network.tested(self.net, self.run, self.data)
        accuracy, loss = (values.tolist() for values in network.accuracy_and_loss(tested, self.data.test))
        self.best = max(self.best, accuracy[-1])
        metrics = by_block("test", accuracy, loss) | {"best_test_accuracy": self.best}
        metrics |= self.running.take() | self.alignment.measure(self.net, step)
        return Measurement(metrics, step, step * self.run.optim.batch_size / len(self.data.train), step)

    def counts(self) -> dict[str, Any]:
        """Gradient estimates of the whole run, and what each did in another way than usual."""
        return {"gradients": self.total} | dict.fromkeys(self.notes, 1)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs; the step's number is the loop's."""
        return {
            "net": self.net.parts.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "running": {"loss": self.running.loss, "correct": self.running.correct, "samples": self.running.samples},
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.net.parts.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.running.loss.copy_(state["running"]["loss"])
        self.running.correct.copy_(state["running"]["correct"])
        self.running.samples = int(state["running"]["samples"])
        self.best = float(state["best"])
