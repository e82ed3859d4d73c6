"""The inner product of target and guess by forward-mode differentiation: the target is never formed.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `estimator`. It is the verified
truth beside the faster `projection`, which backpropagates the target and multiplies.

<T, G> is the derivative of the loss when the tensor that T belongs to moves along G: one Jacobian-vector product
(torch.func.jvp) gives it for the whole batch. Per sample there are two ways. One pass: the derivative of the vector of
losses, right only where samples do not interact. One tangent per sample: always right, N times the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn import functional

from unlocked.errors import SettingError, choose
from unlocked.forward_gradient.passes import BlockPass, frozen_statistics, uses_batch_statistics
from unlocked.forward_gradient.spaces import Space, Vector

CHUNK = 8  # tangents that run at once: each holds its own copy of the activations


def methods() -> tuple[str, ...]:
    """How per-sample coefficients are found; `auto` takes one pass where it is exact."""
    return ("auto", "one_pass", "tangents")


@dataclass(frozen=True)
class Slopes:
    """Inner products of the target with guesses in one block, as derivatives of the loss along them.

    step: the block that is perturbed. tail: what maps its outputs to scores (the later blocks and the classifier for
    the global target, the auxiliary net for the local one). labels: (N,). method: see `methods`.
    """

    step: BlockPass
    tail: Sequence[nn.Module]
    labels: Tensor
    space: Space
    method: str = "auto"
    chunk: int = CHUNK

    def inner(self, name: str, guess: Vector) -> Tensor:
        """<T, G> at the place `name`: (N,) in a per-sample space, else ().

        Raises SettingError for `one_pass` where samples interact, and for modules that forward mode cannot
        differentiate.
        """
        modules = [self.step.block, *self.tail]
        check_hooks(modules)
        separate = self.space.per_sample and needs_tangents(modules, self.method)
        with torch.no_grad(), frozen_statistics(*modules):
            motion = self.space.motion(self.step, name, guess)

            def losses(amount: Tensor) -> Tensor:
                scores = self.space.perturb(self.step, name, motion, amount)
                for module in self.tail:
                    scores = module(scores)
                return functional.cross_entropy(scores, self.labels, reduction="none") / len(self.labels)

            zeros = self.step.outputs.new_zeros(self.step.samples if self.space.per_sample else ())
            return _derivative(losses, zeros, separate, self.chunk)


def needs_tangents(modules: Sequence[nn.Module], method: str) -> bool:
    """Whether per-sample coefficients through `modules` take one tangent per sample under `method`."""
    interact = any(uses_batch_statistics(module) for module in modules)
    if choose("per_sample_method", method, methods()) == "one_pass" and interact:
        right = (
            "samples interact through BatchNorm's batch statistics, so one pass does not give per-sample coefficients; "
            "take 'tangents', GroupNorm, or evaluation mode"
        )
        raise SettingError("per_sample_method", method, right)
    return method == "tangents" or (method == "auto" and interact)


def check_hooks(modules: Sequence[nn.Module]) -> None:
    """Raise SettingError where a module carries a backward hook: forward-mode differentiation cannot pass it."""
    for module in modules:
        for layer in module.modules():
            if layer._backward_hooks or layer._backward_pre_hooks:
                raise SettingError("mode", "forward_mode", f"{type(layer).__name__} has a backward hook; remove it")


def _derivative(losses: Callable[[Tensor], Tensor], zeros: Tensor, separate: bool, chunk: int) -> Tensor:
    """The derivative at `zeros` of `losses`, a function of the amount: (N,), or () for their sum where that is ()."""
    if not zeros.dim():
        return jvp(lambda amount: losses(amount).sum(), (zeros,), (torch.ones_like(zeros),))[1]
    if not separate:
        return jvp(losses, (zeros,), (torch.ones_like(zeros),))[1]

    def one_sample(row: Tensor) -> Tensor:
        return jvp(lambda amount: losses(amount).sum(), (zeros,), (row,))[1]

    return vmap(one_sample, chunk_size=chunk)(torch.diag(torch.ones_like(zeros)))
