"""A net of one's own, cut into the blocks and the classifier that forward gradients need."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from unlocked.errors import SettingError, choose

RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc")


def split(model: nn.Module, at: Sequence[int | str]) -> tuple[nn.ModuleList, nn.Module]:
    """Cut a chain of modules before each of `at`: K blocks, and the classifier, which is the last of the K + 1 parts.

    model: an `nn.Sequential`, or a ResNet with torchvision's names (its stages are units that can be cut, too:
    `layer2`, `layer3.1`). at: names in their order, or positions in a `Sequential`. The parts share the model's
    parameters, and one after the other they compute what it computes. `SettingError` for anything else.
    """
    units = _units(model)
    names = list(units)
    starts = [0]
    for place in at:
        name = choose("at", str(place), [*names, *{name.partition(".")[0] for name in names}])
        starts.append(next(k for k, unit in enumerate(names) if unit == name or unit.startswith(f"{name}.")))
    if len(starts) < 2 or any(a >= b for a, b in pairwise(starts)):
        raise SettingError("at", list(at), "must name at least one cut, in the order of the modules, none at the start")
    parts = [names[a:b] for a, b in pairwise([*starts, len(names)])]
    *blocks, classifier = (nn.Sequential(OrderedDict((n.replace(".", "_"), units[n]) for n in own)) for own in parts)
    return nn.ModuleList(blocks), classifier


def _units(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of the chain, by name."""
    if isinstance(model, nn.Sequential):
        return dict(model.named_children())
    if tuple(name for name, _ in model.named_children()) != RESNET:
        right = "is no nn.Sequential and no torchvision ResNet: write its blocks as a Sequential"
        raise SettingError("model", type(model).__name__, right)
    units: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        stages = name.startswith("layer")
        units |= {f"{name}.{k}": one for k, one in child.named_children()} if stages else {name: child}
    return {**units, "avgpool": nn.Sequential(units["avgpool"], nn.Flatten()), "fc": units["fc"]}
