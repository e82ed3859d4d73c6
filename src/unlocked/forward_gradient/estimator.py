"""`estimate`: one gradient estimate for every parameter of a net in blocks, from a target, a guess and a space.

Stands inside `train` on the road configs -> plan -> train -> record -> item; `trainer` calls it once per step. It is
"Can Forward Gradient Match Backpropagation?" (ICML 2023) in one function: each combination of target, guess and space
is a method, and backpropagation and local learning are two corners of the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from unlocked.errors import SettingError, choose
from unlocked.forward_gradient import forward_mode, guesses, measures, spaces, targets
from unlocked.forward_gradient.guesses import Draw
from unlocked.forward_gradient.passes import PRECISIONS, BlockPass, HeadPass, forward, head, pull
from unlocked.forward_gradient.projection import from_inner
from unlocked.forward_gradient.spaces import Space, Tensors, Vector

Vectors = dict[str, Vector]
Products = Callable[[str, Vector], Tensor]


@dataclass
class Estimate:
    """What one call of `estimate` found; every tensor is detached.

    gradients: by `blocks.<k>.<parameter>` and `auxiliaries.<k>.<parameter>`; a parameter without a gradient is absent
    (and must be neither stepped nor decayed). losses, correct: (K,), mean cross-entropy and number of right answers of
    every block's auxiliary net; the last is the net's. coefficients: by `blocks.<k>.<tensor>`, the tensor a parameter
    or `output`; (N,) per sample, else (); a first dimension of `tangents` where there are several; none where guess and
    target are one. measures: by (metric, block), when asked for. notes: what was done in another way than usual.
    """

    gradients: Tensors
    losses: Tensor
    correct: Tensor
    coefficients: Tensors = field(default_factory=dict)
    measures: measures.Measures = field(default_factory=dict)
    notes: tuple[str, ...] = ()


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
    precision: str

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

    def is_last(self, index: int) -> bool:
        return index == len(self.blocks) - 1


@dataclass
class _Found:
    """What is gathered on the way to an `Estimate`."""

    heads: dict[int, HeadPass] = field(default_factory=dict)
    gradients: Tensors = field(default_factory=dict)
    coefficients: Tensors = field(default_factory=dict)
    measures: measures.Measures = field(default_factory=dict)
    truth: Tensors = field(default_factory=dict)  # the estimated blocks' true gradients, where they are measured

    def keep(self, block: BlockPass, gradients: Tensors) -> None:
        """File one block's parameter gradients."""
        self.gradients |= {f"blocks.{block.index}.{name}": gradient for name, gradient in gradients.items()}

    def closed(self) -> Estimate:
        """The estimate, with what the auxiliary nets gave."""
        heads = [self.heads[k] for k in range(len(self.heads))]
        for k, one in enumerate(heads):
            self.gradients |= {f"auxiliaries.{k}.{name}": gradient for name, gradient in one.gradients.items()}
        if self.truth:
            estimated = {name: self.gradients[name] for name in self.truth}
            self.measures |= measures.error(measures.WHOLE, estimated, self.truth)
        losses, correct = torch.stack([one.loss for one in heads]), torch.stack([one.correct for one in heads])
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
    precision: str = "float32",
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
    precision: of the blocks' layers: `float32` (that of their parameters), or `bfloat16` (autocast; auxiliary nets,
    inner products and estimates keep the parameters' precision).

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
        precision=choose("precision", precision, PRECISIONS),
    )
    own_guesses = None if guess_auxiliaries is None else list(guess_auxiliaries)
    net = _Net(list(blocks), list(auxiliaries), own_guesses, inputs, labels)
    _check(method, net)
    with torch.enable_grad():
        found = (_back_and_forth if method.needs_chain else _block_by_block)(method, net)
    unknown = [] if method.is_its_target else spaces.without_rule(method.space, net.blocks[:-1])
    found.notes = tuple(f"per-sample gradients by torch.func: {name}" for name in unknown)
    return found


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
    if method.mode == "forward_mode" and method.precision != "float32":
        raise SettingError("precision", method.precision, "must be float32 with forward_mode, which is to be exact")
    if torch.is_inference_mode_enabled():
        raise SettingError("inference_mode", True, "drops gradients and tangents; leave it for `estimate`")
    if not method.is_its_target:
        for block in net.blocks[:-1]:
            method.space.check(block)


