"""The inner product of target and guess by forward-mode differentiation: the target is never formed.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `estimator`. It is the verified
truth beside the faster `projection`, which backpropagates the target and multiplies.

<T, G> is the derivative of the loss when the tensor that T belongs to moves along G: one Jacobian-vector product
(torch.func.jvp) gives it for the whole batch. Per sample there are two ways. One pass: the derivative of the vector of
losses, right only where samples do not interact. One tangent per sample: always right, N times the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn import functional

from unlocked.errors import SettingError, choose
from unlocked.forward_gradient.passes import BlockPass, frozen_statistics, uses_batch_statistics
from unlocked.forward_gradient.spaces import Space, Tensors

CHUNK = 8  # tangents that run at once: each holds its own copy of the activations


def methods() -> tuple[str, ...]:
    """How per-sample coefficients are found; `auto` takes one pass where it is exact."""
    return ("auto", "one_pass", "tangents")


def inner_products(
    step: BlockPass,
    tail: Sequence[nn.Module],
    labels: Tensor,
    space: Space,
    guess: Tensors,
    method: str = "auto",
    chunk: int = CHUNK,
) -> Tensors:
    """<T, G> for every tensor of `guess`: (N,) in a per-sample space, else ().

    step: the block that is perturbed. tail: what maps its outputs to scores (the later blocks and the classifier for
    the global target, the auxiliary net for the local one). labels: (N,). method: see `methods`.
    Raises SettingError for `one_pass` where samples interact, and for modules that forward mode cannot differentiate.
    """
    modules = [step.block, *tail]
    check_hooks(modules)
    separate = space.per_sample and needs_tangents(modules, method)

    def losses(name: str, direction: Tensor, amount: Tensor) -> Tensor:
        scores = space.perturb(step, name, direction, amount)
        for module in tail:
            scores = module(scores)
        return functional.cross_entropy(scores, labels, reduction="none") / len(labels)

    with torch.no_grad(), frozen_statistics(*modules):
        return {
            name: _derivative(
                lambda amount, n=name, d=direction: losses(n, d, amount), direction, space, separate, chunk
            )
            for name, direction in guess.items()
        }


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


def _derivative(
    losses: Callable[[Tensor], Tensor], direction: Tensor, space: Space, separate: bool, chunk: int
) -> Tensor:
    """The derivative at 0 of `losses`, a function of the amount, one per sample or one in all."""
    if not space.per_sample:
        zero = direction.new_zeros(())
        return jvp(lambda amount: losses(amount).sum(), (zero,), (torch.ones_like(zero),))[1]
    zeros = direction.new_zeros(len(direction))
    if not separate:
        return jvp(losses, (zeros,), (torch.ones_like(zeros),))[1]

    def one_sample(row: Tensor) -> Tensor:
        return jvp(lambda amount: losses(amount).sum(), (zeros,), (row,))[1]

    return vmap(one_sample, chunk_size=chunk)(torch.diag(torch.ones_like(zeros)))
