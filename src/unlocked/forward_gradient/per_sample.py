"""What every sample of a batch contributes to a parameter's gradient, without forming it.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `spaces.PerSampleWeight`.

The contribution of sample i is the gradient of the batch's loss in the copy of the parameter that sample i used. It is
defined with batch statistics too, where a vectorised gradient of single samples would see another normalisation, and
contributions sum to the batch gradient. For the layers known here it is `G_i = sum_p g_ip u_ip^T`, with the gradient
`g_ip` at the layer's outputs and what the weight multiplies there, `u_ip` (the features), over positions p. So
`<T_i, G_i> = sum_pq (t_ip . g_iq) (u_ip . u_iq)` needs products of positions with positions alone (Gram), and
`sum_i c_i G_i` is the layer's own gradient for output gradients `c_i g_i`. Where a Gram product would cost more than
forming the two contributions, they are formed for a few samples at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn import functional

from unlocked.forward_gradient import projection
from unlocked.forward_gradient.passes import LayerCall

Shape = Sequence[int]
CHUNK_BYTES = {"cpu": 2**23, "cuda": 2**28}  # of what is formed at once: what fits a cache, or keeps a GPU busy


def _columns(layer: nn.Linear, values: Tensor) -> Tensor:
    """(N, ..., features) -> (N, 1, features, positions)."""
    return values.reshape(len(values), 1, -1, values.shape[-1]).mT


def _patches(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What each output position sees: (N, in, h, w) -> (N, groups, in / groups × kh × kw, positions)."""
    patches = functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.unflatten(1, (layer.groups, -1))


def _maps(layer: nn.Conv2d, outputs: Tensor) -> Tensor:
    """(N, out, h, w) -> (N, groups, out / groups, positions)."""
    return outputs.reshape(len(outputs), layer.groups, layer.out_channels // layer.groups, -1)


def _channels(layer: nn.Module, values: Tensor) -> Tensor:
    """(N, channels, ...) -> (N, channels, 1, positions): a scale is a convolution with a group per channel."""
    return values.reshape(*values.shape[:2], 1, -1)


def _batch_normalised(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    """As the layer's mode says: by batch statistics in training, by running ones otherwise."""
    by_batch = layer.training or layer.running_mean is None
    mean, var = (None, None) if by_batch else (layer.running_mean, layer.running_var)
    return functional.batch_norm(inputs, mean, var, training=by_batch, eps=layer.eps)


def _group_normalised(layer: nn.GroupNorm, inputs: Tensor) -> Tensor:
    return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)


@dataclass(frozen=True)
class Rule:
    """A layer whose outputs are its weight times features, plus its bias.

    prepared: what `features` starts from, of the whole batch. features: (N, groups, in, positions) of some samples.
    places: outputs, or gradients there, as (N, groups, out, positions).
    """

    features: Callable[..., Tensor]
    places: Callable[..., Tensor]
    prepared: Callable[..., Tensor] = lambda layer, inputs: inputs

    def prepare(self, layer: nn.Module, parameter: str, inputs: Tensor) -> Tensor:
        return self.prepared(layer, inputs) if parameter == "weight" else inputs

    def rows(self, layer: nn.Module, parameter: str, prepared: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The contributions (N, *parameter shape) for each of several gradients at the outputs."""
        places = [self.places(layer, gradient) for gradient in gradients]
        if parameter == "bias":
            return [place.sum(3).flatten(1) for place in places]
        features = self.features(layer, prepared)
        return [(place @ features.mT).reshape(len(place), *layer.weight.shape) for place in places]

    def gram(self, layer: nn.Module, prepared: Tensor, left: Tensor, rights: Sequence[Tensor]) -> list[Tensor]:
        """<L_i, R_i> (N,) of the weight for gradients `left` and each of `rights`, by products of positions."""
        features, left = self.features(layer, prepared), self.places(layer, left)
        alike = features.mT @ features
        return [(alike * (left.mT @ self.places(layer, right))).flatten(1).sum(1) for right in rights]

    def prefers_gram(self, layer: nn.Module, parameter: str, gradient: Tensor) -> bool:
        """Whether two inner products by `gram` need fewer multiplications than forming the contributions."""
        if parameter == "bias":
            return False
        _, groups, outputs, positions = self.places(layer, gradient[:1]).shape
        inputs = layer.weight.numel() // (groups * outputs)
        return positions * (inputs + 2 * outputs) < 2 * inputs * outputs

    def response(self, layer: nn.Module, parameter: str, prepared: Tensor, direction: Tensor, shape: Shape) -> Tensor:
        """The change of the outputs, of that `shape`, when sample i's copy of a parameter moves by `direction[i]`."""
        places = self.places(layer, torch.empty(shape, device="meta")).shape
        moves = direction.reshape(*places[:3], -1)
        change = moves.expand(places) if parameter == "bias" else moves @ self.features(layer, prepared)
        return (change.mT if isinstance(layer, nn.Linear) else change).reshape(shape)


class AnyLayer:
    """A layer without a rule, differentiated sample by sample by torch.func; it must treat samples apart."""

    def prepare(self, layer: nn.Module, parameter: str, inputs: Tensor) -> Tensor:
        return inputs

    def rows(self, layer: nn.Module, parameter: str, prepared: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
        """As `Rule.rows`."""

        def one(inputs: Tensor, *at_outputs: Tensor) -> tuple[Tensor, ...]:
            pull = vjp(self._of_one(layer, parameter, inputs), getattr(layer, parameter).detach())[1]
            return tuple(pull(gradient)[0] for gradient in at_outputs)

        return list(vmap(one)(prepared, *gradients))

    def prefers_gram(self, layer: nn.Module, parameter: str, gradient: Tensor) -> bool:
        return False

    def response(self, layer: nn.Module, parameter: str, prepared: Tensor, direction: Tensor, shape: Shape) -> Tensor:
        """As `Rule.response`."""

        def one(inputs: Tensor, move: Tensor) -> Tensor:
            return jvp(self._of_one(layer, parameter, inputs), (getattr(layer, parameter).detach(),), (move,))[1]

        return vmap(one)(prepared, direction)

    def _of_one(self, layer: nn.Module, parameter: str, inputs: Tensor) -> Callable[[Tensor], Tensor]:
        """The outputs of one sample as a function of the parameter."""
        return lambda value: functional_call(layer, {parameter: value}, (inputs.unsqueeze(0),)).squeeze(0)


_NORMALISATION = Rule(_channels, _channels, _batch_normalised)
RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(_columns, _columns),
    nn.Conv2d: Rule(_patches, _maps),
    nn.BatchNorm1d: _NORMALISATION,
    nn.BatchNorm2d: _NORMALISATION,
    nn.BatchNorm3d: _NORMALISATION,
    nn.GroupNorm: Rule(_channels, _channels, _group_normalised),
}


def rule(layer: nn.Module) -> Rule | AnyLayer:
    """How `layer`'s contributions are found."""
    unusual = isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str))
    return AnyLayer() if unusual else RULES.get(type(layer), AnyLayer())


