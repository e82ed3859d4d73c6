"""Momentum SGD on flat vectors, and the factors on the learning rate that schedules consist of.

On flat vectors (one worker, or a stack of workers), because gossip needs a step separately from its application: the
same step moves a worker's parameters and its auxiliary variable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def decay_vector(model: nn.Module, weight_decay: float) -> Tensor:
    """Weight decay (d,) of each entry of the flat parameter vector; 0 for biases and norms, of one dimension."""
    return torch.cat([torch.full_like(p.detach(), weight_decay * (p.ndim > 1)).flatten() for p in model.parameters()])


def momentum_(buffer: Tensor, gradient: Tensor, x: Tensor, decay: Tensor, momentum: float) -> None:
    """`m <- momentum m + gradient + decay x`, in place on `buffer`; shapes (d,) or (k, d), `decay` (d,)."""
    buffer.mul_(momentum).add_(gradient).addcmul_(decay.expand_as(x), x)


def clip_(gradient: Tensor, longest: float | None) -> Tensor:
    """Scale a gradient (d,), or each of a stack (k, d), that is longer than `longest` down to it, in place.

    As `torch.nn.utils.clip_grad_norm_` does with all parameters together. None: nothing happens.
    """
    if longest is not None:
        gradient *= (longest / (gradient.norm(dim=-1, keepdim=True) + 1e-6)).clamp(max=1.0)
    return gradient


@dataclass(frozen=True)
class Sgd:
    """Momentum SGD."""

    momentum: float
    decay: Tensor  # (d,): weight decay of every entry
    rates: list[float]  # learning rate of a worker's k-th gradient
    own_rates: list[list[float]] | None = None  # the same by worker, where it is not the same for all

    def rate(self, worker: int, step: int) -> float:
        """The learning rate of a worker's `step`-th gradient."""
        return (self.rates if self.own_rates is None else self.own_rates[worker])[step]


@torch.no_grad()
def step_(
    parameters: dict[str, Tensor], gradients: dict[str, Tensor], buffers: dict[str, Tensor], lr: float,
    momentum: float, decay: float,
) -> None:  # fmt: skip
    """A step of SGD for all `parameters`, as torch's own takes it; `buffers` gets those that it lacks.

    torch.optim.SGD imports torch's compiler when it is made, which takes longer than a short run.
    """
    tensors = list(parameters.values())
    wanted = torch._foreach_add([gradients[name] for name in parameters], tensors, alpha=decay)
    for name, gradient in zip(parameters, wanted, strict=True):
        buffers[name] = buffers[name].mul_(momentum).add_(gradient) if name in buffers else gradient
    torch._foreach_add_(tensors, [buffers[name] for name in parameters], alpha=-lr)


def mean_loss_(losses: Tensor) -> float | None:
    """The mean of losses from their sum and number, which start anew; None if there were none."""
    total, count = losses.tolist()
    losses.zero_()
    return total / count if count else None


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
