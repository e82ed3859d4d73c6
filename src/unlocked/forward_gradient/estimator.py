"""`estimate`: one gradient estimate for every parameter of a net in blocks, from a target, a guess and a space.

In a block's turn: the target T at its outputs (`_turn`), a guess G (`_guess`), both as vectors of the space, how much
of G to take (`_coefficient`), and c G as the gradient of the block's parameters (`_estimate`). Where a gradient has to
run back through all blocks, they are taken forward first and have their turn from the last to the first; otherwise each
has it on the way forward. Either way a block's graph is let go before the next block's turn. `reference.estimate` gives
the same in its obvious form.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked.errors import SettingError
from unlocked.forward_gradient import forward_mode, guesses, measures, passes, spaces
from unlocked.forward_gradient.guesses import Draw
from unlocked.forward_gradient.method import Method
from unlocked.forward_gradient.passes import BlockPass, HeadPass, Loss, Tensors
from unlocked.forward_gradient.projection import coefficient
from unlocked.forward_gradient.spaces import Vector


@dataclass
class Estimate:
    """What one call of `estimate` gives; every tensor is detached.

    gradients: by `blocks.<k>.<parameter>` and `auxiliaries.<k>.<parameter>`; a parameter without a gradient is absent
    (and must be neither stepped nor decayed). coefficients: by `blocks.<k>.<tensor>`, the tensor a parameter or
    `output`; (N,) per sample, else (); a first dimension of `tangents` where there are several.
    """

    gradients: Tensors
    losses: Tensor  # (K,) of every block's auxiliary net; the last is the net's
    correct: Tensor  # (K,) right answers; 0 where labels are no classes
    coefficients: Tensors
    measures: measures.Measures  # by (metric, block), when asked for
    notes: tuple[str, ...]  # what was done in another way than usual


def estimate(
    blocks: Sequence[nn.Module],
    auxiliaries: Sequence[nn.Module],
    inputs: Tensor,
    labels: Tensor,
    method: Method,
    *,
    noise: Draw | None = None,
    generator: torch.Generator | None = None,
    loss: Loss = cross_entropy,
    guess_auxiliaries: Sequence[nn.Module] | None = None,
    measure: bool = False,
    update_statistics: bool = False,
    precision: str = "float32",
) -> Estimate:
    """Estimate the gradient of every parameter on one batch, without changing anything.

    blocks: K modules in a chain, each from one tensor to one tensor. auxiliaries: K modules, the k-th from block k's
    outputs to scores (N, ...); the last is the head of the whole net. inputs, labels: (N, ...). loss: of (scores,
    labels), the mean over the batch. The last block and the last auxiliary net get their true gradient; the others of
    these get that of their own loss when target or guess is `local`, else none. The caller redraws the nets of a
    redrawn guess such as `ntk` (`guesses.redraw_`). With the guess `frozen` the other blocks get none.

    noise: draws a random guess, given (shape, dtype, device); called block by block from the first to the last but one,
    in each tangent by tangent, in each tensor by tensor in the order of `named_parameters`. None: the method's
    distribution, from `generator`.
    guess_auxiliaries: K nets of their own for a guess from nets that are not trained (`ntk`, `fixed_ntk`).
    measure: fill `Estimate.measures` (with `projection` only; it takes a second way back).
    update_statistics: let BatchNorm update its running statistics as one training forward pass does, in the blocks and
    in the nets that target or guess use. By default no buffer changes.
    precision: of the blocks' layers: `float32` (that of their parameters), or `bfloat16` (autocast).

    Raises SettingError for what cannot work, with the reason.
    """
    estimation = _Estimation(
        blocks, auxiliaries, guess_auxiliaries, inputs, labels, method, loss, measure, update_statistics, precision,
        noise or guesses.noise(method.distribution, generator),
    )  # fmt: skip
    notes = estimation.check()
    with torch.enable_grad():
        return estimation.run(notes)


def check_one_per_block(name: str, nets: Sequence[nn.Module], blocks: Sequence[nn.Module]) -> None:
    """`SettingError` unless there are blocks and as many of the nets that are called `name`."""
    if not blocks or len(nets) != len(blocks):
        raise SettingError(name, len(nets), f"must be one per block: {len(blocks)}")


@dataclass
class _Estimation:
    """An estimate under way."""

    blocks: Sequence[nn.Module]
    auxiliaries: Sequence[nn.Module]
    guess_auxiliaries: Sequence[nn.Module] | None
    inputs: Tensor
    labels: Tensor
    method: Method
    loss: Loss
    measure: bool
    update: bool
    precision: str
    draw: Draw

    def __post_init__(self) -> None:
        method = self.method
        self.space = spaces.of(method)
        self.last = len(self.blocks) - 1
        compared = self.measure and method.trains_blocks
        self.is_exact = not (method.is_projected or compared)  # the gradients are the target's own
        # a gradient runs back through all blocks
        is_asked = method.trains_blocks and (method.of_target.uses_net or compared)
        self.is_chained = is_asked and method.mode == "projection"
        self.heads: dict[int, HeadPass] = {}
        self.gradients: Tensors = {}
        self.coefficients: Tensors = {}
        self.truth: Tensors = {}  # the true gradients, where they are measured
        self.measured: measures.Measures = {}
        self.waiting: list[BlockPass] = []

    def check(self) -> tuple[str, ...]:
        """Refuse what cannot work, before any work; what will be done in another way than usual."""
        method = self.method
        check_one_per_block("auxiliaries", self.auxiliaries, self.blocks)
        if self.guess_auxiliaries is not None:
            if method.of_guess.source != "head" or method.of_guess.trains_heads:
                raise SettingError("guess_auxiliaries", "given", f"have no part in the guess {method.guess!r}")
            check_one_per_block("guess_auxiliaries", self.guess_auxiliaries, self.blocks)
        if method.mode == "forward_mode" and self.measure:
            raise SettingError("measure", True, "needs mode projection: forward_mode never forms the target")
        method.check_precision(self.precision)
        if torch.is_inference_mode_enabled():
            raise SettingError("inference_mode", True, "drops gradients and tangents; leave it for `estimate`")
        checked = [] if self.is_exact else self.blocks[: self.last]
        names = sorted(set().union(*map(self.space.check, checked)))
        return tuple(f"per-sample gradients by torch.func: {name}" for name in names)

    def run(self, notes: tuple[str, ...]) -> Estimate:
        features, chain, arriving = self.inputs, [], None
        for index in range(len(self.blocks)):
            chain.append(self._forward(index, features))
            features = chain[-1].outputs.detach()
            if not self.is_chained:
                self._turn(chain.pop(), None)
        del features
        while chain:
            arriving = self._turn(chain.pop(), arriving)
        while self.waiting:
            self._estimate(self.waiting.pop())
        heads = [self.heads[index] for index in range(len(self.blocks))]
        losses, correct = torch.stack([one.loss for one in heads]), torch.stack([one.correct for one in heads])
        self.measured |= measures.error(measures.WHOLE, self.gradients, self.truth)
        return Estimate(self.gradients, losses, correct, self.coefficients, self.measured, notes)

    def _forward(self, index: int, inputs: Tensor) -> BlockPass:
        is_last = index == self.last
        with torch.set_grad_enabled(self.method.trains_blocks or is_last):
            return passes.forward(
                index, self.blocks[index], inputs, chained=self.is_chained, update=self.update,
                precision=self.precision, record_calls=self.space.needs_calls and not (self.is_exact or is_last),
            )  # fmt: skip

    def _turn(self, step: BlockPass, arriving: Tensor | None) -> Tensor | None:
        """One block's target and, unless it waits, its estimate; gives the gradient of the net's loss at its inputs.

        arriving: that gradient at its outputs; None where it starts, in the last block, or where none comes back.
        """
        method, is_last = self.method, step.index == self.last
        own = self._with_heads(step)
        if not (method.trains_blocks or is_last):
            return None
        is_exact = is_last or self.is_exact
        if method.mode == "forward_mode" and not is_exact:
            self._estimate(step)
            return None
        step.whole = own if is_last else arriving
        step.target = own if is_last else method.of_target.function(arriving, own)
        if is_exact:
            self._keep(f"blocks.{step.index}", step.parameter_gradients(step.target))
        else:
            step.vectors = self.space.read(step, step.target)
            if self.measure:
                truth = step.parameter_gradients(step.whole)
                self.truth |= {f"blocks.{step.index}.{name}": gradient for name, gradient in truth.items()}
            if self.is_chained and method.of_guess.source == "noise":
                self.waiting.append(step)  # noise is drawn from the first block on
            else:
                self._estimate(step)
        if step.upstream is None:
            step.pull(step.whole)
        return step.upstream

    def _with_heads(self, step: BlockPass) -> Tensor | None:
        """Take a block's loss, and give its gradient at the outputs if the method asks for it."""
        method, index, is_last = self.method, step.index, step.index == self.last
        batch = step.outputs, self.labels, self.loss
        guessing = method.of_guess.source == "head" and not is_last
        other = self.guess_auxiliaries[index] if guessing and self.guess_auxiliaries is not None else None
        used = method.of_target.uses_heads or is_last or (guessing and other is None)
        own = self.heads[index] = passes.head(
            self.auxiliaries[index], *batch, gradient=used, train=method.trains_auxiliaries or is_last,
            update=self.update and used,
        )  # fmt: skip
        self._keep(f"auxiliaries.{index}", own.gradients)
        if other is None:
            step.from_head = own.output_gradient
        else:
            step.from_head = passes.head(other, *batch, gradient=True, train=False, update=self.update).output_gradient
        return own.output_gradient

    def _guesses(self, step: BlockPass) -> Iterator[dict[str, Vector]]:
        """The guesses of one block, all tangents in turn, those places together that share a coefficient."""
        for _ in range(self.method.tangents):
            guess = self._guess(step)
            yield from [dict(guess)] if self.method.per_block else ({name: one} for name, one in guess)

    def _guess(self, step: BlockPass) -> Iterable[tuple[str, Vector]]:
        """A guess, place by place; noise is drawn when it is asked for."""
        guess, outputs = self.method.of_guess, step.outputs
        if guess.source == "noise":
            shapes = self.space.shapes(step).items()
            return ((name, guess.function(self.draw(s, outputs.dtype, outputs.device))) for name, s in shapes)
        cotangent = guess.function(step.from_head if guess.source == "head" else step.target)
        if cotangent is step.target:
            return step.vectors.items()
        return self.space.read(step, cotangent).items()

    def _estimate(self, step: BlockPass) -> None:
        """One block's estimate: the mean over its guesses."""
        tangents, place = self.method.tangents, f"blocks.{step.index}"
        total: Tensors = {}
        coefficients: dict[str, list[Tensor]] = {}
        alignment = measures.Alignment(self.space)
        for together in self._guesses(step):
            c = self._coefficient(step, together)
            for name, guess in together.items():
                part = self.space.weigh(c, guess)
                total[name] = total[name] + part if name in total else part
                if self.measure and name not in coefficients:
                    alignment.add(name, step.vectors[name], guess, c)
                coefficients.setdefault(name, []).append(c)
        mean = {name: tensor / tangents for name, tensor in total.items()} if tangents > 1 else total
        gradients = self.space.gradients(step, mean)
        self._keep(place, gradients)
        for name, several in coefficients.items():
            self.coefficients[f"{place}.{name}"] = torch.stack(several) if tangents > 1 else several[0]
        if self.measure:
            truth = {name: self.truth[f"{place}.{name}"] for name in gradients}
            self.measured |= alignment.measures(step.index) | measures.error(step.index, gradients, truth)

    def _coefficient(self, step: BlockPass, guesses: dict[str, Vector]) -> Tensor:
        """How much is taken of the guesses that have one coefficient together."""
        is_formed = self.method.mode == "projection"
        each = []
        for name, guess in guesses.items():
            others = [step.vectors[name]] if is_formed else []
            each.append(self.space.inner(guess, others + [guess] * self.method.is_normalised))
        products = [functools.reduce(operator.add, parts) for parts in zip(*each, strict=True)]
        if is_formed:
            return coefficient(*products)
        tail = [self.auxiliaries[step.index]]
        if self.method.of_target.loss == "net":
            tail = [*self.blocks[step.index + 1 :], self.auxiliaries[-1]]
        slopes = forward_mode.slopes(step, tail, self.labels, self.space, guesses, loss=self.loss)
        return coefficient(slopes, *products)

    def _keep(self, place: str, gradients: Tensors) -> None:
        self.gradients |= {f"{place}.{name}": gradient for name, gradient in gradients.items()}
