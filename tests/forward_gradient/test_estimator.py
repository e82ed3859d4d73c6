"""Identities, purity, and refusals of `estimate`."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forward_gradient.conftest import Net, small_net
from unlocked.errors import SettingError
from unlocked.forward_gradient import estimate, guesses

SPACES = [("weight", False), ("weight", True), ("activity", False), ("activity", True)]
EXACT = {"atol": 1e-12, "rtol": 1e-9}


def backpropagation(net: Net) -> dict[str, Tensor]:
    """The net's gradients without any of the code under test."""
    outputs = net.inputs
    for block in net.blocks:
        outputs = block(outputs)
    loss = functional.cross_entropy(net.auxiliaries[-1](outputs), net.labels)
    last = len(net.blocks) - 1
    named = {f"blocks.{name}": p for name, p in net.blocks.named_parameters()}
    named |= {f"auxiliaries.{last}.{name}": p for name, p in net.auxiliaries[-1].named_parameters()}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def local_learning(net: Net) -> dict[str, Tensor]:
    """Every block's gradients of its own loss, without any of the code under test."""
    found: dict[str, Tensor] = {}
    outputs = net.inputs
    for k, (block, auxiliary) in enumerate(zip(net.blocks, net.auxiliaries, strict=True)):
        outputs = block(outputs.detach())
        named = {f"blocks.{k}.{name}": p for name, p in block.named_parameters()}
        named |= {f"auxiliaries.{k}.{name}": p for name, p in auxiliary.named_parameters()}
        loss = functional.cross_entropy(auxiliary(outputs), net.labels)
        gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True)
        found |= dict(zip(named, gradients, strict=True))
    return found


