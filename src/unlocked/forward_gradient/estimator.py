"""`estimate`: one gradient estimate for every parameter of a net in blocks, from a target, a guess and a space.

Stands inside `train` on the road configs -> plan -> train -> record -> item; `trainer` calls it once per step. It is
"Can Forward Gradient Match Backpropagation?" (ICML 2023) in one function: each combination of target, guess and space
is a method, and backpropagation and local learning are two corners of the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from unlocked.errors import SettingError, choose
from unlocked.forward_gradient import forward_mode, guesses, measures, spaces, targets
from unlocked.forward_gradient.guesses import Draw
from unlocked.forward_gradient.passes import BlockPass, HeadPass, forward, head, pull
from unlocked.forward_gradient.projection import from_inner, inner, scale
from unlocked.forward_gradient.spaces import Space, Tensors

Products = Callable[[Tensors], Tensors]


@dataclass
class Estimate:
    """What one call of `estimate` found; every tensor is detached.

    gradients: by `blocks.<k>.<parameter>` and `auxiliaries.<k>.<parameter>`; a parameter without a gradient is absent
    (and must be neither stepped nor decayed). losses, correct: (K,), mean cross-entropy and number of right answers of
    every block's auxiliary net; the last is the net's. coefficients: by `blocks.<k>.<tensor>`, the tensor a parameter
    or `output`; (N,) per sample, else (); a first dimension of `tangents` where there are several; none where guess and
    target are one. measures: by (metric, block), when asked for.
    """

    gradients: Tensors
    losses: Tensor
    correct: Tensor
    coefficients: Tensors = field(default_factory=dict)
    measures: measures.Measures = field(default_factory=dict)


@dataclass(frozen=True)
class _Method:
    """The checked settings of one estimate."""

    target: str
    guess: str
    space: Space
    mode: str
    normalise: bool
    tangents: int
    draw: Draw
    measure: bool
    update: bool
    per_sample_method: str
    chunk: int

    @property
    def trains_auxiliaries(self) -> bool:
        return "local" in (self.target, self.guess)

    @property
    def is_its_target(self) -> bool:
        """Whether guess and target are one, so that no projection is needed: backpropagation and local learning."""
        return self.guess == self.target and self.normalise and not self.measure

    @property
    def needs_chain(self) -> bool:
        """Whether a gradient runs back through all blocks."""
        return self.mode == "projection" and (self.target == "global" or self.measure)


@dataclass
class _Net:
    """The net and the batch of one estimate."""

    blocks: list[nn.Module]
    auxiliaries: list[nn.Module]
    guess_auxiliaries: list[nn.Module] | None
    inputs: Tensor
    labels: Tensor


@dataclass
class _Found:
    """What is gathered on the way to an `Estimate`."""

    heads: list[HeadPass]
    gradients: Tensors = field(default_factory=dict)
    coefficients: Tensors = field(default_factory=dict)
    measures: measures.Measures = field(default_factory=dict)

    def keep(self, block: BlockPass, gradients: Sequence[Tensor | None]) -> None:
        """File one block's parameter gradients, given in the order of its parameters."""
        named = spaces.or_zeros(block.parameters, gradients)
        self.gradients |= {f"blocks.{block.index}.{name}": gradient for name, gradient in named.items()}

    def closed(self) -> Estimate:
        """The estimate, with what the auxiliary nets gave."""
        for k, one in enumerate(self.heads):
            self.gradients |= {f"auxiliaries.{k}.{name}": gradient for name, gradient in one.gradients.items()}
        losses = torch.stack([one.loss for one in self.heads])
        correct = torch.stack([one.correct for one in self.heads])
        return Estimate(self.gradients, losses, correct, self.coefficients, self.measures)


@dataclass
class _Step:
    """One block with its loss; `guess` is the head that the guess comes from, where it comes from one."""

    block: BlockPass
    own: HeadPass
    guess: HeadPass | None


