"""Auxiliary nets: what turns a block's output into class scores, and so gives the block a loss of its own.

Stands under `train` on the road configs -> plan -> train -> record -> item, beside `unlocked.vision.blocks`. The last
auxiliary net is the classifier of the whole net.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from unlocked.errors import SettingError, choose
from unlocked.vision.blocks import Blocks, fresh_weights, normalisation

_HIDDEN = {"cnn": 32, "mlp": 1024, "linear": 0, "copy": 0}  # hidden channels or units at width 1
_SMALLEST_HIDDEN = 4


def names() -> tuple[str, ...]:
    """The auxiliary nets that `build` knows."""
    return tuple(_BUILDERS)


def build(
    name: str,
    *,
    channels: int,
    classes: int,
    hidden: int | None = None,
    norm: str = "batch",
    remaining: Sequence[nn.Module] = (),
    seed: int | None = None,
) -> nn.Module:
    """Build one auxiliary net: (N, channels, any height, any width) to scores (N, classes).

    `cnn`: 1×1 convolution to `hidden` channels, three 3×3 convolutions of stride 2, pooling to 2×2, linear; each
    convolution without bias and followed by normalisation and ReLU. `mlp`: pooling to 2×2, three dense layers of
    `hidden` units with ReLU, linear. `linear`: normalisation, pooling to 2×2, linear. `copy`: the architecture of
    `remaining` (the blocks after this one), with its own weights, and the classifier.
    hidden None: 32 for `cnn`, 1024 for `mlp`. The pooling is adaptive: a map of fewer pixels is repeated.
    seed: draws the weights without touching the global generators; None draws from them.
    Raises SettingError for an unknown name, no channels, no classes, or a copy of nothing.
    """
    builder = _BUILDERS[choose("auxiliary", name, names())]
    _positive(channels=channels, classes=classes)
    hidden = _HIDDEN[name] if hidden is None else hidden
    with fresh_weights(seed, "auxiliary"):
        return builder(channels, classes, hidden, norm, remaining)


def build_all(
    name: str, network: Blocks, *, classes: int, hidden: int | None = None, seed: int | None = None
) -> nn.ModuleList:
    """Build one auxiliary net per block of `network`; the last is the classifier, whatever `name`.

    hidden None: 32 channels (`cnn`) and 1024 units (`mlp`) at width 1, half of them for the 16-block net, times the
    net's width, never below 4. Every auxiliary net is drawn from its own seed.
    """
    if hidden is None:
        hidden = default_hidden(name, network)
    auxiliaries = nn.ModuleList()
    for index, channels in enumerate(network.channels[:-1]):
        with fresh_weights(seed, "auxiliaries", index):
            remaining = network.modules[index + 1 :]
            one = build(name, channels=channels, classes=classes, hidden=hidden, norm=network.norm, remaining=remaining)
        auxiliaries.append(one)
    with fresh_weights(seed, "classifier"):
        auxiliaries.append(classifier(network.channels[-1], classes, network.norm))
    return auxiliaries


def default_hidden(name: str, network: Blocks) -> int:
    """Hidden channels or units of auxiliary `name` on `network` (see `build_all`)."""
    full = _HIDDEN[choose("auxiliary", name, names())]
    if len(network.modules) == 16:
        full //= 2
    return max(_SMALLEST_HIDDEN, round(full * network.width))


def classifier(channels: int, classes: int, norm: str = "batch") -> nn.Module:
    """The whole net's head: normalisation, global average pooling, linear. Its normalisation is the released one's."""
    _positive(channels=channels, classes=classes)
    return _head(channels, classes, norm, pixels=1)


def redraw_(module: nn.Module, seed: int | None, *names: str | int) -> None:
    """Draw all weights of `module` anew, in place, from `seed` and `names` (None: from the global generators)."""
    with fresh_weights(seed, *names, parameters=module.parameters()):
        for layer in module.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()


def counts(module: nn.Module, input_shape: Sequence[int]) -> tuple[int, int]:
    """Trainable parameters, and FLOPs of one sample's forward pass, of `module`.

    input_shape: of one sample, without the batch: (channels, height, width). FLOPs as `fvcore` counts them: one per
    multiply-add, in evaluation mode; ReLU and additions are free.
    """
    from fvcore.nn import FlopCountAnalysis

    parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
    still = copy.deepcopy(module).eval()
    first = next(still.parameters(), torch.empty(0))
    sample = torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype)
    with torch.no_grad():
        flops = (
            FlopCountAnalysis(still, sample).unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
        )
    return parameters, int(flops)


def _cnn(channels: int, classes: int, hidden: int, norm: str, remaining: Sequence[nn.Module]) -> nn.Module:
    _positive(hidden=hidden)
    layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1, bias=False), normalisation(norm, hidden), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(hidden, hidden, 3, 2, padding=1, bias=False), normalisation(norm, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * hidden, classes))


def _mlp(channels: int, classes: int, hidden: int, norm: str, remaining: Sequence[nn.Module]) -> nn.Module:
    _positive(hidden=hidden)
    layers: list[nn.Module] = [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    for before in (4 * channels, hidden, hidden):
        layers += [nn.Linear(before, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))


def _linear(channels: int, classes: int, hidden: int, norm: str, remaining: Sequence[nn.Module]) -> nn.Module:
    return _head(channels, classes, norm, pixels=2)


def _copy(channels: int, classes: int, hidden: int, norm: str, remaining: Sequence[nn.Module]) -> nn.Module:
    if not remaining:
        raise SettingError("auxiliary", "copy", "needs the blocks that follow, to copy their architecture")
    body = [copy.deepcopy(block) for block in remaining]
    for block in body:
        redraw_(block, None)
    with torch.no_grad():
        last = nn.Sequential(*body).eval()(torch.zeros(1, channels, 8, 8)).shape[1]
    return nn.Sequential(*body, _head(last, classes, norm, pixels=1)).train()


def _head(channels: int, classes: int, norm: str, pixels: int) -> nn.Module:
    return nn.Sequential(
        normalisation(norm, channels),
        nn.AdaptiveAvgPool2d(pixels),
        nn.Flatten(),
        nn.Linear(channels * pixels**2, classes),
    )


def _positive(**settings: int) -> None:
    for setting, value in settings.items():
        if value < 1:
            raise SettingError(setting, value, "must be 1 or more")


_BUILDERS: dict[str, Callable[[int, int, int, str, Sequence[nn.Module]], nn.Module]] = {
    "cnn": _cnn,
    "mlp": _mlp,
    "linear": _linear,
    "copy": _copy,
}
