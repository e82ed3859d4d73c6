"""What every sample of a batch contributes to a parameter's gradient, without forming it.

It is the gradient of the batch's loss in the copy of the parameter that the sample used, with batch statistics too. For
the layers known here it is `G_i = sum_p g_ip u_ip^T`, with the gradient `g_ip` at the layer's outputs and what the
weight multiplies there, `u_ip` (the features), over positions p. So `<T_i, G_i> = sum_pq (t_ip . g_iq) (u_ip . u_iq)`
needs products of positions alone: the Gram trick of "ghost norms" (Goodfellow 2015; Li et al. 2022), here for two
gradients. Where that would cost more than forming the contributions, they are formed for a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn import functional

from unlocked.forward_gradient import projection
from unlocked.forward_gradient.passes import LayerCall

CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**28}  # of what is formed at once: what fits a cache, or keeps a GPU busy
KEPT = 4  # times as much of one parameter's contributions may be kept for their weighted sum
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
KNOWN = (nn.Linear, nn.Conv2d, nn.GroupNorm, *BATCH_NORMS)


def is_known(layer: nn.Module) -> bool:
    """Whether outputs are weight times `features` plus bias; samples of other layers are taken one by one."""
    unusual = isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str))
    return type(layer) in KNOWN and not unusual


def normalised(layer: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs (N, ...) of the whole batch, as `features` takes some samples' of them."""
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    if not isinstance(layer, BATCH_NORMS):
        return inputs
    by_batch = layer.training or layer.running_mean is None
    mean, var = (None, None) if by_batch else (layer.running_mean, layer.running_var)
    return functional.batch_norm(inputs, mean, var, training=by_batch, eps=layer.eps)


