"""What every engine needs of a worker: its parameters as a flat vector, its data stream, its gradients, its evaluation.

Nothing here knows about time or communication.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked import optim, seeding
from unlocked.gossip.stacked import chain, stacked_gradient
from unlocked.vision import evaluate
from unlocked.vision.data import Dataset


def flat_parameters(model: nn.Module) -> Tensor:
    """A copy of all parameters as one vector (d,), each in the order in which it lies in memory."""
    return torch.cat([parameter.detach().as_strided((parameter.numel(),), (1,)) for parameter in model.parameters()])


def pieces_of(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Views of a flat vector (d,) in the shapes and the memory layouts of `parameters`."""
    parts = flat.split([parameter.numel() for parameter in parameters])
    return [part.as_strided(like.shape, like.stride()) for part, like in zip(parts, parameters, strict=True)]


def bind(model: nn.Module, flat: Tensor, gradient: Tensor | None = None) -> None:
    """Let the parameters of `model` (and their gradients) be views of flat vectors."""
    parameters = list(model.parameters())
    for parameter, piece in zip(parameters, pieces_of(flat, parameters), strict=True):
        parameter.data = piece
    if gradient is not None:
        for parameter, piece in zip(parameters, pieces_of(gradient, parameters), strict=True):
            parameter.grad = piece


def copy_buffers_(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Overwrite a model's buffers in place."""
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])


