"""Where target and guess live: at a block's output, in its weights, or in every sample's copy of its weights.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `estimator` and `forward_mode`.
A space turns a gradient at the block's output into tensors by name, and tensors by name into parameter gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import functional_call

from unlocked.errors import SettingError, choose
from unlocked.forward_gradient import projection
from unlocked.forward_gradient.passes import BlockPass, owned_parameters, uses_batch_statistics
from unlocked.forward_gradient.per_sample import AnyLayer, Contributions, Use, rule
from unlocked.forward_gradient.projection import scale

Tensors = dict[str, Tensor]
Place = Tensor | GradientEdge
Vector = Tensor | Contributions  # a target or guess at one place of a space


class Space(Protocol):
    """What the estimator asks of a space. `per_sample`: one coefficient per sample, else one per tensor."""

    per_sample: bool
    needs_calls: bool

    def check(self, block: nn.Module) -> None:
        """Raise SettingError where `block` holds something that the space cannot treat."""

    def wanted(self, step: BlockPass) -> Sequence[Place]:
        """The places inside the block whose gradients `read` needs."""

    def read(self, step: BlockPass, cotangent: Tensor, inside: Sequence[Tensor | None]) -> dict[str, Vector]:
        """The vectors of the space, from the gradient at the block's output and those at the `wanted` places."""

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        """The shapes of the tensors of the space, in the order in which random guesses are drawn."""

    def inner(self, guess: Vector, others: Sequence[Vector]) -> list[Tensor]:
        """<G, V> for each V of `others`: (N,) in a per-sample space, else ()."""

    def weigh(self, coefficient: Tensor, guess: Vector) -> Tensor:
        """`c G`, summed over samples if `gradients` needs no more."""

    def summed(self, weighed: Tensor) -> Tensor:
        """In a per-sample space: the sum over samples of what `weigh` gave."""

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        """The gradients of the block's parameters that weighed guesses amount to."""

    def motion(self, step: BlockPass, name: str, guess: Vector) -> Any:
        """What `perturb` needs to know of a guess, found once."""

    def perturb(self, step: BlockPass, name: str, motion: Any, amount: Tensor) -> Tensor:
        """The block's outputs when place `name` moves by `amount` × the guess; amount: (N,) per sample, else ()."""