@dataclass(frozen=True)
class Use:
    """One call of a layer that owns the parameter, and the loss's gradient at that call's outputs."""

    call: LayerCall
    own: str  # the parameter's name in the layer
    gradient: Tensor

    @property
    def rule(self) -> Rule | AnyLayer:
        return rule(self.call.layer)

    def prepared(self) -> Tensor:
        inputs = self.call.inputs.to(getattr(self.call.layer, self.own).dtype)
        return self.rule.prepare(self.call.layer, self.own, inputs)

    def response(self, prepared: Tensor, direction: Tensor) -> Tensor:
        shape = (len(direction), *self.call.shape[1:])
        return self.rule.response(self.call.layer, self.own, prepared, direction, shape)


@dataclass(frozen=True)
class Contributions:
    """What every sample contributes to one parameter's gradient: (N, *parameter shape), not formed."""

    parameter: Tensor
    samples: int
    uses: list[Use]

    @torch.no_grad()
    def inner(self, others: Sequence[Contributions]) -> list[Tensor]:
        """<self_i, other_i> for each of `others`, which belong to the same parameter: (N,) each."""
        if not self.uses:
            return [self.parameter.new_zeros(self.samples) for _ in others]
        every = list({id(one): one for one in (self, *others)}.values())
        prepared = [use.prepared() for use in self.uses]
        first = self.uses[0]
        gram = len(self.uses) == 1 and first.rule.prefers_gram(first.call.layer, first.own, first.gradient)
        found: list[list[Tensor]] = []
        for part in self._parts():
            if gram:
                rights = [self._at(other.uses[0], part) for other in others]
                found.append(first.rule.gram(first.call.layer, prepared[0][part], self._at(first, part), rights))
            else:
                rows = dict(zip(map(id, every), _rows(every, prepared, part), strict=True))
                found.append([projection.inner(rows[id(self)], rows[id(other)], True) for other in others])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    @torch.no_grad()
    def inner_with(self, direction: Tensor) -> Tensor:
        """<self_i, direction_i> (N,) for a `direction` (N, *parameter shape) that is there: the adjoint way."""
        total = direction.new_zeros(len(direction))
        for use in self.uses:
            prepared = use.prepared()
            for part in self._parts():
                gradient = self._at(use, part)
                response = use.response(prepared[part], direction[part])
                total[part] += projection.inner(response, gradient, True)
        return total

    @torch.no_grad()
    def weighted(self, coefficients: Tensor) -> Tensor:
        """`sum_i c_i self_i`, for coefficients (N,)."""
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

    def _at(self, use: Use, part: slice) -> Tensor:
        return use.gradient[part].to(self.parameter.dtype)

    def _parts(self) -> Iterator[slice]:
        """Samples that are treated at once: their contributions and features stay within `CHUNK_BYTES`."""
        kernel = self.parameter[0, 0].numel() if self.parameter.dim() > 2 else 1
        numbers = 2 * self.parameter.numel() + sum(kernel * use.call.inputs[0].numel() for use in self.uses)
        budget = CHUNK_BYTES.get(self.parameter.device.type, CHUNK_BYTES["cpu"])
        step = max(1, budget // (self.parameter.element_size() * numbers))
        yield from (slice(start, min(start + step, self.samples)) for start in range(0, self.samples, step))


def _rows(every: Sequence[Contributions], prepared: Sequence[Tensor], part: slice) -> list[Tensor]:
    """Each one's contributions (n, *parameter shape) for the samples of `part`; features are found once."""
    total: list[Tensor] = []
    for uses, inputs in zip(zip(*(one.uses for one in every), strict=True), prepared, strict=True):
        gradients = [one._at(use, part) for one, use in zip(every, uses, strict=True)]
        rows = uses[0].rule.rows(uses[0].call.layer, uses[0].own, inputs[part], gradients)
        total = [a + b for a, b in zip(total, rows, strict=True)] if total else rows
    return total
