"""The optimiser's arithmetic on flat vectors, and the schedules of the learning rate.

Upstream of both trainers. Momentum SGD is written on flat vectors (one worker, or a stack of workers) because gossip
needs its step separately from its application: the same step moves a worker's parameters and their twin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def decays(parameter: Tensor) -> bool:
    """Biases and normalisation parameters, which have one dimension, are exempt from weight decay."""
    return parameter.ndim > 1


def decay_vector(model: nn.Module, weight_decay: float) -> Tensor:
    """Weight decay of each entry of the flat parameter vector, shape (d,)."""
    return torch.cat(
        [torch.full((p.numel(),), weight_decay * decays(p), dtype=p.dtype, device=p.device) for p in model.parameters()]
    )


def momentum_(buffer: Tensor, gradient: Tensor, x: Tensor, decay: Tensor, momentum: float) -> None:
    """`m <- momentum m + gradient + decay x`, in place on `buffer`; shapes (d,) or (k, d), `decay` (d,)."""
    buffer.mul_(momentum).add_(gradient).addcmul_(decay.expand_as(x), x)


def large_batch_factor(
    step: float,
    total_steps: int,
    epochs: float,
    batch_size: int,
    workers: int,
    milestones: Sequence[float],
    warmup_epochs: float = 5,
) -> float:
    """Factor on the base learning rate: linear scaling with warm-up, then steps down (Goyal et al. 2017).

    `step` counts gradients over all workers, of `total_steps`. From 1 at the start, linear to
    `batch_size * workers / 256` after `warmup_epochs`, then times 0.1 at each of `milestones` (fractions of
    `total_steps`).
    """
    top = batch_size * workers / 256
    warmup = warmup_epochs * (total_steps // epochs)  # whole gradients per epoch, as the released code counts
    if step < warmup:
        return 1 + (top - 1) * step / warmup
    return top * 0.1 ** sum(step >= fraction * total_steps for fraction in milestones)


def step_factor(epoch: int, every: int, gamma: float) -> float:
    """Factor on the base learning rate: times `gamma` every `every` epochs."""
    return gamma ** (epoch // every)


def learning_rate(settings: Any, step: int, total_steps: int, workers: int = 1) -> float:
    """The learning rate under the schedule that a run's `optim` settings name; `step` counts all workers' gradients."""
    if settings.schedule == "constant":
        return settings.lr
    if settings.schedule == "step":
        epoch = int(step * settings.epochs / total_steps)
        return settings.lr * step_factor(epoch, settings.step_every, settings.step_gamma)
    return settings.lr * large_batch_factor(
        step, total_steps, settings.epochs, settings.batch_size, workers, settings.milestones, settings.warmup_epochs
    )
