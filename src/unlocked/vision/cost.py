"""What a model costs, counted by hand and without torch, so that a plan can be made in milliseconds.

Road: configs -> plan (asks this module) -> train (vision serves it) -> record -> item.

The shapes of the models stand here as plain numbers; `models` builds from the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from unlocked.errors import SettingError, choose

MLP_HIDDEN = (64, 64)
CONV_CHANNELS = (16, 32, 64)
CONV_STRIDES = (1, 2, 2)
RESNET_PLANES = (64, 128, 256, 512)
RESNET_BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
SMALL_IMAGE = 64  # up to this size, in pixels, a ResNet has the stem for small images


@dataclass(frozen=True)
class Cost:
    """Numbers for one sample: `forward_macs` are the multiply-adds of convolutions and linear layers; `activations`
    are the floats that training keeps for the backward pass: the outputs of convolution, norm, pooling and linear
    layers (ReLUs work in place or are cheap beside them, so this is an estimate)."""

    parameters: int = 0
    forward_macs: int = 0
    activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.parameters + other.parameters,
            self.forward_macs + other.forward_macs,
            self.activations + other.activations,
        )


def scaled(channels: int, width: float) -> int:
    """`channels` times the width factor, rounded; `SettingError` if nothing is left."""
    result = round(channels * width) if 0 < width < 1e6 else 0
    if result < 1:
        raise SettingError("width", width, f"must leave at least one of {channels} channels, so {1 / channels} or more")
    return result


def has_small_stem(size: int) -> bool:
    """Whether a ResNet for images of this size begins with a 3×3 convolution of stride 1 and no pooling."""
    return size <= SMALL_IMAGE


def count(name: str, *, classes: int, channels: int, size: int, width: float = 1.0) -> Cost:
    """The cost of `models.build(name, ...)` with the same arguments, per sample; parameters and MACs are exact."""
    return _COUNTS[choose("model", name, _COUNTS)](classes, channels, size, width)


def _linear(inputs: int, outputs: int) -> Cost:
    return Cost(inputs * outputs + outputs, inputs * outputs, outputs)


def _conv_norm(inputs: int, outputs: int, kernel: int, size: int) -> Cost:
    """A convolution without bias to size × size pixels, and a norm with scale and shift."""
    weights, pixels = inputs * outputs * kernel**2, size**2
    return Cost(weights + 2 * outputs, weights * pixels, 2 * outputs * pixels)


def _strided(size: int, stride: int) -> int:
    """Pixels along a side after a stride, for every kernel here: 1 without padding, 3 with 1, 7 with 3."""
    return (size - 1) // stride + 1


def _mlp(classes: int, channels: int, size: int, width: float) -> Cost:
    shapes = [channels * size**2, *(scaled(hidden, width) for hidden in MLP_HIDDEN), classes]
    return sum(map(_linear, shapes, shapes[1:]), Cost())


def _conv(classes: int, channels: int, size: int, width: float) -> Cost:
    total, inputs = Cost(), channels
    for planes, stride in zip(CONV_CHANNELS, CONV_STRIDES, strict=True):
        outputs, size = scaled(planes, width), _strided(size, stride)
        total += _conv_norm(inputs, outputs, 3, size)
        inputs = outputs
    return total + _linear(inputs, classes)


def _resnet(name: str, classes: int, channels: int, size: int, width: float) -> Cost:
    inputs = scaled(RESNET_PLANES[0], width)
    if has_small_stem(size):
        total = _conv_norm(channels, inputs, 3, size)
    else:
        size = _strided(size, 2)
        total = _conv_norm(channels, inputs, 7, size)
        size = _strided(size, 2)
        total += Cost(activations=inputs * size**2)  # max-pool
    block, expansion = (_basic, 1) if name == "resnet18" else (_bottleneck, 4)
    for stage, (planes, blocks) in enumerate(zip(RESNET_PLANES, RESNET_BLOCKS[name], strict=True)):
        planes = scaled(planes, width)
        for index in range(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            total += block(inputs, planes, size, stride)
            size = _strided(size, stride)
            if stride != 1 or inputs != planes * expansion:
                total += _conv_norm(inputs, planes * expansion, 1, size)  # the shortcut's projection
            inputs = planes * expansion
    return total + _linear(inputs, classes)


def _basic(inputs: int, planes: int, size: int, stride: int) -> Cost:
    size = _strided(size, stride)
    return _conv_norm(inputs, planes, 3, size) + _conv_norm(planes, planes, 3, size)


def _bottleneck(inputs: int, planes: int, size: int, stride: int) -> Cost:
    first = _conv_norm(inputs, planes, 1, size)
    size = _strided(size, stride)
    return first + _conv_norm(planes, planes, 3, size) + _conv_norm(planes, 4 * planes, 1, size)


# Paper B's nets in blocks: channels and stride of the stages; layers (convolutions, or residual blocks) per stage.
BLOCK_STRIDES = (1, 2, 2, 2)
BLOCK_LAYERS = {"resnet18_8": 2, "resnet18_16": 4, "resnet18_2": 2}
BLOCK_COUNT = {"resnet18_8": 8, "resnet18_16": 16, "resnet18_2": 2}
AUXILIARY_HIDDEN = {"cnn": 32, "mlp": 1024, "linear": 0, "copy": 0}
SMALLEST_HIDDEN = 4


@dataclass(frozen=True)
class BlocksCost:
    """Costs of a net in K blocks: every block's, every auxiliary net's (K - 1), and the classifier's."""

    blocks: tuple[Cost, ...]
    auxiliaries: tuple[Cost, ...]
    classifier: Cost

    @property
    def net(self) -> Cost:
        """Blocks and classifier: what is left after training."""
        return sum(self.blocks, self.classifier)

    @property
    def heads(self) -> Cost:
        """All auxiliary nets."""
        return sum(self.auxiliaries, Cost())


