"""The nets in blocks and their auxiliary nets: shapes, sizes, costs, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlocked.errors import SettingError
from unlocked.vision import auxiliary, blocks, models, networks
from unlocked.vision.networks import IN_BLOCKS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
KINDS = ("cnn", "mlp", "linear")


@pytest.mark.parametrize(
    ("name", "parameters"), list(zip(IN_BLOCKS, (11_174_986, 11_001_162, 11_174_986), strict=True))
)
def test_full_width_parameters(name: str, parameters: int) -> None:
    net = blocks.build(name, seed=0)
    head = auxiliary.classifier(net.channels[-1], classes=10)
    assert f"{name.partition('_')[0]}_{len(net.modules)}" == name
    assert sum(p.numel() for p in (*net.modules.parameters(), *head.parameters())) == parameters


@pytest.mark.parametrize("name", IN_BLOCKS)
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (2, 5), (1, 1)])
def test_stated_channels_are_those_of_outputs_and_scores_fit(name: str, norm: str, channels: int, size: int) -> None:
    net = blocks.build(name, channels=channels, width=1 / 8, norm=norm, seed=0)
    heads = [auxiliary.build_all(kind, net, classes=7, seed=0) for kind in KINDS]
    values = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    for index, (module, after) in enumerate(zip(net.modules, net.channels, strict=True)):
        values = module(values)
        assert values.shape[:2] == (3, after)
        assert all(kind[index](values).shape == (3, 7) for kind in heads)
    assert values.shape == (3, 64, -(-size // 8), -(-size // 8))


def test_with_group_norm_samples_do_not_interact() -> None:
    net = blocks.build("resnet18_8", channels=1, width=1 / 8, norm="group", seed=0)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = nn.Sequential(*net.modules)
    torch.testing.assert_close(whole(images)[:2], whole(images[:2]))
    assert whole(images).std() > 0  # at one pixel a group still holds several values


@pytest.mark.parametrize("kind", ["blocks", "auxiliaries"])
def test_a_seed_fixes_the_weights_and_leaves_the_global_generator(kind: str) -> None:
    net = blocks.build("resnet18_8", width=1 / 16, seed=0)

    def draw(seed: int) -> list[torch.Tensor]:
        if kind == "blocks":
            drawn = blocks.build("resnet18_8", width=1 / 16, seed=seed).modules
        else:
            drawn = auxiliary.build_all("mlp", net, classes=3, seed=seed)
        return [p for p in drawn.parameters() if p.dim() > 1]

    kept = torch.get_rng_state()
    one, same, other = draw(1), draw(1), draw(2)
    assert torch.equal(torch.get_rng_state(), kept)
    assert all(map(torch.equal, one, same))
    assert not any(map(torch.equal, one, other))
    assert len({weights.flatten()[0].item() for weights in one}) == len(one)  # no two nets begin alike


def test_published_shares_of_the_nets_flops() -> None:
    net = blocks.build("resnet18_8", seed=0)
    shapes, values = [(3, 32, 32)], torch.zeros(1, 3, 32, 32)
    for module in net.modules:
        values = module.eval()(values)
        shapes.append(tuple(values.shape[1:]))
    heads = {kind: auxiliary.build_all(kind, net, classes=10, seed=0) for kind in KINDS}
    modules = zip([*net.modules, heads["cnn"][-1]], shapes, strict=True)
    whole = sum(auxiliary.counts(module, shape)[1] for module, shape in modules)
    shares = []
    for nets in heads.values():
        places = zip(nets[:-1], shapes[1:-1], strict=True)
        shares.append(100 * sum(auxiliary.counts(one, shape)[1] for one, shape in places) / whole)
    assert [f"{shares[0]:.1f}", f"{shares[1]:.1f}", f"{shares[2]:.2f}"] == ["2.9", "3.7", "0.14"]


def test_counts_are_parameters_and_multiply_adds_of_one_sample() -> None:
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    assert auxiliary.counts(layer, (2, 5, 5)) == (54, 54 * 25)
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 4)).train()
    auxiliary.counts(module, (2, 1, 1))
    assert module.training
    assert module[0].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("model", "width", "right"),
    [
        ("resnet18_8", 1.0, [32, 1024]),
        ("resnet18_16", 1.0, [16, 512]),
        ("resnet18_8", 1 / 8, [4, 128]),
        ("resnet18_16", 1 / 16, [4, 32]),
    ],
)
def test_hidden_widths_follow_net_and_width(model: str, width: float, right: list[int]) -> None:
    with torch.device("meta"):
        first = [auxiliary.build_all(kind, blocks.build(model, width=width), classes=3)[0] for kind in ("cnn", "mlp")]
    assert [len(next(net.parameters())) for net in first] == right


@pytest.mark.parametrize("model", IN_BLOCKS)
def test_a_copy_has_the_architecture_and_not_the_weights_of_the_rest(model: str) -> None:
    net = blocks.build(model, channels=1, width=1 / 16, seed=0)
    copied = auxiliary.build_all("copy", net, classes=10, seed=0)[0]
    rest, body = net.modules[1:].state_dict(), copied[:-1].state_dict()
    assert [v.shape for v in rest.values()] == [v.shape for v in body.values()]
    weights = [(a, b) for a, b in zip(rest.values(), body.values(), strict=True) if a.dim() == 4]
    assert weights
    assert not any(torch.equal(a, b) for a, b in weights)
    assert copied.training
    assert copied(net.modules[0](torch.zeros(2, 1, 8, 8))).shape == (2, 10)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SettingError, match="model = 'resnet18_4'"):
        blocks.build("resnet18_4")
    with pytest.raises(SettingError, match="auxiliary = 'transformer'"):
        auxiliary.build_all("transformer", blocks.build("resnet18_8", width=1 / 8), classes=3)


@pytest.mark.parametrize("kind", networks.AUXILIARIES)
def test_weights_as_the_released_code_draws_them(kind: str) -> None:
    """Uniform up to √(6 / inputs), biases .01; in the auxiliary nets and when they are drawn anew, too."""
    net = blocks.build("resnet18_2", width=1 / 8, init="as_released", seed=0)
    heads = auxiliary.build_all(kind, net, classes=10, seed=0)
    first = heads[0].state_dict()["0.weight" if kind == "cnn" else [*heads[0].state_dict()][-2]].clone()
    models.draw_(heads[0], net.init)
    layers = [m for m in (*net.modules.modules(), *heads.modules()) if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        most = (6 / layer.weight[0].numel()) ** 0.5
        assert 0.8 * most < layer.weight.abs().max() <= most
        assert layer.bias is None or (layer.bias == torch.tensor(0.01)).all()
    assert any(layer.bias is not None for layer in layers)
    assert not torch.equal(first, heads[0].state_dict()["0.weight" if kind == "cnn" else [*heads[0].state_dict()][-2]])


def test_auxiliary_nets_as_the_released_code_builds_them() -> None:
    """The mlp has BatchNorm and only the scores have a bias; the copy starts as the blocks that it copies."""
    net = blocks.build("resnet18_2", width=1 / 8, init="as_released", seed=0)
    mlp = auxiliary.build_all("mlp", net, classes=10, seed=0, released=True)[0]
    assert sum(isinstance(layer, nn.BatchNorm1d) for layer in mlp) == 3
    assert [layer.bias is None for layer in mlp if isinstance(layer, nn.Linear)] == [True, True, True, False]
    copied = auxiliary.build_all("copy", net, classes=10, seed=0, released=True)[0]
    pairs = list(zip(net.modules[1].parameters(), copied[0].parameters(), strict=True))
    assert all(torch.equal(theirs, own) and theirs is not own for theirs, own in pairs)
    assert isinstance(copied[-1], nn.Sequential)
