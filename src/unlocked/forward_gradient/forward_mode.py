"""The inner product of target and guess by forward-mode differentiation: the target is never formed.

<T, G> is the derivative of the loss when the tensor that T belongs to moves along G: a Jacobian-vector product. Per
sample, one product gives the derivative of the vector of losses, which is right where samples do not interact;
elsewhere every sample gets a tangent of its own, N times the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn import functional

from unlocked.errors import SettingError
from unlocked.forward_gradient.derivatives import FewPasses
from unlocked.forward_gradient.passes import BlockPass, Loss, frozen_statistics, uses_batch_statistics
from unlocked.forward_gradient.spaces import Space, Vector

CHUNK = 8  # tangents that run at once: each holds its own copy of the activations
# Losses that are plain means over samples, so that they can be taken apart. A loss of anyone's own may not be.
MEANS = (functional.cross_entropy, functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss)
IGNORED = -100  # the label that torch's cross-entropy leaves out of its mean


def derivative(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor) -> Tensor:
    """The Jacobian of a function at a point times a direction."""
    with FewPasses():
        slope: Tensor = jvp(function, (at,), (along,))[1]
    return slope


def per_sample_losses(loss: Loss, scores: Tensor, labels: Tensor) -> Tensor:
    """What every sample adds to the loss, (N,); () for losses that are not known to be sums over samples."""
    if loss not in MEANS:
        return loss(scores, labels)
    each: Tensor = loss(scores, labels, reduction="none")
    classes = loss is functional.cross_entropy and not labels.is_floating_point()
    counted = (labels != IGNORED).sum() if classes else each.numel()
    return each.reshape(len(labels), -1).sum(1) / counted


def slopes(
    step: BlockPass, tail: Sequence[nn.Module], labels: Tensor, space: Space, guesses: Mapping[str, Vector], *,
    loss: Loss = functional.cross_entropy, one_pass: bool | None = None,
) -> Tensor:  # fmt: skip
    """<T, G>, G the `guesses` at one or more places of a block, as the loss's derivative along G.

    (N,) in a per-sample space, else ().

    tail: what maps the block's outputs to scores (the later blocks and the classifier for the net's loss, the auxiliary
    net for the block's own). labels: (N, ...). one_pass: one product for all samples, whether or
    not that is right; None: where it is.

    Raises SettingError for a module that forward mode cannot differentiate.
    """
    modules = [step.block, *tail]
    for layer in (layer for module in modules for layer in module.modules()):
        if layer._backward_hooks or layer._backward_pre_hooks:
            raise SettingError("mode", "forward_mode", f"{type(layer).__name__} has a backward hook; remove it")
    if one_pass is None:
        one_pass = loss in MEANS and not any(map(uses_batch_statistics, modules))
    with torch.no_grad(), frozen_statistics(*modules):
        outputs = space.moving(step, guesses)

        def losses(amount: Tensor) -> Tensor:
            scores = outputs(amount)
            for module in tail:
                scores = module(scores)
            return per_sample_losses(loss, scores, labels)

        zeros = step.outputs.new_zeros(len(step.inputs) if space.per_sample else ())

        def along(direction: Tensor) -> Tensor:
            return derivative(losses, zeros, direction)

        ones = torch.ones_like(zeros)
        if space.per_sample and not one_pass:
            return vmap(lambda row: along(row).sum(), chunk_size=CHUNK)(torch.diag(ones))
        return along(ones) if space.per_sample else along(ones).sum()