def _back_and_forth(method: _Method, net: _Net) -> Estimate:
    """Forward through all blocks, and back block by block with the gradient of the whole net's loss.

    A block's graph is let go before the next block's turn. Random guesses are drawn from the first block on, so with
    them the blocks wait, once their target is known, for the way back to end.
    """
    found, chain, outputs = _Found(), [], net.inputs
    for index in range(len(net.blocks)):
        chain.append(_forward(method, net, index, outputs))
        outputs = chain[-1].outputs
    del outputs
    waiting: list[tuple[_Step, Vectors]] = []
    arriving: Tensor | None = None
    while chain:
        arriving = _back_through(method, net, chain.pop(), arriving, found, waiting)
    while waiting:
        _estimate_block(method, *waiting.pop(), found)
    return found.closed()


def _back_through(
    method: _Method, net: _Net, block: BlockPass, arriving: Tensor | None, found: _Found, waiting: list
) -> Tensor | None:
    """One block's part of the way back: its target and, unless it waits, its estimate; gives what goes on back.

    arriving: the gradient of the whole net's loss at the block's outputs; None where it starts, in the last block.
    """
    step = _with_heads(method, net, block, found)
    whole = step.own.output_gradient if arriving is None else arriving
    target = targets.cotangent(method.target, whole, step.own)
    true = arriving is None or method.is_its_target
    wanted = list(block.parameters.values()) if true else method.space.wanted(block)
    upstream, inside = _pull_both(block, whole, target, wanted)
    if true:
        found.keep(block, block.named(inside))
        return upstream
    vectors = method.space.read(block, target, inside)
    if method.measure:
        truth = block.parameter_gradients(whole)
        found.truth |= {f"blocks.{block.index}.{name}": gradient for name, gradient in truth.items()}
    if method.guess == "random":
        waiting.append((step, vectors))
    else:
        _estimate_block(method, step, vectors, found)
    return upstream


