"""Where target and guess live: at a block's output, in its weights, or in every sample's copy of its weights.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `estimator` and `forward_mode`.
A space turns a gradient at the block's output into tensors by name, and tensors by name into parameter gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import functional_call

from unlocked.errors import choose
from unlocked.forward_gradient import per_sample
from unlocked.forward_gradient.passes import BlockPass, owned_parameters, pull
from unlocked.forward_gradient.projection import scale

Tensors = dict[str, Tensor]


class Space(Protocol):
    """What the estimator asks of a space. `per_sample`: one coefficient per sample, else one per tensor."""

    per_sample: bool
    needs_calls: bool

    def check(self, block: nn.Module) -> None:
        """Raise SettingError where `block` holds something that the space cannot treat."""

    def wanted(self, step: BlockPass) -> Sequence[Tensor | GradientEdge]:
        """The places inside the block whose gradients `read` needs."""

    def read(self, step: BlockPass, cotangent: Tensor, inside: Sequence[Tensor | None]) -> Tensors:
        """The tensors of the space, from the gradient at the block's output and those at the `wanted` places."""

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        """The shapes of the tensors of the space, in the order in which random guesses are drawn."""

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        """The gradients of the block's parameters that `tensors` of the space amount to."""

    def perturb(self, step: BlockPass, name: str, direction: Tensor, amount: Tensor) -> Tensor:
        """The block's outputs when tensor `name` moves by `amount` × `direction`; amount: (N,) per sample, else ()."""


class Activity:
    """The block's output (N, ...); activity perturbation. One coefficient per sample, or one for the batch."""

    needs_calls = False

    def __init__(self, averaged: bool) -> None:
        self.per_sample = not averaged

    def check(self, block: nn.Module) -> None:
        pass

    def wanted(self, step: BlockPass) -> Sequence[Tensor]:
        return ()

    def read(self, step: BlockPass, cotangent: Tensor, inside: Sequence[Tensor | None]) -> Tensors:
        return {"output": cotangent}

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        return {"output": step.outputs.shape}

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        found = pull(step.outputs, tensors["output"], list(step.parameters.values()))
        return or_zeros(step.parameters, found)

    def perturb(self, step: BlockPass, name: str, direction: Tensor, amount: Tensor) -> Tensor:
        return step.outputs.detach() + scale(amount, direction)


class AveragedWeight:
    """Each parameter's batch gradient, in the parameter's shape; the cheap form of weight perturbation."""

    per_sample = False
    needs_calls = False

    def check(self, block: nn.Module) -> None:
        pass

    def wanted(self, step: BlockPass) -> Sequence[Tensor]:
        return list(step.parameters.values())

    def read(self, step: BlockPass, cotangent: Tensor, inside: Sequence[Tensor | None]) -> Tensors:
        return or_zeros(step.parameters, inside)

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        return {name: p.shape for name, p in step.parameters.items()}

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        return tensors

    def perturb(self, step: BlockPass, name: str, direction: Tensor, amount: Tensor) -> Tensor:
        moved = step.parameters[name].detach() + scale(amount, direction)
        return functional_call(step.block, {name: moved}, (step.inputs.detach(),))


class PerSampleWeight:
    """Every sample's contribution to each parameter's gradient, (N, *parameter shape); weight perturbation."""

    per_sample = True
    needs_calls = True

    def check(self, block: nn.Module) -> None:
        for layer in block.modules():
            if owned_parameters(layer):
                per_sample.rule(layer)

    def wanted(self, step: BlockPass) -> Sequence[GradientEdge]:
        return [call.outputs for call in step.calls]

    def read(self, step: BlockPass, cotangent: Tensor, inside: Sequence[Tensor | None]) -> Tensors:
        names = _names_by_identity(step.block)
        tensors = {name: p.new_zeros(step.samples, *p.shape) for name, p in step.parameters.items()}
        for call, gradient in zip(step.calls, inside, strict=True):
            if gradient is None:
                continue
            contributions = per_sample.rule(call.layer).gradient(call.layer, call.inputs, gradient)
            for own, parameter in owned_parameters(call.layer).items():
                name = names[id(parameter)]
                tensors[name] = tensors[name] + contributions[own]
        return tensors

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        return {name: (step.samples, *p.shape) for name, p in step.parameters.items()}

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        return {name: tensor.sum(0) for name, tensor in tensors.items()}

    def perturb(self, step: BlockPass, name: str, direction: Tensor, amount: Tensor) -> Tensor:
        def move(own: str):
            def hook(layer: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
                return outputs + scale(amount, per_sample.rule(layer).response(layer, arguments[0], own, direction))

            return hook

        parameter = step.parameters[name]
        owners = [(m, own) for m in step.block.modules() for own, p in owned_parameters(m).items() if p is parameter]
        handles = [layer.register_forward_hook(move(own)) for layer, own in owners]
        try:
            return step.block(step.inputs.detach())
        finally:
            for handle in handles:
                handle.remove()


def build(space: str, averaged: bool) -> Space:
    """The space `weight` or `activity`, with one coefficient per sample, or (`averaged`) per tensor of the batch."""
    if choose("space", space, ("weight", "activity")) == "activity":
        return Activity(averaged)
    return AveragedWeight() if averaged else PerSampleWeight()


def or_zeros(parameters: Tensors, gradients: Sequence[Tensor | None]) -> Tensors:
    """Gradients by parameter name; zeros where the outputs did not depend on the parameter."""
    pairs = zip(parameters.items(), gradients, strict=True)
    return {name: torch.zeros_like(p) if gradient is None else gradient for (name, p), gradient in pairs}


def _names_by_identity(block: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in block.named_parameters()}