def estimate(
    blocks: Sequence[nn.Module],
    auxiliaries: Sequence[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    *,
    target: str,
    guess: str,
    space: str,
    averaged: bool = False,
    mode: str = "projection",
    normalise: bool | None = None,
    noise: Draw | None = None,
    distribution: str = "gaussian",
    generator: torch.Generator | None = None,
    tangents: int = 1,
    per_sample_method: str = "auto",
    chunk: int = forward_mode.CHUNK,
    guess_auxiliaries: Sequence[nn.Module] | None = None,
    measure: bool = False,
    update_statistics: bool = False,
) -> Estimate:
    """Estimate the gradient of every parameter on one batch, without changing anything.

    blocks: K modules in a chain. auxiliaries: K modules, the k-th from block k's outputs to scores (N, classes); the
    last is the classifier. inputs: (N, ...); labels: (N,) integers. The loss is the mean cross-entropy.

    target: `global` or `local`. guess: `random`, `local`, `ntk`, `fixed_ntk`, or, with the global target only,
    `global`. The caller redraws the nets of `ntk` (`guesses.redraw_`); here they are taken as they are.
    space, averaged: `weight`, `activity`; one coefficient per sample, or with `averaged` one per tensor.
    mode: `projection` backpropagates the target; `forward_mode` finds <T, G> by Jacobian-vector products.
    normalise: divide by the guess's squared norm; None: for every guess but `random`.

    The last block and the classifier get their true gradient. The other auxiliary nets get that of their own loss when
    target or guess is `local`, else none. global/global is backpropagation and local/local is local learning.

    noise: draws a random guess, given (shape, dtype, device); called block by block from the first to the last but one,
    in each tangent by tangent, in each tensor by tensor in the order of `named_parameters`. None: `distribution`
    (`gaussian`, `rademacher`) from `generator`. tangents: how many random guesses are averaged.
    per_sample_method, chunk: of `forward_mode.inner_products`.
    guess_auxiliaries: K nets of their own for the guesses `ntk` and `fixed_ntk`; None: `auxiliaries`, in which case
    a local target is the same gradient as its guess.
    measure: fill `Estimate.measures` (with `projection` only; it takes a second way back).
    update_statistics: let BatchNorm update its running statistics as one training forward pass does, in the blocks and
    in the nets that target or guess use. By default no buffer changes.

    Raises SettingError for names that are unknown and combinations that are not covered, each with the reason.
    """
    method = _Method(
        target=choose("target", target, targets.names()),
        guess=choose("guess", guess, guesses.names()),
        space=spaces.build(space, averaged),
        mode=choose("mode", mode, ("projection", "forward_mode")),
        normalise=guesses.normalised(guess) if normalise is None else normalise,
        tangents=tangents,
        draw=guesses.noise(distribution, generator) if noise is None else noise,
        measure=measure,
        update=update_statistics,
        per_sample_method=choose("per_sample_method", per_sample_method, forward_mode.methods()),
        chunk=chunk,
    )
    own_guesses = None if guess_auxiliaries is None else list(guess_auxiliaries)
    net = _Net(list(blocks), list(auxiliaries), own_guesses, inputs, labels)
    _check(method, net)
    with torch.enable_grad():
        if method.mode == "projection":
            return _by_projection(method, net)
        return _by_forward_mode(method, net)


def _check(method: _Method, net: _Net) -> None:
    """Refuse what cannot work, before any work."""
    if not net.blocks or len(net.auxiliaries) != len(net.blocks):
        raise SettingError("auxiliaries", len(net.auxiliaries), f"must be one per block: {len(net.blocks)}")
    if net.guess_auxiliaries is not None:
        if method.guess not in ("ntk", "fixed_ntk"):
            raise SettingError("guess_auxiliaries", "given", f"have no part in the guess {method.guess!r}")
        if len(net.guess_auxiliaries) != len(net.blocks):
            raise SettingError("guess_auxiliaries", len(net.guess_auxiliaries), "must be one per block")
    if method.guess == "global" and method.target != "global":
        raise SettingError("guess", "global", "only stands with the target global: it is that target")
    if method.tangents < 1 or (method.tangents > 1 and method.guess != "random"):
        raise SettingError("tangents", method.tangents, "must be 1, or more with the guess random")
    if method.mode == "forward_mode" and method.guess == "global":
        raise SettingError("mode", "forward_mode", "never forms the global target, so it cannot be the guess")
    if method.mode == "forward_mode" and method.measure:
        raise SettingError("measure", True, "needs mode projection: forward_mode never forms the target")
    if torch.is_inference_mode_enabled():
        raise SettingError("inference_mode", True, "drops gradients and tangents; leave it for `estimate`")
    if not method.is_its_target:
        for block in net.blocks[:-1]:
            method.space.check(block)


def _by_projection(method: _Method, net: _Net) -> Estimate:
    """Backpropagate the target, then compare it with the guess in every block."""
    steps: list[_Step] = []
    for index in range(len(net.blocks)):
        steps.append(_step(method, net, index, steps[-1].block.outputs if steps else net.inputs))
    *estimated, last = steps
    passes, heads = [step.block for step in steps], [step.own for step in steps]

    def wanted(block: BlockPass) -> Sequence[Tensor | GradientEdge]:
        return _places(block) if block is last.block or method.is_its_target else method.space.wanted(block)

    arrivals = targets.build(method.target, passes, heads, wanted)
    found = _Found(heads)
    for step, arrival in zip(estimated, arrivals, strict=False):
        if method.is_its_target:
            found.keep(step.block, arrival.inside)
            continue
        target = method.space.read(step.block, arrival.output, arrival.inside)
        _estimate_block(method, step, partial(_multiplied, method, target), target, found)
    found.keep(last.block, arrivals[-1].inside)
    if method.measure:
        _measure_error(found, passes[:-1], targets.global_(passes, heads, _places))
    return found.closed()


def _by_forward_mode(method: _Method, net: _Net) -> Estimate:
    """Block by block from the first, each block's graph let go before the next: no target is ever formed."""
    found = _Found([])
    outputs = net.inputs
    for index in range(len(net.blocks)):
        outputs = _forward_mode_block(method, net, index, outputs, found)
    return found.closed()


def _forward_mode_block(method: _Method, net: _Net, index: int, inputs: Tensor, found: _Found) -> Tensor:
    """One block's estimate from its inputs, into `found`; gives its outputs, without their graph."""
    step = _step(method, net, index, inputs)
    block = step.block
    found.heads.append(step.own)
    if index == len(net.blocks) - 1 or method.is_its_target:
        found.keep(block, pull(block.outputs, step.own.output_gradient, _places(block)))
        return block.outputs.detach()
    is_global = method.target == "global"
    tail = [*net.blocks[index + 1 :], net.auxiliaries[-1]] if is_global else [net.auxiliaries[index]]

    def products(guess: Tensors) -> Tensors:
        how = (method.per_sample_method, method.chunk)
        return forward_mode.inner_products(block, tail, net.labels, method.space, guess, *how)

    _estimate_block(method, step, products, None, found)
    return block.outputs.detach()


def _step(method: _Method, net: _Net, index: int, inputs: Tensor) -> _Step:
    """One block's part of the forward pass, its loss, and the gradients of auxiliary nets that the method asks for."""
    is_last = index == len(net.blocks) - 1
    calls = method.space.needs_calls and not method.is_its_target and not is_last
    block = forward(
        index, net.blocks[index], inputs, chained=method.needs_chain, record_calls=calls, update=method.update
    )
    guessing = guesses.from_auxiliaries(method.guess) and not is_last
    gives_guess = guessing and net.guess_auxiliaries is None
    used = method.target == "local" or gives_guess or is_last
    train = method.trains_auxiliaries or is_last
    update = method.update and used
    own = head(net.auxiliaries[index], block.outputs, net.labels, gradient=used, train=train, update=update)
    guess = own if gives_guess else None
    if guessing and not gives_guess:
        other = net.guess_auxiliaries[index]
        guess = head(other, block.outputs, net.labels, gradient=True, train=False, update=method.update)
    return _Step(block, own, guess)


def _guesses(method: _Method, step: _Step, target: Tensors | None) -> Iterator[Tensors]:
    """The guesses of one block: one, or `tangents` draws of noise."""
    block = step.block
    if method.guess == "random":
        for _ in range(method.tangents):
            shapes = method.space.shapes(block)
            yield {
                name: method.draw(shape, block.outputs.dtype, block.outputs.device) for name, shape in shapes.items()
            }
    elif method.guess == "global":
        yield target
    else:
        cotangent = step.guess.output_gradient
        yield method.space.read(block, cotangent, pull(block.outputs, cotangent, method.space.wanted(block)))


def _estimate_block(method: _Method, step: _Step, products: Products, target: Tensors | None, found: _Found) -> None:
    """One block's estimate, mean over its guesses, into `found`; `products` gives <T, G> for the tensors of a guess."""
    space, block = method.space, step.block
    total: Tensors = {}
    coefficients: list[Tensors] = []
    for guess in _guesses(method, step, target):
        found_products = products(guess)
        coefficients.append(
            {
                name: from_inner(found_products[name], g, per_sample=space.per_sample, normalise=method.normalise)
                for name, g in guess.items()
            }
        )
        parts = {name: scale(coefficients[-1][name], g) for name, g in guess.items()}
        total = {name: total[name] + part for name, part in parts.items()} if total else parts
        if method.measure and len(coefficients) == 1:
            found.measures |= measures.alignment(block.index, target, guess, coefficients[0])
    mean = {name: tensor / method.tangents for name, tensor in total.items()} if method.tangents > 1 else total
    found.keep(block, list(space.gradients(block, mean).values()))
    for name in coefficients[0]:
        every = torch.stack([one[name] for one in coefficients])
        found.coefficients[f"blocks.{block.index}.{name}"] = every if method.tangents > 1 else every[0]


def _multiplied(method: _Method, target: Tensors, guess: Tensors) -> Tensors:
    """<T, G> where the target is at hand."""
    return {name: inner(target[name], guess[name], method.space.per_sample) for name in guess}


def _places(block: BlockPass) -> list[Tensor]:
    return list(block.parameters.values())


def _measure_error(found: _Found, blocks: Sequence[BlockPass], truths: Sequence[targets.Arrival]) -> None:
    """Compare the estimates of `blocks` with their true gradients, one by one and all together."""
    whole: tuple[Tensors, Tensors] = ({}, {})
    for block, truth in zip(blocks, truths, strict=False):
        prefix = f"blocks.{block.index}."
        true = spaces.or_zeros(block.parameters, truth.inside)
        estimated = {name: found.gradients[prefix + name] for name in true}
        found.measures |= measures.error(block.index, estimated, true)
        for together, part in zip(whole, (estimated, true), strict=True):
            together |= {prefix + name: gradient for name, gradient in part.items()}
    found.measures |= measures.error(measures.WHOLE, *whole)
