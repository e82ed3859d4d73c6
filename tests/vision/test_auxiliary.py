"""The auxiliary nets: shapes, costs, seeds."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from unlocked.errors import SettingError
from unlocked.vision import auxiliary, blocks

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@functools.cache
def full_net() -> tuple[blocks.Blocks, int]:
    """The 8-block net at full width, with its FLOPs, classifier included."""
    net = blocks.build("resnet18_8", seed=0)
    shapes = [(3, 32, 32), *((c, s, s) for c, s in zip(net.channels, net.sizes, strict=True))]
    modules = [*net.modules, auxiliary.classifier(net.channels[-1], classes=10)]
    return net, sum(auxiliary.counts(m, shape)[1] for m, shape in zip(modules, shapes, strict=True))


@pytest.mark.parametrize(("name", "percent"), [("cnn", "2.9"), ("mlp", "3.7"), ("linear", "0.14")])
def test_share_of_the_nets_flops(name: str, percent: str) -> None:
    net, whole = full_net()
    nets = auxiliary.build_all(name, net, classes=10, seed=0)
    places = zip(list(nets)[:-1], net.channels, net.sizes, strict=False)
    flops = sum(auxiliary.counts(one, (c, s, s))[1] for one, c, s in places)
    digits = len(percent.split(".")[1])
    assert f"{100 * flops / whole:.{digits}f}" == percent


def test_counts_are_parameters_and_multiply_adds_of_one_sample() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    assert auxiliary.counts(layer, (2, 5, 5)) == (54, 54 * 25)
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 4)).train()
    auxiliary.counts(module, (2, 1, 1))
    assert module.training
    assert module[0].num_batches_tracked == 0


@pytest.mark.parametrize("name", auxiliary.names())
@pytest.mark.parametrize("model", blocks.names())
@pytest.mark.parametrize("size", [8, 1])
def test_scores_of_every_block(name: str, model: str, size: int) -> None:
    net = blocks.build(model, channels=1, size=size, width=1 / 16, seed=0)
    nets = auxiliary.build_all(name, net, classes=7, seed=0)
    assert len(nets) == len(net.modules)
    values = torch.randn(2, 1, size, size, generator=torch.Generator().manual_seed(0))
    for block, one in zip(net.modules, nets, strict=True):
        values = block(values)
        assert one(values).shape == (2, 7)


def test_hidden_widths_follow_net_and_width() -> None:
    for model, width, right in (
        ("resnet18_8", 1.0, (32, 1024)),
        ("resnet18_16", 1.0, (16, 512)),
        ("resnet18_8", 1 / 8, (4, 128)),
        ("resnet18_16", 1 / 16, (4, 32)),
    ):
        net = blocks.build(model, width=width, seed=0) if width < 1 else _stub(model)
        assert tuple(auxiliary.default_hidden(name, net) for name in ("cnn", "mlp")) == right


def _stub(model: str) -> blocks.Blocks:
    count = int(model.rsplit("_", 1)[1])
    return blocks.Blocks(model, 1.0, "batch", nn.ModuleList(nn.Identity() for _ in range(count)), (1,), (1,))


def test_a_copy_has_the_architecture_and_not_the_weights_of_the_rest() -> None:
    net = blocks.build("resnet18_2", channels=1, size=8, width=1 / 16, seed=0)
    copied = auxiliary.build_all("copy", net, classes=10, seed=0)[0]
    rest = net.modules[1].state_dict()
    body = copied[0].state_dict()
    assert {n: v.shape for n, v in rest.items()} == {n: v.shape for n, v in body.items()}
    name = next(n for n, v in rest.items() if v.dim() == 4)
    assert not torch.equal(rest[name], body[name])
    assert copied.training


def test_a_seed_fixes_the_weights_and_every_block_has_its_own() -> None:
    net = blocks.build("resnet18_8", width=1 / 16, seed=0)
    kept = torch.get_rng_state()
    one, same, other = (auxiliary.build_all("mlp", net, classes=3, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), kept)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["0.2.weight"], other["0.2.weight"])
    assert not torch.equal(one["0.2.weight"], one["1.2.weight"])


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"name": "transformer"}, "auxiliary"),
        ({"name": "copy"}, "auxiliary"),
        ({"name": "cnn", "channels": 0}, "channels"),
        ({"name": "linear", "classes": 0}, "classes"),
        ({"name": "mlp", "hidden": 0}, "hidden"),
        ({"name": "linear", "norm": "layer"}, "norm"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings: dict, setting: str) -> None:
    with pytest.raises(SettingError) as raised:
        auxiliary.build(**{"channels": 4, "classes": 3} | settings)
    assert raised.value.setting == setting
    assert "\n" not in str(raised.value)
