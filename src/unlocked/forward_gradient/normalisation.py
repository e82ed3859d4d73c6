"""BatchNorm's forward derivative by one kernel; torch composes it of elementwise passes, three times as slow.

With batch statistics the outputs of one channel, w x̂ + b, have in its m inputs the derivative
w (I − 11ᵀ/m − x̂x̂ᵀ/m) / σ. This is symmetric, so its product with a tangent is what the backward pass makes of a
cotangent, and for that torch has a kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class FusedBatchNorm(TorchFunctionMode):
    """Inside, every BatchNorm with batch statistics has the fast forward derivative, and none backwards."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        return (batch_norm if function is functional.batch_norm else function)(*arguments, **named or {})


def batch_norm(
    inputs: Tensor, mean: Tensor | None, variance: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As `torch.nn.functional.batch_norm`, by position."""
    if training and mean is None:  # no running statistics to update
        return _Normalised.apply(inputs, weight, bias, eps)[0]
    return functional.batch_norm(inputs, mean, variance, weight, bias, training, momentum, eps)


class _Normalised(torch.autograd.Function):
    """Outputs, mean and 1 / σ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(inputs: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        return torch.native_batch_norm(inputs, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        values, weight, _, ctx.eps = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_forward(values, weight, *output[1:])

    @staticmethod
    def jvp(ctx: Any, along: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None, _: None) -> Any:
        values, weight, mean, inverse = ctx.saved_tensors
        parts = []
        if along is not None:
            back, wanted = torch.ops.aten.native_batch_norm_backward, [True, False, False]
            parts.append(back(along, values, weight, None, None, mean, inverse, True, ctx.eps, wanted)[0])
        if of_weight is None and of_bias is not None:
            of_weight = torch.zeros_like(of_bias)  # none would be read as ones
        if of_weight is not None:
            parts.append(_Normalised.forward(values, of_weight, of_bias, ctx.eps)[0])
        return sum(parts) if parts else None, None, None
