"""Gradients of k networks at k parameter vectors in one computation: what makes many small workers cheap.

For models whose samples share no state (no BatchNorm). A chain of linear layers and ReLUs has its passes written out
(`chain`), by products of stacked matrices; any other model goes through `torch.func.vmap`, which on CPU is slower than
a loop where there are convolutions. The two agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from unlocked.gossip.chain import chain

Stacked = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def stacked_gradient(model: nn.Module) -> Stacked:
    """A function of parameters (k, d), images (k, B, ...), labels (k, B) and gradients (k, d), which it overwrites; it
    returns losses (k,).
    """
    if (known := chain(model)) is not None:
        return known.gradient_
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def one(parameters: list[Tensor], images: Tensor) -> Tensor:
        return functional_call(model, dict(zip(shapes, parameters, strict=True)), (images,))

    def gradient_(flat: Tensor, images: Tensor, labels: Tensor, out: Tensor) -> Tensor:
        pieces = zip(flat.detach().split(sizes, dim=1), shapes.values(), strict=True)
        parameters = [piece.view(-1, *shape).requires_grad_() for piece, shape in pieces]
        logits = vmap(one)(parameters, images)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = each.view(labels.shape).mean(1)
        gradients = torch.autograd.grad(losses.sum(), parameters)
        torch.cat([gradient.flatten(1) for gradient in gradients], 1, out=out)
        return losses.detach()

    return gradient_
