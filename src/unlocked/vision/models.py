"""The models that are trained end to end, from a net of microseconds to torchvision's ResNets.

`build` maps (B, channels, size, size) to logits (B, classes). A new model is one function here, under its name, and its
measured cost in `networks`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from unlocked import seeding
from unlocked.errors import choose
from unlocked.vision.networks import SMALL_IMAGE, scaled

MLP_UNITS = (64, 64)
CONV_STAGES = ((16, 1), (32, 2), (64, 2))  # channels at width 1, and stride
RESNET_PLANES = (64, 128, 256, 512)


@contextmanager
def fresh_weights(seed: int | None, *names: str | int, parameters: Iterable[Tensor] = ()) -> Iterator[None]:
    """Draw what is drawn inside from `seed` and `names`, and leave torch's global generators as they were.

    With seed None the draws come from the global generators. parameters: tensors drawn in place inside, whose devices'
    generators are seeded and kept too.
    """
    if seed is None:
        yield
        return
    devices = sorted({p.device.index or 0 for p in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        # unlike torch.manual_seed this leaves the generators of all other GPUs alone
        for generator in (torch.default_generator, *(torch.cuda.default_generators[d] for d in devices)):
            generator.manual_seed(seeding.integer(seed, *names))
        yield


def draw_(module: nn.Module, init: str = "default") -> None:
    """Draw the weights of all layers anew, in place: as torch does, or as the released code of forward gradients.

    `as_released`: convolutions and linear layers uniform in ±√(6 / inputs), √6 times torch's; their biases .01.
    """
    for layer in module.modules():
        if init == "as_released" and isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, 0.01)
        elif hasattr(layer, "reset_parameters"):
            layer.reset_parameters()


def build(
    name: str, *, classes: int, channels: int, size: int, width: float = 1.0, seed: int | None = None
) -> nn.Module:
    """A freshly initialised model for images (channels, size, size), on the CPU, in training mode.

    width: factor on the number of channels. seed: of the initialisation, which then neither reads nor moves torch's
    global generator; None draws from the global one.
    Raises `SettingError` if the name is unknown or the width leaves no channel.
    """
    make = MODELS[choose("model", name, MODELS)]
    with fresh_weights(seed, "init"):
        return make(classes, channels, size, width)


def dense(*sizes: int, normalised: bool = False) -> nn.Sequential:
    """Linear layers from one size to the next, (N, first) to (N, last), with ReLU between them.

    normalised: there is BatchNorm before every ReLU, and only the last layer has a bias.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes[:-1]):
        layers += [nn.Linear(before, after, bias=not normalised), *[nn.BatchNorm1d(after)] * normalised, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*sizes[-2:]))


def _mlp(classes: int, channels: int, size: int, width: float) -> nn.Module:
    """Two hidden layers of 64 × width with ReLU."""
    hidden = (scaled(units, width) for units in MLP_UNITS)
    return nn.Sequential(nn.Flatten(), *dense(channels * size**2, *hidden, classes))


def _conv(classes: int, channels: int, _size: int, width: float) -> nn.Module:
    """Three 3×3 convolutions of 16, 32 and 64 × width channels, the last two of stride 2, with GroupNorm and ReLU."""
    layers: list[nn.Module] = []
    for planes, stride in CONV_STAGES:
        outputs = scaled(planes, width)
        norm = nn.GroupNorm(math.gcd(4, outputs), outputs)  # four groups where the channels allow it
        layers += [nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False), norm, nn.ReLU()]
        channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def _resnet(
    block_name: str, blocks: tuple[int, ...], classes: int, channels: int, size: int, width: float
) -> nn.Module:
    """torchvision's ResNet out of torchvision's blocks, with a width factor, any number of channels, and two stems.

    torchvision's own class fixes 64, 128, 256, 512 planes and 3 channels. The modules have its names, so that at
    width 1 and with the large stem the weights are interchangeable with torchvision's. Images of up to 64 pixels get
    the stem of the CIFAR ResNets: a 3×3 convolution of stride 1 and no max-pool.
    """
    from torchvision.models import resnet

    block, small = getattr(resnet, block_name), size <= SMALL_IMAGE
    kernel, stride = (3, 1) if small else (7, 2)
    inputs = scaled(RESNET_PLANES[0], width)
    net: OrderedDict[str, nn.Module] = OrderedDict()
    net["conv1"] = nn.Conv2d(channels, inputs, kernel, stride, padding=kernel // 2, bias=False)
    net["bn1"] = nn.BatchNorm2d(inputs)
    net["relu"] = nn.ReLU(inplace=True)
    net["maxpool"] = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
    for stage, planes in enumerate(RESNET_PLANES):
        net[f"layer{stage + 1}"] = _stage(block, inputs, scaled(planes, width), blocks[stage], stride=min(stage, 1) + 1)
        inputs = scaled(planes, width) * block.expansion
    net |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(inputs, classes)}
    for module in nn.Sequential(net).modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(net)


def _stage(block: type[nn.Module], inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """`blocks` residual blocks; the first changes resolution and channels, through a projection where they differ."""
    outputs = planes * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    rest = (block(outputs, planes) for _ in range(blocks - 1))
    return nn.Sequential(block(inputs, planes, stride, shortcut), *rest)


MODELS: dict[str, Callable[[int, int, int, float], nn.Module]] = {  # of classes, channels, size, width
    "mlp": _mlp,
    "conv": _conv,
    "resnet18": partial(_resnet, "BasicBlock", (2, 2, 2, 2)),
    "resnet50": partial(_resnet, "Bottleneck", (3, 4, 6, 3)),
}
