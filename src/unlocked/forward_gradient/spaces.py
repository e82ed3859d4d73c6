"""Where target and guess live: at a block's output, in its weights, or in every sample's copy of its weights.

A space turns a gradient at the block's output into vectors by name, and weighed vectors into parameter gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from unlocked.errors import SettingError
from unlocked.forward_gradient import projection
from unlocked.forward_gradient.method import Method
from unlocked.forward_gradient.passes import BlockPass, Tensors, hooked, trainable, uses_batch_statistics
from unlocked.forward_gradient.per_sample import Contributions, Use, is_known
from unlocked.forward_gradient.projection import scale

Vector: TypeAlias = Any  # a target or guess at one place of a space: a tensor, or `Contributions`
Moving: TypeAlias = Callable[[Tensor], Tensor]


class AveragedWeight:
    """Each parameter's batch gradient, in the parameter's shape; the cheap form of weight perturbation.

    The other spaces differ from it where they say so. per_sample: one coefficient per sample, else one per tensor.
    needs_calls: it needs to know the layers' inputs.
    """

    per_sample = False
    needs_calls = False

    def check(self, block: nn.Module) -> set[str]:
        """Types of the layers that torch.func takes sample by sample; SettingError for layers that it cannot."""
        return set()

    def read(self, step: BlockPass, cotangent: Tensor) -> dict[str, Vector]:
        """The vectors of the space by name, from the gradient `cotangent` at the block's output."""
        return step.parameter_gradients(cotangent)

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        """The shapes of the tensors of the space, in the order in which random guesses are drawn."""
        return {name: p.shape for name, p in step.parameters.items()}

    def inner(self, guess: Vector, others: Sequence[Vector]) -> list[Tensor]:
        """<G, V> for each V of `others`: (N,) in a per-sample space, else ()."""
        return [projection.inner(guess, other, self.per_sample) for other in others]

    def weigh(self, coefficient: Tensor, guess: Vector) -> Tensor:
        """`c G`, summed over samples if `gradients` needs no more."""
        return scale(coefficient, guess)

    def summed(self, vector: Vector, ones: Tensor) -> Tensor:
        """In a per-sample space: the sum over samples. ones: (N,)."""
        return vector.sum(0)

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        """The gradients of the block's parameters that weighed guesses amount to."""
        return tensors

    def moving(self, step: BlockPass, guesses: Mapping[str, Vector]) -> Moving:
        """The block's outputs when these places move by an amount, (N,) per sample or (), times their guesses.

        Several places at once in this space alone.
        """

        def outputs(amount: Tensor) -> Tensor:
            moved = {name: step.parameters[name].detach() + scale(amount, guess) for name, guess in guesses.items()}
            return functional_call(step.block, moved, (step.inputs.detach(),))

        return outputs


class Activity(AveragedWeight):
    """The block's output (N, ...); activity perturbation. One coefficient per sample, or one for the batch."""

    def __init__(self, averaged: bool) -> None:
        self.per_sample = not averaged

    def read(self, step: BlockPass, cotangent: Tensor) -> dict[str, Vector]:
        return {"output": cotangent}

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        return {"output": step.outputs.shape}

    def gradients(self, step: BlockPass, tensors: Tensors) -> Tensors:
        return step.parameter_gradients(tensors["output"])

    def moving(self, step: BlockPass, guesses: Mapping[str, Vector]) -> Moving:
        [guess] = guesses.values()
        return lambda amount: step.outputs.detach() + scale(amount, guess)


class PerSampleWeight(AveragedWeight):
    """Every sample's contribution to each parameter's gradient, (N, *parameter shape); weight perturbation.

    A gradient's contributions are never formed; a random guess is drawn as a tensor.
    """

    per_sample = True
    needs_calls = True

    def check(self, block: nn.Module) -> set[str]:
        unknown = [layer for layer in block.modules() if trainable(layer, recurse=False) and not is_known(layer)]
        for layer in filter(uses_batch_statistics, unknown):
            right = "mixes the samples of a batch in a way of its own, so per-sample weight gradients are not known"
            raise SettingError("layer", type(layer).__name__, right)
        return {type(layer).__name__ for layer in unknown}

    def read(self, step: BlockPass, cotangent: Tensor) -> dict[str, Vector]:
        found = self._contributions(step, step.pull(cotangent, [call.outputs for call in step.calls]))
        for name, one in found.items():
            if not one.uses and step.pull(cotangent, [one.parameter])[0] is not None:
                right = "is used outside its layer's own forward pass, so per-sample weight gradients are not known"
                raise SettingError("parameter", name, right)
        return found

    def _contributions(self, step: BlockPass, gradients: Sequence[Tensor | None]) -> dict[str, Contributions]:
        """By parameter, for the gradients at the outputs of the layers' calls."""
        found = {name: Contributions(p, len(step.inputs)) for name, p in step.parameters.items()}
        of_parameter = {id(one.parameter): one for one in found.values()}
        for call, gradient in zip(step.calls, gradients, strict=True):
            at_outputs = step.outputs.new_zeros(()).expand(call.shape) if gradient is None else gradient
            for own, parameter in trainable(call.layer, recurse=False).items():
                of_parameter[id(parameter)].uses.append(Use(call, own, parameter, at_outputs))
        return found

    def shapes(self, step: BlockPass) -> dict[str, Sequence[int]]:
        return {name: (len(step.inputs), *p.shape) for name, p in step.parameters.items()}

    def inner(self, guess: Vector, others: Sequence[Vector]) -> list[Tensor]:
        if isinstance(guess, Contributions):
            return guess.inner(others)
        return [
            other.inner_with(guess) if isinstance(other, Contributions) else projection.inner(guess, other, True)
            for other in others
        ]

    def weigh(self, coefficient: Tensor, guess: Vector) -> Tensor:
        is_formed = isinstance(guess, Tensor)
        return torch.tensordot(coefficient, guess, 1) if is_formed else guess.weighted(coefficient)

    def summed(self, vector: Vector, ones: Tensor) -> Tensor:
        return self.weigh(ones, vector)

    def moving(self, step: BlockPass, guesses: Mapping[str, Vector]) -> Moving:
        [(name, guess)] = guesses.items()
        moved = guess
        if isinstance(guess, Tensor):
            moved = self._contributions(step, [None] * len(step.calls))[name]
        changes: dict[nn.Module, list[Tensor]] = {}  # of a layer's outputs, call by call
        for use, change in zip(moved.uses, moved.responses(None if moved is guess else guess), strict=True):
            changes.setdefault(use.layer, []).append(change)

        def outputs(amount: Tensor) -> Tensor:
            waiting = {layer: iter(several) for layer, several in changes.items()}
            # at amount 0 the derivative does not see what the motion has changed in the layer's inputs
            with hooked([*changes], lambda layer, _, outputs: outputs + scale(amount, next(waiting[layer]))):
                return step.block(step.inputs.detach())

        return outputs


Space = AveragedWeight


def of(method: Method) -> Space:
    """The space of a method."""
    if method.space == "activity":
        return Activity(method.is_averaged)
    return AveragedWeight() if method.is_averaged else PerSampleWeight()