def _pull_both(
    block: BlockPass, whole: Tensor, target: Tensor, wanted: Sequence[spaces.Place]
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """The gradient `whole` at the block's inputs, and the target at the `wanted` places; in one pass if they agree."""
    inputs = [block.inputs] if block.index else []
    if target is whole:
        gradients = pull(block.outputs, whole, [*inputs, *wanted])
        upstream, inside = gradients[: len(inputs)], gradients[len(inputs) :]
    else:
        upstream, inside = pull(block.outputs, whole, inputs), pull(block.outputs, target, wanted)
    return (torch.zeros_like(block.inputs) if upstream[0] is None else upstream[0]) if inputs else None, inside


def _block_by_block(method: _Method, net: _Net) -> Estimate:
    """Estimate each block on the way forward, and let its graph go before the next: nothing comes back to it.

    So it is with a local target, and in forward mode, where no target is ever formed.
    """
    found = _Found()
    outputs = net.inputs
    for index in range(len(net.blocks)):
        outputs = _forward_through(method, net, index, outputs, found)
    return found.closed()


def _forward_through(method: _Method, net: _Net, index: int, inputs: Tensor, found: _Found) -> Tensor:
    """One block's estimate from its inputs, into `found`; gives its outputs, without their graph."""
    block = _forward(method, net, index, inputs)
    step = _with_heads(method, net, block, found)
    if net.is_last(index) or method.is_its_target:
        found.keep(block, block.parameter_gradients(step.own.output_gradient))
    elif method.mode == "forward_mode":
        tail = [net.auxiliaries[index]]
        if method.target == "global":
            tail = [*net.blocks[index + 1 :], net.auxiliaries[-1]]
        how = (method.space, method.per_sample_method, method.chunk)
        slopes = forward_mode.Slopes(block, tail, net.labels, *how)
        _estimate_block(method, step, {}, found, slopes.inner)
    else:
        target = step.own.output_gradient
        _estimate_block(method, step, _vectors(method, block, target), found)
    return block.outputs.detach()


def _forward(method: _Method, net: _Net, index: int, inputs: Tensor) -> BlockPass:
    """One block's part of the forward pass."""
    calls = method.space.needs_calls and not method.is_its_target and not net.is_last(index)
    return forward(
        index, net.blocks[index], inputs, chained=method.needs_chain, record_calls=calls, update=method.update,
        precision=method.precision,
    )  # fmt: skip


def _with_heads(method: _Method, net: _Net, block: BlockPass, found: _Found) -> _Step:
    """A block's loss, with the gradients of auxiliary nets that the method asks for."""
    is_last = net.is_last(block.index)
    guessing = guesses.from_auxiliaries(method.guess) and not is_last
    gives_guess = guessing and net.guess_auxiliaries is None
    used = method.target == "local" or gives_guess or is_last
    train = method.trains_auxiliaries or is_last
    update = method.update and used
    own = head(net.auxiliaries[block.index], block.outputs, net.labels, gradient=used, train=train, update=update)
    found.heads[block.index] = own
    guess = own if gives_guess else None
    if guessing and not gives_guess:
        other = net.guess_auxiliaries[block.index]
        guess = head(other, block.outputs, net.labels, gradient=True, train=False, update=method.update)
    return _Step(block, own, guess)


def _vectors(method: _Method, block: BlockPass, cotangent: Tensor) -> Vectors:
    """The gradient `cotangent` at the block's output, in the method's space."""
    return method.space.read(block, cotangent, pull(block.outputs, cotangent, method.space.wanted(block)))


def _guesses(method: _Method, step: _Step, target: Vectors) -> Iterator[tuple[str, Vector]]:
    """The guesses of one block, place by place; of random ones all `tangents`, one after the other."""
    block = step.block
    if method.guess == "random":
        for _ in range(method.tangents):
            for name, shape in method.space.shapes(block).items():
                yield name, method.draw(shape, block.outputs.dtype, block.outputs.device)
    elif method.guess == "global":
        yield from target.items()
    else:
        yield from _vectors(method, block, step.guess.output_gradient).items()


def _estimate_block(
    method: _Method, step: _Step, target: Vectors, found: _Found, slope: Products | None = None
) -> None:
    """One block's estimate, mean over its guesses, into `found`.

    target: at every place, unless `slope(name, guess)` gives <T, G> without it.
    """
    space, block = method.space, step.block
    total: Tensors = {}
    coefficients: dict[str, list[Tensor]] = {}
    alignment = measures.Alignment(space) if method.measure else None
    for name, guess in _guesses(method, step, target):
        others = ([] if slope else [target[name]]) + ([guess] if method.normalise else [])
        products = ([slope(name, guess)] if slope else []) + (space.inner(guess, others) if others else [])
        coefficient = from_inner(*products)
        part = space.weigh(coefficient, guess)
        total[name] = total[name] + part if name in total else part
        if alignment and name not in coefficients:
            alignment.add(name, target[name], guess, coefficient)
        coefficients.setdefault(name, []).append(coefficient)
    mean = {name: tensor / method.tangents for name, tensor in total.items()} if method.tangents > 1 else total
    found.keep(block, space.gradients(block, mean))
    for name, several in coefficients.items():
        found.coefficients[f"blocks.{block.index}.{name}"] = torch.stack(several) if len(several) > 1 else several[0]
    if alignment:
        found.measures |= alignment.measures(block.index)
        prefix = f"blocks.{block.index}."
        true = {name: found.truth[prefix + name] for name in block.parameters}
        found.measures |= measures.error(block.index, {name: found.gradients[prefix + name] for name in true}, true)
