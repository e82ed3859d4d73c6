"""Gradients of k networks at k parameter vectors in one computation: what makes many small workers cheap.

For models whose samples share no state (no BatchNorm). A chain of linear layers and ReLUs is computed by products of
stacked matrices; any other model by `torch.func.vmap`, which on CPU is slower than a loop where there are convolutions.
The two agree to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

Forward = Callable[[list[Tensor], Tensor], Tensor]  # parameters (k, ...), images (k, B, ...) -> logits (k, B, classes)
CHUNK = 16  # networks that run as one: more would leave the processor's cache


def stacked_gradient(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function from parameters (k, d), images (k, B, ...) and labels (k, B) to gradients (k, d), losses (k,)."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def one(parameters: list[Tensor], images: Tensor) -> Tensor:
        return functional_call(model, dict(zip(shapes, parameters, strict=True)), (images,))

    forward = chain(model) or vmap(one)

    def few(flat: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        pieces = zip(flat.detach().split(sizes, dim=1), shapes.values(), strict=True)
        parameters = [piece.view(-1, *shape).requires_grad_() for piece, shape in pieces]
        logits = forward(parameters, images)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = each.view(labels.shape).mean(1)
        gradients = torch.autograd.grad(losses.sum(), parameters)
        return torch.cat([gradient.flatten(1) for gradient in gradients], 1), losses.detach()

    def compute(*stacks: Tensor) -> tuple[Tensor, Tensor]:
        chunk = CHUNK if stacks[0].device.type == "cpu" else len(stacks[0])
        parts = [few(*part) for part in zip(*(stack.split(chunk) for stack in stacks), strict=True)]
        gradients, losses = zip(*parts, strict=True)
        return (torch.cat(gradients), torch.cat(losses)) if len(parts) > 1 else parts[0]

    return compute


def chain(model: nn.Module) -> Forward | None:
    """Of Flatten and then linear layers with bias and ReLUs: `x W^T + b` for every network's own W and b; else None."""
    first, *layers = model.children() if isinstance(model, nn.Sequential) and len(model) else (model,)
    kinds = [type(layer) for layer in layers]
    flattens = isinstance(first, nn.Flatten) and (first.start_dim, first.end_dim) == (1, -1)
    biased = all(getattr(layer, "bias", True) is not None for layer in layers)
    if not (flattens and biased and all(kind in (nn.Linear, nn.ReLU) for kind in kinds)):
        return None

    def forward(parameters: list[Tensor], images: Tensor) -> Tensor:
        features, rest = images.flatten(2), iter(parameters)
        for kind in kinds:
            if kind is nn.ReLU:
                features = F.relu(features)
            else:
                weight, bias = itertools.islice(rest, 2)
                features = torch.baddbmm(bias[:, None], features, weight.transpose(1, 2))
        return features

    return forward