def features(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What the weight multiplies: (N, groups, positions, in). A scale is a convolution with a group per channel."""
    return patches(layer, inputs) if isinstance(layer, nn.Conv2d) else places(layer, inputs).mT


def patches(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Of a convolution; `in` runs over kernel rows, kernel columns, channels, as images lie where channels come last.

    So most of a patch is contiguous, and copying it takes a third of the time of `functional.unfold` or less.
    """
    down, right = layer.padding
    padded = functional.pad(inputs, (right, right, down, down)).permute(0, 2, 3, 1).contiguous()
    for axis, stride, dilation, size in zip((1, 2), layer.stride, layer.dilation, layer.kernel_size, strict=True):
        padded = padded.unfold(axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    found = padded.permute(0, 1, 2, 4, 5, 3).flatten(3, 4).unflatten(4, (layer.groups, -1))
    return found.permute(0, 4, 1, 2, 3, 5).flatten(4).flatten(2, 3)


def places(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Outputs, or gradients there, as (N, groups, out, positions)."""
    if isinstance(layer, nn.Linear):
        return outputs.reshape(len(outputs), 1, -1, outputs.shape[-1]).mT
    groups = layer.groups if isinstance(layer, nn.Conv2d) else outputs.shape[1]
    return outputs.reshape(len(outputs), groups, outputs.shape[1] // groups, -1)


@dataclass(frozen=True, eq=False)
class Use:
    """One call of a layer that owns the parameter, as its `own`, and the loss's gradient at that call's outputs."""

    call: LayerCall
    own: str
    parameter: Tensor
    gradient: Tensor

    @property
    def layer(self) -> nn.Module:
        return self.call.layer

    def prepared(self) -> Tensor:
        """The inputs of the whole batch, of which the other methods take some samples', in the parameter's type."""
        inputs = self.call.inputs
        if inputs.is_floating_point():
            inputs = inputs.to(self.parameter.dtype)
        return normalised(self.layer, inputs) if self.own == "weight" and is_known(self.layer) else inputs

    def at(self, part: slice) -> Tensor:
        return self.gradient[part].to(self.parameter.dtype)

    def prefers_gram(self) -> bool:
        """Whether two inner products by `gram` need fewer multiplications than forming the contributions."""
        if self.own == "bias" or not is_known(self.layer):
            return False
        groups, outputs, positions = places(self.layer, self.gradient[:1]).shape[1:]
        inputs = self.parameter.numel() // (groups * outputs)
        return positions * (inputs + 2 * outputs) < 2 * inputs * outputs

    def gram(self, inputs: Tensor, left: Tensor, rights: Sequence[Tensor]) -> list[Tensor]:
        """<L_i, R_i> (N,) of the weight for gradients `left` and each of `rights`, by products of positions."""
        seen, left = features(self.layer, inputs), places(self.layer, left)
        alike = seen @ seen.mT
        return [(alike * (left.mT @ places(self.layer, right))).flatten(1).sum(1) for right in rights]

    def rows(self, inputs: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The contributions (N, *parameter shape) for each of several gradients at the outputs."""

        def one(inputs: Tensor, *at_outputs: Tensor) -> tuple[Tensor, ...]:
            pull = vjp(self._of_one(inputs), self.parameter.detach())[1]
            return tuple(pull(gradient)[0] for gradient in at_outputs)

        if not is_known(self.layer):
            return list(vmap(one)(inputs, *gradients))
        at = [places(self.layer, gradient) for gradient in gradients]
        if self.own == "bias":
            return [place.sum(3).flatten(1) for place in at]
        seen = features(self.layer, inputs)
        if isinstance(self.layer, nn.Conv2d):
            outputs, channels, *kernel = self.parameter.shape
            return [(at_one @ seen).reshape(-1, outputs, *kernel, channels).movedim(-1, 2) for at_one in at]
        rows = [(at_one * seen.mT).sum(3) if seen.shape[3] == 1 else at_one @ seen for at_one in at]
        return [one.reshape(len(one), *self.parameter.shape) for one in rows]

    def response(self, inputs: Tensor, direction: Tensor) -> Tensor:
        """The change of the outputs when sample i's copy of the parameter moves by `direction[i]`."""

        def one(inputs: Tensor, move: Tensor) -> Tensor:
            return jvp(self._of_one(inputs), (self.parameter.detach(),), (move,))[1]

        if not is_known(self.layer):
            return vmap(one)(inputs, direction)
        groups, outputs, positions = places(self.layer, self.gradient[:1]).shape[1:]
        if self.own == "weight" and isinstance(self.layer, nn.Conv2d):
            direction = direction.movedim(2, -1)
        moves = direction.reshape(len(direction), groups, outputs, -1)
        change = moves.expand(-1, -1, -1, positions) if self.own == "bias" else moves @ features(self.layer, inputs).mT
        change = change.mT if isinstance(self.layer, nn.Linear) else change
        return change.reshape(len(direction), *self.call.shape[1:])

    def _of_one(self, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """The outputs of one sample as a function of the parameter."""
        return lambda value: functional_call(self.layer, {self.own: value}, (inputs.unsqueeze(0),)).squeeze(0)


@dataclass(frozen=True, eq=False)
class Contributions:
    """What every sample contributes to one parameter's gradient: (N, *parameter shape), not formed."""

    parameter: Tensor
    samples: int
    uses: list[Use] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)  # formed for an inner product, for a weighted sum to come

    @torch.no_grad()
    def inner(self, others: Sequence[Contributions]) -> list[Tensor]:
        """<self_i, other_i> for each of `others`, which belong to the same parameter: (N,) each."""
        if not self.uses:
            return [self.parameter.new_zeros(self.samples) for _ in others]
        every = list(dict.fromkeys([self, *others]))
        prepared, first = [use.prepared() for use in self.uses], self.uses[0]
        found: list[list[Tensor]] = []
        self.kept.clear()
        for part in self._parts():
            if len(self.uses) == 1 and first.prefers_gram():
                rights = [other.uses[0].at(part) for other in others]
                found.append(first.gram(prepared[0][part], first.at(part), rights))
            else:
                rows = dict(zip(every, _rows(every, prepared, part), strict=True))
                if self.samples * self.parameter.numel() <= KEPT * self._room():
                    self.kept.append(rows[self])
                found.append([projection.inner(rows[self], rows[other], True) for other in others])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    @torch.no_grad()
    def inner_with(self, direction: Tensor) -> Tensor:
        """<self_i, direction_i> (N,) for a `direction` (N, *parameter shape) that is there: the adjoint way."""
        total = direction.new_zeros(len(direction))
        for use, response in zip(self.uses, self.responses(direction), strict=True):
            total += projection.inner(response, use.at(slice(None)), True)
        return total

    @torch.no_grad()
    def weighted(self, coefficients: Tensor) -> Tensor:
        """`sum_i c_i self_i`, for coefficients (N,)."""
        if self.kept:
            rows = torch.cat(self.kept)
            self.kept.clear()
            return torch.tensordot(coefficients, rows, 1)
        if len(self.uses) == 1:
            # the layer's own way back, no further than to its parameter
            use = self.uses[0]
            scaled = projection.scale(coefficients, use.gradient).to(use.gradient.dtype)
            return torch.autograd.grad(use.call.outputs, self.parameter, scaled, retain_graph=True)[0]
        prepared = [use.prepared() for use in self.uses]
        total = torch.zeros_like(self.parameter)
        for part in self._parts():
            total += torch.tensordot(coefficients[part], _rows([self], prepared, part)[0], 1)
        return total

    @torch.no_grad()
    def responses(self, direction: Tensor | None = None) -> list[Tensor]:
        """The change of every use's outputs when every sample's copy of the parameter moves.

        By `direction` (N, *parameter shape); None: by what the sample contributes.
        """
        prepared = [use.prepared() for use in self.uses]
        found: list[list[Tensor]] = []
        for part in self._parts():
            moves = _rows([self], prepared, part)[0] if direction is None else direction[part]
            found.append([use.response(inputs[part], moves) for use, inputs in zip(self.uses, prepared, strict=True)])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    def _parts(self) -> Iterator[slice]:
        """Samples that are treated at once: their contributions and features stay within `CHUNK_BYTES`.

        None of a parameter that is not used.
        """
        kernel = self.parameter[0, 0].numel() if self.parameter.dim() > 2 else 1
        numbers = 2 * self.parameter.numel() + sum(kernel * use.call.inputs[0].numel() for use in self.uses)
        step = max(1, self._room() // numbers)
        yield from (slice(start, start + step) for start in range(0, self.samples * bool(self.uses), step))

    def _room(self) -> int:
        """Numbers that `CHUNK_BYTES` hold."""
        return CHUNK_BYTES.get(self.parameter.device.type, CHUNK_BYTES["cpu"]) // self.parameter.element_size()


def _rows(every: Sequence[Contributions], prepared: Sequence[Tensor], part: slice) -> list[Tensor]:
    """Each one's contributions (n, *parameter shape) for the samples of `part`; features are found once."""
    total: list[Tensor] = []
    for uses, inputs in zip(zip(*(one.uses for one in every), strict=True), prepared, strict=True):
        rows = uses[0].rows(inputs[part], [use.at(part) for use in uses])
        total = [a + b for a, b in zip(total, rows, strict=True)] if total else rows
    return total