def assert_same(found: dict[str, Tensor], right: dict[str, Tensor], **close: float) -> None:
    assert set(found) == set(right)
    for name, gradient in right.items():
        torch.testing.assert_close(found[name], gradient, **close, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_global_on_global_is_backpropagation(space: str, averaged: bool, norm: str) -> None:
    net = small_net(norm)
    found = estimate(*net.everything(), target="global", guess="global", space=space, averaged=averaged)
    assert_same(found.gradients, backpropagation(net), **EXACT)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_local_on_local_is_local_learning(space: str, averaged: bool, norm: str) -> None:
    net = small_net(norm)
    found = estimate(*net.everything(), target="local", guess="local", space=space, averaged=averaged)
    assert_same(found.gradients, local_learning(net), **EXACT)


@pytest.mark.parametrize(("space", "averaged"), SPACES)
@pytest.mark.parametrize(("name", "right"), [("global", backpropagation), ("local", local_learning)])
def test_identities_through_the_projection_itself(space: str, averaged: bool, name: str, right) -> None:
    """`measure` takes the long way: the target is projected on itself, so only the ε of the norm is left."""
    net = small_net()
    found = estimate(*net.everything(), target=name, guess=name, space=space, averaged=averaged, measure=True)
    assert_same(found.gradients, right(net), atol=1e-9, rtol=1e-9)
    for coefficient in found.coefficients.values():
        assert coefficient.min() > 0.999


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_last_block_and_classifier_get_their_true_gradient(norm: str, kind: str) -> None:
    net = small_net(norm, kind=kind)
    right = {n: g for n, g in backpropagation(net).items() if n.split(".")[1] == "2"}
    for target, guess in itertools.product(("global", "local"), ("random", "ntk", "local")):
        found = estimate(*net.everything(), target=target, guess=guess, space="activity").gradients
        assert_same({n: g for n, g in found.items() if n.split(".")[1] == "2"}, right, **EXACT)


@pytest.mark.parametrize("target", ["global", "local"])
@pytest.mark.parametrize("guess", ["random", "local", "ntk", "fixed_ntk"])
def test_auxiliaries_are_trained_where_a_local_loss_is_used(target: str, guess: str) -> None:
    net = small_net()
    found = estimate(*net.everything(), target=target, guess=guess, space="weight", averaged=True).gradients
    trained = {int(name.split(".")[1]) for name in found if name.startswith("auxiliaries")}
    assert trained == ({0, 1, 2} if "local" in (target, guess) else {2})
    for name, gradient in local_learning(net).items():
        if name.startswith("auxiliaries") and name in found:
            torch.testing.assert_close(found[name], gradient, **EXACT)


@pytest.mark.parametrize("distribution", guesses.distributions())
@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_random_guesses_are_unbiased(space: str, averaged: bool, distribution: str) -> None:
    """The mean of 200 draws is the true gradient within its error: along that gradient, and in each parameter."""
    net = small_net(samples=3)
    settings = {"target": "global", "guess": "random", "space": space, "averaged": averaged}
    settings |= {"distribution": distribution, "generator": torch.Generator().manual_seed(1)}
    right = {name: g for name, g in backpropagation(net).items() if name.split(".")[1] != "2"}
    truth = torch.cat([g.flatten() for g in right.values()])
    draws = []
    for _ in range(200):
        found = estimate(*net.everything(), **settings).gradients
        draws.append(torch.cat([found[name].flatten() for name in right]))
    draws = torch.stack(draws)
    along = draws @ truth / (truth @ truth)
    assert abs(along.mean() - 1) < 4.5 * along.std() / len(draws) ** 0.5
    varies = draws.std(0) > 0  # behind a ReLU that is off for all samples there is nothing to estimate
    assert varies.float().mean() > 0.5
    assert not (draws.mean(0) - truth)[~varies].any()
    z = (draws.mean(0) - truth)[varies] / (draws.std(0)[varies] / len(draws) ** 0.5)
    assert z.abs().max() < 6
    assert 0.5 < z.square().mean() < 2  # near 1; the estimates of one block share their noise


def test_several_tangents_are_the_mean_of_single_ones() -> None:
    net = small_net()
    settings = {"target": "global", "guess": "random", "space": "activity"}
    many = estimate(*net.everything(), **settings, generator=torch.Generator().manual_seed(2), tangents=3)
    draws = {0: [], 1: []}  # noise comes block by block, and within a block tangent by tangent
    generator = torch.Generator().manual_seed(2)
    for k, shape in ((0, (6, 4, 4, 4)), (1, (6, 8, 2, 2))):
        draws[k] = [torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    singles = []
    for tangent in range(3):
        replay = iter([draws[0][tangent], draws[1][tangent]])
        singles.append(estimate(*net.everything(), **settings, noise=lambda *_, r=replay: next(r)))
    mean = {name: sum(one.gradients[name] for one in singles) / 3 for name in many.gradients}
    assert_same(many.gradients, mean, **EXACT)
    assert many.coefficients["blocks.1.output"].shape == (3, 6)


def test_noise_is_drawn_in_the_stated_order_and_shape() -> None:
    net = small_net()
    shapes: list[tuple[int, ...]] = []

    def noise(shape, dtype, device) -> Tensor:
        shapes.append(tuple(shape))
        return torch.ones(*shape, dtype=dtype, device=device)

    parameters = [tuple(p.shape) for block in net.blocks[:-1] for p in block.parameters()]
    for (space, averaged), right in {
        ("weight", True): parameters,
        ("weight", False): [(6, *shape) for shape in parameters],
        ("activity", False): [(6, 4, 4, 4), (6, 8, 2, 2)],
    }.items():
        shapes.clear()
        found = estimate(*net.everything(), target="local", guess="random", space=space, averaged=averaged, noise=noise)
        assert shapes == right
        sizes = [() if averaged else (6,)] * len(right)
        assert [tuple(c.shape) for c in found.coefficients.values()] == sizes


@pytest.mark.parametrize("mode", ["projection", "forward_mode"])
def test_nothing_changes_unless_statistics_are_asked_for(mode: str) -> None:
    net = small_net()
    before, kept = net.state(), [torch.get_rng_state()]
    for target, guess, (space, averaged) in itertools.product(("global", "local"), ("local", "random"), SPACES):
        estimate(
            *net.everything(),
            target=target,
            guess=guess,
            space=space,
            averaged=averaged,
            mode=mode,
            generator=torch.Generator().manual_seed(0),
        )
    assert torch.equal(torch.get_rng_state(), kept[0])
    after = net.state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in (*net.blocks.parameters(), *net.auxiliaries.parameters()))
    assert not any(m._forward_hooks for m in net.blocks.modules())
    assert all(m.track_running_stats for m in net.blocks.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("mode", ["projection", "forward_mode"])
def test_statistics_are_updated_once_in_what_is_used(mode: str) -> None:
    net = small_net()
    settings = {"target": "global", "guess": "random", "space": "activity", "mode": mode}
    estimate(*net.everything(), **settings, update_statistics=True)
    for name, value in net.state().items():
        if name.endswith("num_batches_tracked"):
            unused = name.startswith(("auxiliaries.0", "auxiliaries.1"))
            assert value == (0 if unused else 1), name


def test_works_under_no_grad_and_leaves_frozen_parameters_out() -> None:
    net = small_net()
    right = estimate(*net.everything(), target="global", guess="local", space="weight").gradients
    frozen = dict(net.blocks.named_parameters())["1.body.1.bias"].requires_grad_(False)
    with torch.no_grad():
        found = estimate(*net.everything(), target="global", guess="local", space="weight").gradients
    assert not frozen.requires_grad
    assert set(right) - set(found) == {"blocks.1.body.1.bias"}
    assert_same(found, {n: g for n, g in right.items() if n in found}, **EXACT)


def test_parts_changed_in_place_do_not_matter() -> None:
    """Torchvision's residual blocks add to their layers' outputs in place."""
    net = small_net()
    body = net.blocks[0].body

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, inputs: Tensor) -> Tensor:
            outputs = body[4](body[3](functional.relu(body[1](body[0](inputs)), inplace=True)))
            outputs += inputs
            return functional.relu(outputs, inplace=True)

    changed = Net(nn.ModuleList([InPlace(), *net.blocks[1:]]), net.auxiliaries, net.inputs, net.labels)
    for space, averaged in SPACES:
        settings = {"target": "global", "guess": "local", "space": space, "averaged": averaged}
        right = estimate(*net.everything(), **settings)
        for mode in ("projection", "forward_mode"):
            found = estimate(*changed.everything(), **settings, mode=mode)
            assert_same(found.gradients, right.gradients, **EXACT)


def test_losses_and_right_answers_of_every_block() -> None:
    net = small_net()
    outputs = net.inputs
    for k, (block, auxiliary) in enumerate(zip(net.blocks, net.auxiliaries, strict=True)):
        outputs = block(outputs)
        scores = auxiliary(outputs)
        for guess in ("random", "local"):
            found = estimate(*net.everything(), target="global", guess=guess, space="activity")
            torch.testing.assert_close(found.losses[k], functional.cross_entropy(scores, net.labels).detach())
            assert found.correct[k] == (scores.argmax(1) == net.labels).sum()


def test_guesses_from_nets_of_their_own() -> None:
    net, other = small_net(), small_net(kind="linear")
    found = estimate(
        *net.everything(), target="local", guess="ntk", space="activity", guess_auxiliaries=other.auxiliaries
    )
    same = estimate(*net.everything(), target="local", guess="ntk", space="activity")
    assert (found.coefficients["blocks.0.output"] - same.coefficients["blocks.0.output"]).abs().max() > 1e-3
    assert found.gradients.keys() == same.gradients.keys()


def test_one_block_alone_is_backpropagation() -> None:
    net = small_net()
    alone = Net(net.blocks[:1], nn.ModuleList([net.auxiliaries[0]]), net.inputs, net.labels)
    for target, guess in itertools.product(("global", "local"), ("random", "local")):
        found = estimate(*alone.everything(), target=target, guess=guess, space="weight")
        assert_same(found.gradients, backpropagation(alone), **EXACT)


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        ({"target": "Global"}, "target"),
        ({"guess": "noise"}, "guess"),
        ({"space": "activation"}, "space"),
        ({"mode": "backward"}, "mode"),
        ({"distribution": "uniform"}, "distribution"),
        ({"per_sample_method": "guess"}, "per_sample_method"),
        ({"target": "local", "guess": "global"}, "guess"),
        ({"guess": "global", "mode": "forward_mode"}, "mode"),
        ({"mode": "forward_mode", "measure": True}, "measure"),
        ({"tangents": 0}, "tangents"),
        ({"tangents": 2}, "tangents"),
        ({"auxiliaries": []}, "auxiliaries"),
        ({"guess_auxiliaries": []}, "guess_auxiliaries"),
        ({"guess": "ntk", "guess_auxiliaries": []}, "guess_auxiliaries"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changed: dict, setting: str) -> None:
    net = small_net()
    settings = {"target": "global", "guess": "local", "space": "activity", "auxiliaries": net.auxiliaries} | changed
    with pytest.raises(SettingError) as raised:
        estimate(net.blocks, inputs=net.inputs, labels=net.labels, **settings)
    assert raised.value.setting == setting
    assert "\n" not in str(raised.value)


def test_inference_mode_is_refused() -> None:
    net = small_net()
    with torch.inference_mode(), pytest.raises(SettingError, match="inference_mode"):
        estimate(*net.everything(), target="global", guess="local", space="activity")


def test_redrawn_auxiliaries_come_from_their_seed_and_leave_the_classifier() -> None:
    net = small_net()
    first = net.state()
    kept = torch.get_rng_state()
    guesses.redraw_(net.auxiliaries, 5, "step", 1)
    second = net.state()
    guesses.redraw_(net.auxiliaries, 5, "step", 2)
    third = net.state()
    guesses.redraw_(net.auxiliaries, 5, "step", 1)
    again = net.state()
    assert torch.equal(torch.get_rng_state(), kept)
    weight, head = "auxiliaries.0.0.weight", "auxiliaries.2.3.weight"
    assert not torch.equal(first[weight], second[weight])
    assert not torch.equal(second[weight], third[weight])
    assert all(torch.equal(second[name], again[name]) for name in second)
    assert torch.equal(first[head], third[head])
