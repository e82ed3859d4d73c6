"""What the plan believes of networks against the real ones: names, and costs within a factor of two."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unlocked.errors import SettingError
from unlocked.vision import auxiliary, blocks, models, networks
from unlocked.vision.networks import AUXILIARIES, IN_BLOCKS, NETWORKS, WHOLE, Cost

KEPT = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.Linear)
SHAPE = ("classes", "channels", "size", "width")
SMALL = [(10, 1, 8, 1.0), (10, 1, 14, 1.0), (10, 1, 8, 0.25), (10, 3, 32, 0.5)]
RESNETS = [(10, 1, 8, 0.125), (10, 1, 14, 0.375), (10, 3, 32, 0.25), (10, 3, 32, 1.0), (1000, 3, 32, 1.0)]
LARGE = [(1000, 3, 224, 1.0)]
IN_BLOCKS_SHAPES = [*RESNETS, (10, 1, 8, 0.0625), (10, 1, 14, 0.0625), (10, 3, 32, 0.0625), (10, 1, 8, 1.0)]


def measured(module: nn.Module, images: torch.Tensor) -> tuple[Cost, torch.Tensor]:
    """The cost of one sample through a real module, on tensors without storage, and its outputs."""
    outputs: list[int] = []
    layers = [layer for layer in module.modules() if isinstance(layer, KEPT)]
    hooks = [layer.register_forward_hook(lambda *call: outputs.append(call[2].numel())) for layer in layers]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        after = module.eval()(images)
    for hook in hooks:
        hook.remove()
    return Cost(sum(p.numel() for p in module.parameters()), counter.get_total_flops() // 2, sum(outputs)), after


def assert_close(estimate: Cost, real: Sequence[Cost]) -> None:
    for field, guessed, parts in zip(Cost._fields, estimate, zip(*real, strict=True), strict=True):
        assert sum(parts) / 2 < guessed < sum(parts) * 2, field


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, shape) for name in ("mlp", "conv") for shape in SMALL),
        *(("resnet18", shape) for shape in RESNETS + LARGE),
        *(("resnet50", shape) for shape in LARGE),
    ],
)
def test_costs_of_whole_nets(name: str, shape: tuple) -> None:
    settings = dict(zip(SHAPE, shape, strict=True))
    with torch.device("meta"):
        real, _ = measured(models.build(name, **settings), torch.empty(1, shape[1], shape[2], shape[2]))
    assert_close(networks.cost(name, **settings), [real])


@pytest.mark.parametrize("shape", IN_BLOCKS_SHAPES, ids=str)
@pytest.mark.parametrize("kind", AUXILIARIES)
@pytest.mark.parametrize("name", IN_BLOCKS)
def test_costs_of_nets_in_blocks(name: str, kind: str, shape: tuple) -> None:
    settings = dict(zip(SHAPE, shape, strict=True))
    with torch.device("meta"):
        network = blocks.build(name, channels=shape[1], width=shape[3])
        heads = auxiliary.build_all(kind, network, classes=shape[0])
        features = torch.empty(1, shape[1], shape[2], shape[2])
    body, tops = [], []
    for block, head in zip(network.modules, heads, strict=True):
        cost, features = measured(block, features)
        body.append(cost)
        tops.append(measured(head, features)[0])
    assert_close(networks.cost(name, **settings), [*body, tops[-1]])
    assert_close(networks.cost(name, kind, **settings), tops[:-1])


@pytest.mark.parametrize("name", IN_BLOCKS)
def test_count_and_largest_of_the_blocks(name: str) -> None:
    net = blocks.build(name, width=1 / 4, seed=0)
    sizes = [sum(p.numel() for p in block.parameters()) for block in net.modules]
    assert len(sizes) == NETWORKS[name].blocks
    assert max(sizes) / sum(sizes) == pytest.approx(NETWORKS[name].largest_block, rel=0.03)


@pytest.mark.parametrize("name", NETWORKS)
def test_widths_are_refused_where_building_refuses_them(name: str) -> None:
    def build(width: float) -> None:
        if name in WHOLE:
            models.build(name, classes=10, channels=3, size=8, width=width)
        else:
            blocks.build(name, width=width)

    thinnest = 1 / NETWORKS[name].thinnest
    for act in (build, lambda width: networks.check_width(name, width)):
        act(0.51 * thinnest)
        for width in (0.5 * thinnest, 0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(SettingError, match=r"width = .*must leave at least one of \d+ channels, so .* or more"):
                act(width)


def test_names_are_those_that_can_be_built() -> None:
    assert tuple(models.MODELS) == WHOLE
    with pytest.raises(SettingError, match="model = 'vgg'"):
        networks.check_width("vgg", 1.0)
