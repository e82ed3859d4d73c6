"""Forward derivatives of convolution and BatchNorm in as few passes as they need.

torch convolves with tangents that are zero, and composes the derivative of BatchNorm of elementwise passes. With batch
statistics the outputs of one channel, w x̂ + b, have in its m inputs the derivative w (I − 11ᵀ/m − x̂x̂ᵀ/m) / σ. This is
symmetric, so its product with a tangent is what the backward pass makes of a cotangent, and for that there is a kernel.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Moving: TypeAlias = Tensor | None  # a tangent; None: this input does not move


class FewPasses(TorchFunctionMode):
    """Inside, both have these forward derivatives, and none backwards."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return OURS.get(function, function)(*arguments, **named or {})


def convolution(
    like: Callable[..., Tensor], input: Tensor, weight: Tensor, bias: Tensor | None = None, *options: Any, **named: Any
) -> Tensor:
    """As `torch.nn.functional.conv2d`, or what it is `like`."""

    def convolve(values: Tensor, kernel: Tensor, shift: Tensor | None) -> Tensor:
        return like(values, kernel, shift, *options, **named)

    outputs: Tensor = _Convolution.apply(input, weight, bias, convolve)
    return outputs


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As `torch.nn.functional.batch_norm`."""
    if not training or running_mean is not None:  # fixed statistics, or some that would change in place
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    outputs: Tensor = _BatchNorm.apply(input, weight, bias, eps)[0]
    return outputs


OURS: dict[Callable[..., Any], Callable[..., Any]] = {functional.batch_norm: batch_norm} | {
    like: functools.partial(convolution, like) for like in (torch.conv1d, torch.conv2d, torch.conv3d)
}


class _Convolution(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, kernel: Tensor, shift: Tensor | None, convolve: Callable[..., Tensor]) -> Tensor:
        return convolve(values, kernel, shift)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, kernel, _, ctx.convolve = inputs
        ctx.shape = output.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(values, kernel)

    @staticmethod
    def jvp(ctx: Any, of_values: Moving, of_kernel: Moving, of_shift: Moving, _: None) -> Tensor:
        values, kernel = ctx.saved_tensors
        parts: list[Tensor] = []
        if of_values is not None:
            parts.append(ctx.convolve(of_values, kernel, None))
        if of_kernel is not None:
            parts.append(ctx.convolve(values, of_kernel, of_shift))
        elif of_shift is not None:
            parts.append(of_shift.view(-1, *[1] * (kernel.dim() - 2)).expand(ctx.shape))
        return functools.reduce(operator.add, parts)


class _BatchNorm(Function):
    """Outputs, mean and 1 / σ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        return torch.native_batch_norm(values, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        values, weight, _, ctx.eps = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_forward(values, weight, *output[1:])

    @staticmethod
    def jvp(ctx: Any, of_values: Moving, of_weight: Moving, of_bias: Moving, _: None) -> tuple[Tensor, None, None]:
        values, weight, mean, inverse = ctx.saved_tensors
        parts: list[Tensor] = []
        if of_values is not None:
            back, wanted = torch.ops.aten.native_batch_norm_backward, [True, False, False]
            parts.append(back(of_values, values, weight, None, None, mean, inverse, True, ctx.eps, wanted)[0])
        if of_weight is None and of_bias is not None:
            of_weight = torch.zeros_like(of_bias)  # none would be read as ones
        if of_weight is not None:
            parts.append(_BatchNorm.forward(values, of_weight, of_bias, ctx.eps)[0])
        return functools.reduce(operator.add, parts), None, None