class Streams:
    """Every worker's own endless order of its part of the data, as a pure function of (seed, worker, step).

    `parts`: the indices of every worker's images. A worker walks through fresh permutations of its part, batch after
    batch; a batch may span two permutations, so parts smaller than a batch work too.
    """

    def __init__(self, parts: Sequence[np.ndarray], seed: int, batch_size: int) -> None:
        self.parts, self.seed, self.batch_size = parts, seed, batch_size
        self._orders: dict[int, tuple[int, np.ndarray]] = {}  # of every worker the last one drawn

    def _order(self, worker: int, epoch: int) -> np.ndarray:
        if self._orders.get(worker, (-1,))[0] != epoch:
            order = seeding.generator(self.seed, "data order", worker, epoch).permutation(self.parts[worker])
            self._orders[worker] = epoch, order.astype(np.int32)
        return self._orders[worker][1]

    def indices(self, worker: int, step: int) -> np.ndarray:
        """Indices (batch,) of the images of a worker's `step`-th gradient."""
        size = len(self.parts[worker])
        pieces, position, missing = [], step * self.batch_size, self.batch_size
        while missing:
            epoch, offset = divmod(position, size)
            pieces.append(self._order(worker, epoch)[offset : offset + missing])
            position += len(pieces[-1])
            missing -= len(pieces[-1])
        return np.concatenate(pieces)

    def batches(self, data: Dataset, workers: Sequence[int], steps: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images (k, batch, C, H, W) and labels (k, batch) of one step for each of k workers."""
        asked = list(zip(workers, steps, strict=True))
        indices = np.stack([self.indices(*pair) for pair in asked])
        augmented = data.train.augmentation != "none"
        seeds = [seeding.integer(self.seed, "augmentation", *pair) for pair in asked] if augmented else None
        return data.train.batch_groups(torch.from_numpy(indices).long(), seeds)


class Source:
    """Where gradients come from: networks on data, or a quadratic problem."""

    def stacked(self, workers: list[int], steps: list[int], vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients (k, d), used before the next call, and losses (k,) of one step of k workers, at k vectors."""
        raise NotImplementedError

    def each(self, workers: list[int], steps: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """For engines that are not `batched`: gradient (d,) and loss of one worker after the other, at its row of
        `read`; each gradient is used before the next is computed."""
        raise NotImplementedError


class Networks(Source):
    """Gradients of the workers' networks on their data.

    `vectors` (n, d) is what gradients of one worker after the other are taken at. One network goes from worker to
    worker: its parameters become views of the worker's row, its buffers the worker's own BatchNorm statistics.
    `clip`: the largest norm of a gradient. `written_out`: whether a multilayer perceptron goes without autograd.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        streams: Streams,
        vectors: Tensor,
        clip: float | None = None,
        *,
        written_out: bool = True,
    ) -> None:
        self.data, self.streams, self.clip = data, streams, clip
        self.model = copy.deepcopy(model).train()
        self.stacked_gradient = stacked_gradient(self.model)
        self.chain = chain(self.model) if written_out else None
        self.gradient, self.stack = torch.zeros_like(vectors[0]), vectors[:0]  # what `one` and `stacked` write to
        self.parameters = list(self.model.parameters())
        self.own = [pieces_of(row, self.parameters) for row in vectors]
        self.into = pieces_of(self.gradient, self.parameters)
        self.named_buffers = dict(self.model.named_buffers())
        self.statistics = [{name: b.clone() for name, b in self.named_buffers.items()} for _ in vectors]
        self.at: int | None = None  # the worker at whose parameters the network is

    def one(self, worker: int, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Gradient (d,), in a buffer that the next call overwrites, and loss of one worker's network."""
        if self.chain is not None:
            loss = self.chain.gradient_of_pieces_(self.own[worker], *batch, self.into)
        else:
            loss = cross_entropy(self.network(worker)(batch[0]), batch[1])
            torch._foreach_copy_(self.into, torch.autograd.grad(loss, self.parameters))
        return optim.clip_(self.gradient, self.clip), loss.detach()

    def network(self, worker: int) -> nn.Module:
        """The network, at a worker's parameters and statistics."""
        if worker != self.at:
            for parameter, piece in zip(self.parameters, self.own[worker], strict=True):
                parameter.data = piece
            for name, buffer in self.named_buffers.items():
                buffer.data = self.statistics[worker][name]
            self.at = worker
        return self.model

    def each(self, workers: list[int], steps: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self.streams.batches(self.data, workers, steps)
        return map(self.one, workers, zip(images, labels, strict=True))

    def stacked(self, workers: list[int], steps: list[int], vectors: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.stack) < len(workers):
            self.stack = torch.empty_like(vectors)
        gradients = self.stack[: len(workers)]
        losses = self.stacked_gradient(vectors, *self.streams.batches(self.data, workers, steps), gradients)
        return optim.clip_(gradients, self.clip), losses

    def restore(self, buffers: Sequence[dict[str, Tensor]]) -> None:
        """Overwrite the workers' statistics."""
        for own, kept in zip(self.statistics, buffers, strict=True):
            for name, buffer in own.items():
                buffer.copy_(kept[name])


@dataclass(frozen=True)
class Evaluator:
    """Measures parameter vectors with `model` on the test set, and on `train_limit` fixed training images."""

    model: nn.Module
    data: Dataset
    seed: int
    batch_size: int
    batch_norm: str  # statistics of an average of workers: recalibrate, average (of their own), worker0
    recalibration_batches: int
    train_limit: int

    def averaged(self, flat: Tensor, buffers: Sequence[dict[str, Tensor]]) -> dict[str, float]:
        """Accuracy and loss of the averaged model; `buffers` are those of every worker."""
        bind(self.model, flat)
        train = self.data.train
        if self.batch_norm == "recalibrate":
            drawn = {"seed": seeding.integer(self.seed, "recalibration"), "batch_size": self.batch_size}
            evaluate.recalibrate_(self.model, train, batches=self.recalibration_batches, **drawn)
        elif self.batch_norm == "worker0":
            copy_buffers_(self.model, buffers[0])
        else:
            copy_buffers_(self.model, {k: torch.stack([b[k].double() for b in buffers]).mean(0) for k in buffers[0]})
        part = self._drawn(len(train), self.train_limit, "training images for evaluation")
        accuracy, loss = evaluate.accuracy_and_loss(self.model, self.data.test)
        train_accuracy, train_loss = evaluate.accuracy_and_loss(self.model, train, indices=part)
        return {
            "test_accuracy": accuracy,
            "test_loss": loss,
            "average_train_accuracy": train_accuracy,
            "average_train_loss": train_loss,
        }

    def workers(
        self, vectors: Iterable[Tensor], buffers: Iterable[dict[str, Tensor]], images: int | None = None
    ) -> dict[str, Any]:
        """Test accuracy of every single worker, and its mean, least and greatest.

        images: on how many test images, another draw for each, so that the mean is over nearly all; None: on all.
        """
        each, test = [], self.data.test
        for worker, (flat, own) in enumerate(zip(vectors, buffers, strict=True)):
            part = None if images is None else self._drawn(len(test), images, "test images of a worker", worker)
            bind(self.model, flat)
            copy_buffers_(self.model, own)
            each.append(evaluate.accuracy_and_loss(self.model, test, indices=part)[0])
        name = "worker_test_accuracy"
        return {f"{name}_mean": float(np.mean(each)), f"{name}_min": min(each), f"{name}_max": max(each), name: each}

    def _drawn(self, count: int, limit: int, *names: str | int) -> Tensor:
        """Indices of at most `limit` of `count` images, in order."""
        return torch.from_numpy(np.sort(seeding.generator(self.seed, *names).permutation(count)[:limit]))
