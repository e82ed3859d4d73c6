"""Gradients of k networks at k parameter vectors in one computation: what makes many small workers cheap.

Between vision (the models) and the engine, for models whose samples share no state (no BatchNorm). A model that is a
chain of known layers is computed by products of stacked matrices, channels last; any other by `torch.func.vmap`, which
is general, and on CPU slower where there are convolutions. The two agree to rounding.

In this module k counts networks, B the samples of a batch, C channels, and P the positions H·W of a feature map.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

CHUNK = 16  # networks that run as one: more would leave the processor's cache


class Layout:
    """How a model's parameters lie in one flat vector of length `size`."""

    def __init__(self, model: nn.Module) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.shapes = [p.shape for p in model.parameters()]
        lengths = [math.prod(shape) for shape in self.shapes]
        self.bounds = list(zip(np.cumsum([0, *lengths]).tolist(), np.cumsum(lengths).tolist(), strict=False))
        self.size = sum(lengths)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters as views of `flat`, shape (d,) or (k, d) for a stack of k models."""
        lead = flat.shape[:-1]
        return [flat[..., a:b].view(*lead, *shape) for (a, b), shape in zip(self.bounds, self.shapes, strict=True)]

    def flatten(self, tensors: Sequence[Tensor], lead: int = 0) -> Tensor:
        """The inverse of `views`, as a copy; the first `lead` dimensions count models."""
        return torch.cat([t.flatten(lead) for t in tensors], dim=lead)


Forward = Callable[
    [list[Tensor], Tensor], Tensor
]  # parameters (k, ...), images (k, B, C, H, W) -> logits (k, B, classes)


def stacked_gradient(model: nn.Module) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A function from parameters (k, d), images (k, B, ...) and labels (k, B) to gradients (k, d), losses (k,)."""
    layout = Layout(model)
    forward = chain(model) if is_chain(model) else general(model, layout)

    def few(flat: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        parameters = [view.detach().requires_grad_() for view in layout.views(flat)]
        logits = forward(parameters, images)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses = each.view(labels.shape).mean(1)
        return layout.flatten(torch.autograd.grad(losses.sum(), parameters), lead=1), losses.detach()

    def compute(flat: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        chunk = CHUNK if flat.device.type == "cpu" else len(flat)
        parts = [few(*part) for part in zip(flat.split(chunk), images.split(chunk), labels.split(chunk), strict=True)]
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    return compute


def general(model: nn.Module, layout: Layout) -> Forward:
    """Any model, by torch's own vectorising."""

    def one(parameters: list[Tensor], images: Tensor) -> Tensor:
        return functional_call(model, dict(zip(layout.names, parameters, strict=True)), (images,))

    return vmap(one)


def chain(model: nn.Module) -> Forward:
    """A chain of known layers, by stacked matrix products; feature maps are (k, B, H, W, C)."""
    layers = [(LAYERS[type(layer)], layer) for layer in model]

    def forward(parameters: list[Tensor], images: Tensor) -> Tensor:
        features, rest = images.movedim(2, -1), iter(parameters)
        for function, layer in layers:
            features = function(layer, rest, features)
        return features

    return forward


def is_chain(model: nn.Module) -> bool:
    """Whether every layer is one that is known, in a form that is known."""
    return isinstance(model, nn.Sequential) and all(
        type(layer) in LAYERS and KNOWN.get(type(layer), lambda _: True)(layer) for layer in model
    )


def flatten(layer: nn.Module, rest: Iterator[Tensor], features: Tensor) -> Tensor:
    """In torch's order, channels first."""
    return features.movedim(-1, 2).flatten(2)


def linear(layer: nn.Module, rest: Iterator[Tensor], features: Tensor) -> Tensor:
    """`x W^T + b` for every network's own W and b."""
    weight, bias = itertools.islice(rest, 2)
    return torch.baddbmm(bias[:, None], features, weight.transpose(1, 2))


def relu(layer: nn.Module, rest: Iterator[Tensor], features: Tensor) -> Tensor:
    return F.relu(features)


def convolution(layer: nn.Module, rest: Iterator[Tensor], features: Tensor) -> Tensor:
    """Patches times weights: one matrix product per network."""
    size, stride, padding = layer.kernel_size[0], layer.stride[0], layer.padding[0]
    matrix = next(rest).permute(0, 3, 4, 2, 1).flatten(1, 3)  # (k, size·size·C, outputs)
    return Convolution.apply(features, matrix, size, stride, padding)


def group_norm(layer: nn.Module, rest: Iterator[Tensor], features: Tensor) -> Tensor:
    scale, shift = itertools.islice(rest, 2)
    return GroupNorm.apply(features.flatten(2, 3), scale, shift, layer.num_groups, layer.eps).view(features.shape)


def pool(layer: nn.Module, rest: Iterator[Tensor], features: Tensor) -> Tensor:
    """The mean over all positions; (k, B, 1, 1, C)."""
    return features.mean((2, 3), keepdim=True)


LAYERS: dict[type, Callable[[Any, Iterator[Tensor], Tensor], Tensor]] = {
    nn.Flatten: flatten,
    nn.Linear: linear,
    nn.ReLU: relu,
    nn.Conv2d: convolution,
    nn.GroupNorm: group_norm,
    nn.AdaptiveAvgPool2d: pool,
}
KNOWN: dict[type, Callable[[Any], bool]] = {
    nn.Flatten: lambda layer: (layer.start_dim, layer.end_dim) == (1, -1),
    nn.Linear: lambda layer: layer.bias is not None,
    nn.Conv2d: lambda layer: (
        layer.bias is None
        and layer.groups == 1
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and all(len(set(pair)) == 1 for pair in (layer.kernel_size, layer.stride, layer.padding))
    ),
    nn.GroupNorm: lambda layer: layer.affine,
    nn.AdaptiveAvgPool2d: lambda layer: layer.output_size in (1, (1, 1)),
}


class Convolution(torch.autograd.Function):
    """(k, B, H, W, C) to (k, B, H', W', outputs) by the patches' product with (k, size·size·C, outputs)."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, matrix: Tensor, size: int, stride: int, padding: int) -> Tensor:
        padded = F.pad(features, (0, 0, padding, padding, padding, padding))
        windows = padded.unfold(2, size, stride).unfold(3, size, stride).movedim(4, -1)
        patches = windows.flatten(4).flatten(1, 3)
        ctx.save_for_backward(patches, matrix)
        ctx.geometry = windows.shape, padded.shape, stride, padding
        return torch.bmm(patches, matrix).view(*windows.shape[:4], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        patches, matrix = ctx.saved_tensors
        gradient = gradients[0].flatten(1, 3)
        to_matrix = torch.bmm(patches.transpose(1, 2), gradient)
        to_features = fold(gradient, matrix, *ctx.geometry) if ctx.needs_input_grad[0] else None
        return to_features, to_matrix, None, None, None


def fold(
    gradient: Tensor, matrix: Tensor, windows: torch.Size, padded: torch.Size, stride: int, padding: int
) -> Tensor:
    """The gradient of the features: that of every patch, added up where patches overlap."""
    _, _, height, width, size, _, _ = windows
    down, right = (slice(0, stride * (count - 1) + 1, stride) for count in (height, width))
    result = gradient.new_zeros(padded)
    room = gradient.new_empty(gradient.shape[1], matrix.shape[1])
    for one, weight, target in zip(gradient, matrix, result, strict=True):  # one at a time: it stays in cache
        parts = torch.mm(one, weight.t(), out=room).view(windows[1:])
        for y, x in itertools.product(range(size), repeat=2):
            target[:, y : y + down.stop : stride, x : x + right.stop : stride] += parts[:, :, :, y, x]
    end = -padding or None
    return result[:, :, padding:end, padding:end]


class GroupNorm(torch.autograd.Function):
    """Group normalisation of (k, B, P, C) with a scale and a shift (k, C) per network, in few passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, groups: int, eps: float) -> Tensor:
        count = x.shape[2] * x.shape[3] // groups

        def over_group(sums: Tensor) -> Tensor:
            """The mean over a group of (k, B, C), given for each of its channels."""
            parts = sums.unflatten(-1, (groups, -1))
            return (parts.sum(-1, keepdim=True) / count).expand_as(parts).flatten(-2)

        centred = x - over_group(x.sum(2))[:, :, None]
        factor = (over_group(torch.square(centred).sum(2)) + eps).rsqrt()
        normal = centred.mul_(factor[:, :, None])
        ctx.save_for_backward(normal, scale, factor)
        ctx.over_group = over_group
        return torch.addcmul(shift[:, None, None], normal, scale[:, None, None])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (normal, scale, factor) = gradients, ctx.saved_tensors
        shifts, scales = gradient.sum(2), (gradient * normal).sum(2)  # (k, B, C)
        weight = scale[:, None]
        mean, slope = ctx.over_group(shifts * weight), ctx.over_group(scales * weight)
        x = torch.addcmul((-factor * mean)[:, :, None], gradient, (factor * weight)[:, :, None])
        x.addcmul_(normal, (-factor * slope)[:, :, None])
        return x, scales.sum(1), shifts.sum(1), None, None
