"""What every engine needs of a worker: its parameters as a flat vector, its data stream, its evaluation.

Between vision (models, data) and the engines (virtual, allreduce). Nothing here knows about time or communication.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked import seeding
from unlocked.gossip.stacked import Layout, stacked_gradient
from unlocked.vision import evaluate, models
from unlocked.vision.data import Dataset
from unlocked.vision.partition import partition


def bind(model: nn.Module, flat: Tensor, gradient: Tensor | None = None) -> None:
    """Let the parameters of `model` (and their gradients) be views of flat vectors."""
    layout = Layout(model)
    for parameter, view in zip(model.parameters(), layout.views(flat), strict=True):
        parameter.data = view
    if gradient is not None:
        for parameter, view in zip(model.parameters(), layout.views(gradient), strict=True):
            parameter.grad = view


def build_model(run: DictConfig, data: Dataset, seed: int) -> nn.Module:
    """The run's network with the initialisation of `seed`, on the run's device."""
    model = models.build(
        run.model.name, classes=data.classes, channels=data.channels, size=data.size, width=run.model.width, seed=seed
    )
    return model.to(run.runtime.device)


def initial_parameters(run: DictConfig, data: Dataset) -> Tensor:
    """The vector (d,) that all workers start from.

    `common`: one draw. `mean_of_independent`: the average of one draw per worker, as the released code has it, which
    shrinks the norm of the weights by the square root of the number of workers.
    """
    layout = Layout(build_model(run, data, run.seed))

    def draw(seed: int) -> Tensor:
        return layout.flatten([p.detach() for p in build_model(run, data, seed).parameters()])

    if run.init == "common":
        return draw(run.seed)
    seeds = [seeding.integer(run.seed, "independent initialisation", worker) for worker in range(run.workers)]
    return torch.stack([draw(seed) for seed in seeds]).mean(0)


def message_bytes(run: DictConfig, data: Dataset) -> int:
    """Size of a parameter vector in float32, which is what workers exchange."""
    return 4 * Layout(build_model(run, data, run.seed)).size


class Streams:
    """Every worker's own endless order of its part of the data, as a pure function of (seed, worker, step).

    A worker walks through fresh permutations of its part, batch after batch; a batch may span two permutations, so
    parts smaller than a batch work too. Nothing needs to be saved to resume.
    """

    def __init__(self, run: DictConfig, labels: Tensor) -> None:
        parts = partition(
            run.data.partition, labels.cpu().numpy(), run.workers, seed=run.seed, concentration=run.data.concentration
        )
        self.parts = [np.asarray(part) for part in parts]
        self.seed, self.batch_size = run.seed, run.optim.batch_size
        self._cache: dict[int, tuple[int, np.ndarray]] = {}

    def _order(self, worker: int, epoch: int) -> np.ndarray:
        cached = self._cache.get(worker)
        if cached is None or cached[0] != epoch:
            order = seeding.generator(self.seed, "data order", worker, epoch).permutation(self.parts[worker])
            cached = self._cache[worker] = (epoch, order.astype(np.int32))
        return cached[1]

    def indices(self, worker: int, step: int) -> np.ndarray:
        """Indices (batch,) of the images of a worker's `step`-th gradient."""
        size = len(self.parts[worker])
        pieces, position, missing = [], step * self.batch_size, self.batch_size
        while missing:
            epoch, offset = divmod(position, size)
            piece = self._order(worker, epoch)[offset : offset + missing]
            pieces.append(piece)
            position += len(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def augmentation_seed(self, worker: int, step: int) -> int:
        """Seed of the crops and flips of that batch."""
        return seeding.integer(self.seed, "augmentation", worker, step)

    def batches(self, data: Dataset, workers: Sequence[int], steps: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (k, batch, C, H, W) and labels (k, batch) of one step for each of k workers."""
        indices = np.stack([self.indices(w, s) for w, s in zip(workers, steps, strict=True)])
        seeds = None
        if data.train.augmentation != "none":
            seeds = [self.augmentation_seed(w, s) for w, s in zip(workers, steps, strict=True)]
        return data.train.batch_groups(torch.from_numpy(indices).long(), seeds)


class Networks:
    """Gradients of a run's networks on its data: the engine's source.

    With `vectors` (n, d), every worker has a network of its own whose parameters are views of its row, and BatchNorm
    statistics of its own. Without, gradients are computed for a stack of vectors at once.
    """

    def __init__(self, run: DictConfig, data: Dataset, streams: Streams, vectors: Tensor | None) -> None:
        self.data, self.streams = data, streams
        model = build_model(run, data, run.seed).train()
        self.stacked_gradient = stacked_gradient(model)
        self.workers = int(run.workers)
        self.models: list[nn.Module] = []
        if vectors is not None:
            self.gradient = torch.zeros_like(vectors[0])
            self.models = [model, *(build_model(run, data, run.seed).train() for _ in range(self.workers - 1))]
            for row, replica in zip(vectors, self.models, strict=True):
                bind(replica, row)
        self.parameters = [list(model.parameters()) for model in self.models]

    def batches(self, workers: list[int], steps: list[int]) -> _Stack:
        """Images and labels of one step for each of k workers."""
        return _Stack(*self.streams.batches(self.data, workers, steps))

    def one(self, worker: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Gradient (d,), in a buffer that the next call overwrites, and loss of one worker's network."""
        loss = cross_entropy(self.models[worker](batch[0]), batch[1])
        pieces = torch.autograd.grad(loss, self.parameters[worker])
        torch.cat([piece.flatten() for piece in pieces], out=self.gradient)
        return self.gradient, loss.detach()

    def stacked(self, vectors: Tensor, batches: _Stack) -> tuple[Tensor, Tensor]:
        """Gradients (k, d) and losses (k,)."""
        return self.stacked_gradient(vectors, batches.images, batches.labels)

    def buffers(self) -> list[dict[str, Tensor]]:
        """BatchNorm statistics of every worker, not copied."""
        return [buffers_of(model) for model in self.models] or [{}] * self.workers

    def restore(self, buffers: Sequence[dict[str, Tensor]]) -> None:
        """Overwrite the statistics of every worker."""
        for model, own in zip(self.models, buffers, strict=False):
            copy_buffers_(model, own)


@dataclass(frozen=True)
class _Stack:
    """Images (k, batch, C, H, W) and labels (k, batch), by position a pair for one worker."""

    images: Tensor
    labels: Tensor

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.images[position], self.labels[position]


class Evaluator:
    """Measures a parameter vector on the test set, and on a fixed part of the training set."""

    def __init__(self, run: DictConfig, data: Dataset) -> None:
        self.run, self.data = run, data
        self.model = build_model(run, data, run.seed)
        self.has_batch_norm = evaluate.has_batch_norm(self.model)
        count = min(run.evaluation.train_limit, len(data.train))
        picked = seeding.generator(run.seed, "training images for evaluation").permutation(len(data.train))[:count]
        self.train_part = torch.from_numpy(np.sort(picked))

    def averaged(self, flat: Tensor, buffers: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Accuracy and loss of the averaged model; `buffers` are those of every worker."""
        bind(self.model, flat)
        self._set_statistics(buffers)
        accuracy, loss = evaluate.accuracy_and_loss(self.model, self.data.test)
        train_accuracy, train_loss = evaluate.accuracy_and_loss(self.model, self.data.train, indices=self.train_part)
        return {
            "test_accuracy": accuracy,
            "test_loss": loss,
            "average_train_accuracy": train_accuracy,
            "average_train_loss": train_loss,
        }

    def worker(self, flat: Tensor, buffers: dict[str, Tensor]) -> float:
        """Test accuracy of one worker with its own BatchNorm statistics."""
        bind(self.model, flat)
        copy_buffers_(self.model, buffers)
        return evaluate.accuracy_and_loss(self.model, self.data.test)[0]

    def _set_statistics(self, buffers: Sequence[dict[str, Tensor]]) -> None:
        if not self.has_batch_norm:
            return
        if self.run.batch_norm == "recalibrate":
            seed = seeding.integer(self.run.seed, "recalibration")
            batches, size = self.run.evaluation.recalibration_batches, self.run.optim.batch_size
            evaluate.recalibrate_(self.model, self.data.train, batches=batches, batch_size=size, seed=seed)
        elif self.run.batch_norm == "worker0":
            copy_buffers_(self.model, buffers[0])
        else:
            mean = {k: torch.stack([b[k].double() for b in buffers]).mean(0) for k in buffers[0]}
            copy_buffers_(self.model, mean)


def copy_buffers_(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Overwrite a model's buffers in place."""
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's buffers by name, not copied."""
    return dict(model.named_buffers())
