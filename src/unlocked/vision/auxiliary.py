"""Auxiliary nets: what turns a block's output into class scores, and so gives the block a loss of its own.

The last auxiliary net is the classifier of the whole net. A new one is a case of `build`, and its measured cost in
`networks`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from unlocked.errors import choose
from unlocked.vision.blocks import Blocks, normalisation
from unlocked.vision.models import dense, draw_, fresh_weights
from unlocked.vision.networks import AUXILIARIES

HIDDEN = {"cnn": 32, "mlp": 1024}  # hidden channels or units at width 1
SMALLEST_HIDDEN = 4


def build(
    name: str, *, channels: int, classes: int, hidden: int, norm: str, remaining: Sequence[nn.Module] = (),
    released: bool = False, init: str = "default",
) -> nn.Module:  # fmt: skip
    """Build one auxiliary net: (N, channels, any height, any width) to scores (N, classes).

    `cnn`: 1×1 convolution to `hidden` channels, three 3×3 convolutions of stride 2, pooling to 2×2, linear; each
    convolution without bias and followed by normalisation and ReLU. `mlp`: pooling to 2×2, three dense layers of
    `hidden` units with ReLU, linear. `linear`: normalisation, pooling to 2×2, linear. `copy`: the architecture of
    `remaining` (the blocks after this one), with its own weights, and the classifier.
    The pooling is adaptive: a map of fewer pixels is repeated. norm: `batch` or `group`.
    released: as in the released code, the layers of the `mlp` have BatchNorm instead of biases, and `copy` starts with
    the weights of `remaining`. init: how weights are drawn (`models.draw_`).
    """
    if choose("auxiliary", name, AUXILIARIES) == "copy":
        net = _copy(channels, classes, norm, remaining, released)
    elif name == "mlp":
        layers = dense(4 * channels, hidden, hidden, hidden, classes, normalised=released)
        net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), *layers)
    else:
        net = _cnn(channels, classes, hidden, norm) if name == "cnn" else classifier(channels, classes, norm, pixels=2)
    if init != "default":
        draw_(net[-1] if name == "copy" and released else net, init)
    return net


def build_all(
    name: str, network: Blocks, *, classes: int, seed: int | None = None, released: bool = False
) -> nn.ModuleList:
    """Build one auxiliary net per block of `network`; the last is the classifier, whatever `name`.

    Hidden channels or units: those at width 1, half of them for 16 blocks, × width, never below 4.
    Every auxiliary net is drawn from its own seed.
    """
    full = HIDDEN.get(name, 0) // (2 if len(network.modules) == 16 else 1)
    hidden = max(SMALLEST_HIDDEN, round(full * network.width))
    auxiliaries = nn.ModuleList()
    for index, channels in enumerate(network.channels[:-1]):
        with fresh_weights(seed, "auxiliaries", index):
            remaining = network.modules[index + 1 :]
            one = build(
                name, channels=channels, classes=classes, hidden=hidden, norm=network.norm, remaining=remaining,
                released=released, init=network.init,
            )  # fmt: skip
        auxiliaries.append(one)
    with fresh_weights(seed, "classifier"):
        auxiliaries.append(classifier(network.channels[-1], classes, network.norm))
        if network.init != "default":
            draw_(auxiliaries[-1], network.init)
    return auxiliaries


def classifier(channels: int, classes: int, norm: str = "batch", pixels: int = 1) -> nn.Module:
    """The whole net's head: normalisation, average pooling, linear. Its normalisation is the released one's."""
    linear = nn.Linear(channels * pixels**2, classes)
    return nn.Sequential(normalisation(norm, channels), nn.AdaptiveAvgPool2d(pixels), nn.Flatten(), linear)


def counts(module: nn.Module, input_shape: Sequence[int]) -> tuple[int, int]:
    """Trainable parameters, and FLOPs of one sample's forward pass, of a `module` on the CPU.

    input_shape: of one sample, without the batch: (channels, height, width). FLOPs as `fvcore` counts them: one per
    multiply-add, in evaluation mode; ReLU and additions are free.
    """
    from fvcore.nn import FlopCountAnalysis

    with torch.no_grad():
        analysis = FlopCountAnalysis(copy.deepcopy(module).eval(), torch.zeros(1, *input_shape))
        flops = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    return sum(p.numel() for p in module.parameters() if p.requires_grad), int(flops)


def _cnn(channels: int, classes: int, hidden: int, norm: str) -> nn.Module:
    layers = [nn.Conv2d(channels, hidden, 1, bias=False), normalisation(norm, hidden), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(hidden, hidden, 3, 2, padding=1, bias=False), normalisation(norm, hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * hidden, classes))


def _copy(channels: int, classes: int, norm: str, remaining: Sequence[nn.Module], released: bool) -> nn.Module:
    body = nn.Sequential(*map(copy.deepcopy, remaining))
    if not released:
        draw_(body)
    with torch.no_grad():
        last = body.eval()(torch.zeros(1, channels, 8, 8)).shape[1]
    return nn.Sequential(*body, classifier(last, classes, norm)).train()
