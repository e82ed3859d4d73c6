"""The estimator in its obvious form, which `estimator.estimate` is tested against: read this first.

Plain autograd and loops, every tensor formed; no measures, precision or forward mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked.forward_gradient import guesses
from unlocked.forward_gradient.guesses import Draw
from unlocked.forward_gradient.method import Method
from unlocked.forward_gradient.passes import Loss, Tensors, frozen_statistics, hooked, trainable
from unlocked.forward_gradient.projection import project


def estimate(
    blocks: Sequence[nn.Module],
    auxiliaries: Sequence[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    method: Method,
    *,
    noise: Draw | None = None,
    loss: Loss = cross_entropy,
    guess_auxiliaries: Sequence[nn.Module] | None = None,
) -> Tensors:
    """The gradient estimates, by the names of `Estimate.gradients`."""
    draw, guess = noise or guesses.noise(method.distribution), method.of_guess
    with frozen_statistics(*blocks, *auxiliaries, *(guess_auxiliaries or ())):
        features = [inputs]
        for block in blocks:
            features.append(block(features[-1]))
        whole, last = loss(auxiliaries[-1](features[-1]), labels), len(blocks) - 1
        found = _gradients(whole, blocks[-1], f"blocks.{last}.")
        found |= _gradients(whole, auxiliaries[-1], f"auxiliaries.{last}.")
        for k, (before, after) in enumerate(pairwise(features[:-1]) if method.trains_blocks else ()):
            leaf = after.detach().requires_grad_()
            own = loss(auxiliaries[k](leaf), labels)
            target = method.of_target.function(_gradient(whole, after), _gradient(own, leaf))
            along = None
            if guess.source != "noise":
                other = loss((guess_auxiliaries or auxiliaries)[k](leaf), labels)
                along = guess.function(_gradient(other, leaf) if guess.source == "head" else target)
            found |= _of_block(f"blocks.{k}.", blocks[k], before.detach(), target, along, method, draw)
            if method.trains_auxiliaries:
                found |= _gradients(own, auxiliaries[k], f"auxiliaries.{k}.")
        return found


def _of_block(
    prefix: str, block: nn.Module, inputs: Tensor, target: Tensor, along: Tensor | None, method: Method, draw: Draw
) -> Tensors:
    """One block's estimate, from target and guess at its outputs; along None: noise."""

    def in_space(cotangent: Tensor) -> Tensors:
        if method.space == "activity":
            return {"output": cotangent}
        if method.is_averaged:
            return _gradients(block(inputs), block, cotangent=cotangent)
        return contributions(block, inputs, cotangent)

    total = in_space(target)
    if method.is_projected:
        targets, total = total, {}
        for _ in range(method.tangents):
            guess = _drawn(targets, method, draw) if along is None else in_space(along)
            for name, part in (_jointly if method.per_block else _by_tensor)(targets, guess, method).items():
                total[name] = total.get(name, 0) + part / method.tangents
    if method.space == "activity":
        return _gradients(block(inputs), block, prefix, total["output"])
    return {prefix + name: parts if method.is_averaged else parts.sum(0) for name, parts in total.items()}


def _drawn(targets: Tensors, method: Method, draw: Draw) -> Tensors:
    return {name: method.of_guess.function(draw(t.shape, t.dtype, t.device)) for name, t in targets.items()}


def _by_tensor(targets: Tensors, guess: Tensors, method: Method) -> Tensors:
    options = {"per_sample": not method.is_averaged, "normalise": method.is_normalised}
    return {name: project(target, guess[name], **options) for name, target in targets.items()}


def _jointly(targets: Tensors, guess: Tensors, method: Method) -> Tensors:
    """With one coefficient for all tensors."""
    target, along = (torch.cat([side[name].flatten() for name in targets]) for side in (targets, guess))
    whole = project(target, along, per_sample=False, normalise=method.is_normalised)
    parts = whole.split([t.numel() for t in targets.values()])
    return {name: part.reshape(targets[name].shape) for name, part in zip(targets, parts, strict=True)}


def _gradient(outputs: Tensor, inputs: Tensor, cotangent: Tensor | None = None) -> Tensor:
    return torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, materialize_grads=True)[0]


def _gradients(outputs: Tensor, module: nn.Module, prefix: str = "", cotangent: Tensor | None = None) -> Tensors:
    return {prefix + name: _gradient(outputs, p, cotangent) for name, p in module.named_parameters()}


def contributions(block: nn.Module, inputs: Tensor, cotangent: Tensor) -> Tensors:
    """Every sample's part of the gradients in a block's parameters, (N, *parameter shape).

    It is the gradient in the copy of the parameter that the sample used: in each use of a layer, for the gradient at
    its outputs with the rows of all other samples zero.
    """
    names = {id(p): name for name, p in block.named_parameters()}
    total = {name: p.new_zeros(len(inputs), *p.shape) for name, p in block.named_parameters()}
    uses: list[tuple[nn.Module, Tensor, Tensor]] = []
    layers = [layer for layer in block.modules() if trainable(layer, recurse=False)]
    with hooked(layers, lambda layer, given, outputs: uses.append((layer, given[0], outputs))):
        outputs = block(inputs)
    for layer, given, place in uses:
        gradient = _gradient(outputs, place, cotangent)
        again = layer(given.detach())  # apart from the uses before it
        for sample in range(len(inputs)):
            alone = torch.zeros_like(gradient)
            alone[sample] = gradient[sample]
            for parameter in trainable(layer, recurse=False).values():
                total[names[id(parameter)]][sample] += _gradient(again, parameter, alone)
    return total