def count_blocks(
    name: str, auxiliary: str, *, classes: int, channels: int, size: int, width: float = 1.0
) -> BlocksCost:
    """The costs of `blocks.build(name, ...)` with `auxiliary.build_all(auxiliary, ...)`, per sample; exact as above."""
    units: list[tuple[Cost, int, int]] = []  # cost, channels, size of every residual block or plain convolution
    unit = _plain if choose("model", name, BLOCK_LAYERS) == "resnet18_16" else _residual
    before, stem = scaled(RESNET_PLANES[0], width), _conv_norm(channels, scaled(RESNET_PLANES[0], width), 3, size)
    for planes, first_stride in zip(RESNET_PLANES, BLOCK_STRIDES, strict=True):
        for stride in (first_stride, *[1] * (BLOCK_LAYERS[name] - 1)):
            cost = unit(before, scaled(planes, width), size, stride)
            before, size = scaled(planes, width), _strided(size, stride)
            units.append((cost + (Cost() if units else stem), before, size))
    if name == "resnet18_2":
        units = [(sum((c for c, *_ in half), Cost()), *half[-1][1:]) for half in (units[:4], units[4:])]
    hidden = AUXILIARY_HIDDEN[choose("auxiliary", auxiliary, AUXILIARY_HIDDEN)] // (2 if len(units) == 16 else 1)
    hidden = max(SMALLEST_HIDDEN, round(hidden * width))
    classifier = _head(before, classes, size, pixels=1)
    heads = []
    for index, (_, planes, pixels) in enumerate(units[:-1]):
        if auxiliary == "copy":
            heads.append(sum((cost for cost, *_ in units[index + 1 :]), classifier))
        else:
            heads.append(_AUXILIARIES[auxiliary](planes, classes, pixels, hidden))
    return BlocksCost(tuple(cost for cost, *_ in units), tuple(heads), classifier)


def _plain(inputs: int, planes: int, size: int, stride: int) -> Cost:
    return _conv_norm(inputs, planes, 3, _strided(size, stride))


def _residual(inputs: int, planes: int, size: int, stride: int) -> Cost:
    cost = _basic(inputs, planes, size, stride)
    if stride != 1 or inputs != planes:
        cost += _conv_norm(inputs, planes, 1, _strided(size, stride))
    return cost


def _norm(channels: int, size: int) -> Cost:
    return Cost(2 * channels, 0, channels * size**2)


def _pool(channels: int, pixels: int) -> Cost:
    return Cost(activations=channels * pixels**2)


def _head(channels: int, classes: int, size: int, pixels: int) -> Cost:
    return _norm(channels, size) + _pool(channels, pixels) + _linear(channels * pixels**2, classes)


def _cnn_head(channels: int, classes: int, size: int, hidden: int) -> Cost:
    total = _conv_norm(channels, hidden, 1, size)
    for _ in range(3):
        size = _strided(size, 2)
        total += _conv_norm(hidden, hidden, 3, size)
    return total + _pool(hidden, 2) + _linear(4 * hidden, classes)


def _mlp_head(channels: int, classes: int, size: int, hidden: int) -> Cost:
    shapes = [4 * channels, hidden, hidden, hidden, classes]
    return sum(map(_linear, shapes, shapes[1:]), _pool(channels, 2))


_AUXILIARIES: dict[str, Callable[[int, int, int, int], Cost]] = {
    "cnn": _cnn_head,
    "mlp": _mlp_head,
    "linear": lambda channels, classes, size, hidden: _head(channels, classes, size, pixels=2),
}


_COUNTS: dict[str, Callable[[int, int, int, float], Cost]] = {
    "mlp": _mlp,
    "conv": _conv,
    "resnet18": lambda *shape: _resnet("resnet18", *shape),
    "resnet50": lambda *shape: _resnet("resnet50", *shape),
}
