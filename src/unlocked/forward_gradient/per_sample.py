"""What every sample of a batch contributes to a layer's parameter gradients: the clear reference.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `spaces.PerSampleWeight`.

The contribution of sample i is the gradient of the batch's loss in the copy of the parameter that sample i used. It
needs the layer's inputs and the loss's gradient at the layer's outputs, so it is defined with batch statistics too,
where a vectorised gradient of single samples would see another normalisation. Contributions sum to the batch gradient.
Each layer type has a `gradient` and a `response`: the change of its outputs when sample i's copy of a parameter moves
in direction `d_i`. They are adjoint: <gradient(x, g), d> = <g, response(x, d)>, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from unlocked.errors import SettingError

Contributions = dict[str, Tensor]


def linear(layer: nn.Linear, inputs: Tensor, output_gradient: Tensor) -> Contributions:
    """inputs (N, ..., in), output_gradient (N, ..., out) -> weight (N, out, in), bias (N, out); places are summed."""
    inputs, output_gradient = _as_places(inputs), _as_places(output_gradient)
    return {"weight": torch.einsum("npo,npi->noi", output_gradient, inputs), "bias": output_gradient.sum(1)}


def convolution(layer: nn.Conv2d, inputs: Tensor, output_gradient: Tensor) -> Contributions:
    """inputs (N, in, h, w), output_gradient (N, out, h', w') -> weight (N, out, in / groups, kh, kw), bias (N, out)."""
    patches = _patches(layer, inputs)
    gradient = output_gradient.unflatten(1, (layer.groups, -1)).flatten(3)
    weight = torch.einsum("ngol,ngil->ngoi", gradient, patches).reshape(len(inputs), *layer.weight.shape)
    return {"weight": weight, "bias": output_gradient.sum((2, 3))}


def batch_norm(layer: nn.BatchNorm2d, inputs: Tensor, output_gradient: Tensor) -> Contributions:
    """inputs, output_gradient (N, channels, ...) -> weight, bias (N, channels).

    The inputs are normalised as the layer's mode says: by batch statistics in training, by running ones otherwise.
    """
    return _scale_and_shift(_batch_normalised(layer, inputs), output_gradient)


def group_norm(layer: nn.GroupNorm, inputs: Tensor, output_gradient: Tensor) -> Contributions:
    """inputs, output_gradient (N, channels, ...) -> weight, bias (N, channels)."""
    return _scale_and_shift(_group_normalised(layer, inputs), output_gradient)


def linear_response(layer: nn.Linear, inputs: Tensor, parameter: str, direction: Tensor) -> Tensor:
    """direction (N, *parameter shape) -> change of the outputs (N, ..., out), or one that broadcasts to it."""
    if parameter == "bias":
        return direction.reshape(len(direction), *(1 for _ in inputs.shape[1:-1]), -1)
    return torch.einsum("n...i,noi->n...o", inputs, direction)


def convolution_response(layer: nn.Conv2d, inputs: Tensor, parameter: str, direction: Tensor) -> Tensor:
    """direction (N, *parameter shape) -> change of the outputs (N, out, h', w'), or one that broadcasts to it."""
    if parameter == "bias":
        return direction[:, :, None, None]
    weights = direction.flatten(0, 1)  # every sample its own group of kernels
    stacked = inputs.flatten(0, 1).unsqueeze(0)
    outputs = functional.conv2d(
        stacked, weights, None, layer.stride, layer.padding, layer.dilation, len(inputs) * layer.groups
    )
    return outputs.squeeze(0).unflatten(0, (len(inputs), layer.out_channels))


def batch_norm_response(layer: nn.BatchNorm2d, inputs: Tensor, parameter: str, direction: Tensor) -> Tensor:
    """direction (N, channels) -> change of the outputs (N, channels, ...), or one that broadcasts to it."""
    direction = direction.reshape(*direction.shape, *(1 for _ in inputs.shape[2:]))
    return direction if parameter == "bias" else direction * _batch_normalised(layer, inputs)


def group_norm_response(layer: nn.GroupNorm, inputs: Tensor, parameter: str, direction: Tensor) -> Tensor:
    """direction (N, channels) -> change of the outputs (N, channels, ...), or one that broadcasts to it."""
    direction = direction.reshape(*direction.shape, *(1 for _ in inputs.shape[2:]))
    return direction if parameter == "bias" else direction * _group_normalised(layer, inputs)


@dataclass(frozen=True)
class Rule:
    """What is known of a layer type: its contributions, and its response to a direction per sample."""

    gradient: Callable[..., Contributions]
    response: Callable[..., Tensor]


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: Rule(linear, linear_response),
    nn.Conv2d: Rule(convolution, convolution_response),
    nn.BatchNorm1d: Rule(batch_norm, batch_norm_response),
    nn.BatchNorm2d: Rule(batch_norm, batch_norm_response),
    nn.GroupNorm: Rule(group_norm, group_norm_response),
}


def rule(layer: nn.Module) -> Rule:
    """The rule of `layer`'s type; raises SettingError where there is none or the layer has an unusual setting."""
    if type(layer) not in RULES:
        known = ", ".join(kind.__name__ for kind in RULES)
        raise SettingError("layer", type(layer).__name__, f"per-sample weight gradients are known for {known}")
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        padding = (layer.padding_mode, layer.padding)
        raise SettingError("padding", padding, "per-sample weight gradients need zero padding given in numbers")
    return RULES[type(layer)]


def _as_places(values: Tensor) -> Tensor:
    """(N, ..., features) to (N, places, features)."""
    return values.reshape(len(values), -1, values.shape[-1])


def _patches(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What each output place sees: (N, groups, in / groups × kh × kw, places)."""
    patches = functional.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.unflatten(1, (layer.groups, -1))


def _scale_and_shift(normalised: Tensor, output_gradient: Tensor) -> Contributions:
    by_channel = (*output_gradient.shape[:2], -1)
    weight = (normalised * output_gradient).reshape(by_channel).sum(2)
    return {"weight": weight, "bias": output_gradient.reshape(by_channel).sum(2)}


def _batch_normalised(layer: nn.BatchNorm2d, inputs: Tensor) -> Tensor:
    by_batch = layer.training or layer.running_mean is None
    mean, var = (None, None) if by_batch else (layer.running_mean, layer.running_var)
    return functional.batch_norm(inputs, mean, var, training=by_batch, eps=layer.eps)


def _group_normalised(layer: nn.GroupNorm, inputs: Tensor) -> Tensor:
    return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