class _Plain:
    """A space whose vectors are tensors, multiplied as they are."""

    per_sample: bool
    needs_calls = False

    def check(self, block: nn.Module) -> None:
        pass

    def inner(self, guess: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
        return [projection.inner(guess, other, self.per_sample) for other in others]

    def weigh(self, coefficient: Tensor, guess: Tensor) -> Tensor:
        return scale(coefficient, guess)

    def summed(self, weighed: Tensor) -> Tensor:
        return weighed.sum(0)

    def motion(self, step: BlockPass, name: str, guess: Tensor) -> Tensor:
        return guess


class Activity(_Plain):
    """The block's output (N, ...); activity perturbation. One coefficient per sample, or one for the batch."""

    def __init__(self, averaged: bool) -> None:
        self.per_sample = not averaged

    def wanted(self, step: BlockPass) -> Sequence[Place]:
        return ()

    def read(self, step: BlockPass, cotangent: Tensor, inside: Sequence[Tensor | None]) -> dict[str, Vector]:
        return {"output": cotangent}

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        return {"output": step.outputs.shape}

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        return step.parameter_gradients(tensors["output"])

    def perturb(self, step: BlockPass, name: str, motion: Tensor, amount: Tensor) -> Tensor:
        return step.outputs.detach() + scale(amount, motion)


class AveragedWeight(_Plain):
    """Each parameter's batch gradient, in the parameter's shape; the cheap form of weight perturbation."""

    per_sample = False

    def wanted(self, step: BlockPass) -> Sequence[Place]:
        return list(step.parameters.values())

    def read(self, step: BlockPass, cotangent: Tensor, inside: Sequence[Tensor | None]) -> dict[str, Vector]:
        return {**step.named(inside)}

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        return {name: p.shape for name, p in step.parameters.items()}

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        return tensors

    def perturb(self, step: BlockPass, name: str, motion: Tensor, amount: Tensor) -> Tensor:
        moved = step.parameters[name].detach() + scale(amount, motion)
        return functional_call(step.block, {name: moved}, (step.inputs.detach(),))


class PerSampleWeight:
    """Every sample's contribution to each parameter's gradient, (N, *parameter shape); weight perturbation.

    A gradient's contributions are never formed; a random guess is drawn as a tensor.
    """

    per_sample = True
    needs_calls = True

    def check(self, block: nn.Module) -> None:
        for layer in block.modules():
            unknown = owned_parameters(layer) and isinstance(rule(layer), AnyLayer)
            if unknown and uses_batch_statistics(layer):
                right = "mixes the samples of a batch in a way of its own, so per-sample weight gradients are not known"
                raise SettingError("layer", type(layer).__name__, right)

    def wanted(self, step: BlockPass) -> Sequence[Place]:
        return [call.outputs for call in step.calls]

    def read(self, step: BlockPass, cotangent: Tensor, inside: Sequence[Tensor | None]) -> dict[str, Vector]:
        uses: dict[str, list[Use]] = {name: [] for name in step.parameters}
        names = {id(parameter): name for name, parameter in step.parameters.items()}
        for call, gradient in zip(step.calls, inside, strict=True):
            at_outputs = step.outputs.new_zeros(()).expand(call.shape) if gradient is None else gradient
            for own, parameter in owned_parameters(call.layer).items():
                uses[names[id(parameter)]].append(Use(call, own, at_outputs))
        return {name: Contributions(p, step.samples, uses[name]) for name, p in step.parameters.items()}

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        return {name: (step.samples, *p.shape) for name, p in step.parameters.items()}

    def inner(self, guess: Vector, others: Sequence[Vector]) -> list[Tensor]:
        if isinstance(guess, Contributions):
            return guess.inner(others)
        return [
            other.inner_with(guess) if isinstance(other, Contributions) else projection.inner(guess, other, True)
            for other in others
        ]

    def weigh(self, coefficient: Tensor, guess: Vector) -> Tensor:
        if isinstance(guess, Contributions):
            return guess.weighted(coefficient)
        return torch.tensordot(coefficient, guess, 1)

    def summed(self, weighed: Tensor) -> Tensor:
        return weighed

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        return tensors

    def motion(self, step: BlockPass, name: str, guess: Vector) -> list[tuple[nn.Module, Tensor]]:
        """Every layer call that the parameter has a part in, and the change of its outputs."""
        if isinstance(guess, Contributions):
            moved, responses = guess, guess.responses()
        else:
            moved = self.read(step, step.outputs, [None] * len(step.calls))[name]
            responses = moved.responses(guess)
        return [(use.call.layer, response) for use, response in zip(moved.uses, responses, strict=True)]

    def perturb(self, step: BlockPass, name: str, motion: list[tuple[nn.Module, Tensor]], amount: Tensor) -> Tensor:
        waiting: dict[nn.Module, Iterator[Tensor]] = {
            layer: iter([response for other, response in motion if other is layer]) for layer, _ in motion
        }

        def move(layer: nn.Module, arguments: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
            # at amount 0 the derivative does not see what the motion has changed in the layer's inputs
            return outputs + scale(amount, next(waiting[layer]))

        handles = [layer.register_forward_hook(move) for layer in waiting]
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


def without_rule(space: Space, blocks: Sequence[nn.Module]) -> list[str]:
    """Types of the layers for which a space has no rule, so that torch.func takes their samples one by one."""
    layers = [layer for block in blocks for layer in block.modules() if owned_parameters(layer)]
    return sorted({type(layer).__name__ for layer in layers if space.needs_calls and isinstance(rule(layer), AnyLayer)})
