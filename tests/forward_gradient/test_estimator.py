"""Identities, purity, and refusals of `estimate`."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forward_gradient.conftest import SPACES, Net, assert_same, generator, small_net
from unlocked.errors import SettingError
from unlocked.forward_gradient import guesses

EXACT = {"atol": 1e-12, "rtol": 1e-9}


def local_learning(net: Net) -> dict[str, Tensor]:
    """Every block's gradients of its own loss, without any of the code under test."""
    found: dict[str, Tensor] = {}
    outputs = net.inputs
    for k, (block, auxiliary) in enumerate(zip(net.blocks, net.auxiliaries, strict=True)):
        outputs = block(outputs.detach())
        parts = (f"blocks.{k}.", f"auxiliaries.{k}.")
        named = {name: p for name, p in net.whole().named_parameters() if name.startswith(parts)}
        loss = functional.cross_entropy(auxiliary(outputs), net.labels)
        found |= dict(zip(named, torch.autograd.grad(loss, list(named.values()), retain_graph=True), strict=True))
    return found


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("space", "averaged"), SPACES)
@pytest.mark.parametrize(("name", "right"), [("global", Net.backpropagation), ("local", local_learning)])
def test_corners_of_the_table(space: str, averaged: bool, norm: str, name: str, right: Any) -> None:
    """global/global is backpropagation, local/local is local learning.

    `measure` takes the long way: the target is projected on itself, so only the ε of the norm is left.
    """
    net = small_net(norm)
    assert_same(net.estimate(name, name, space, averaged).gradients, right(net), **EXACT)
    long_way = net.estimate(name, name, space, averaged, measure=True)
    assert_same(long_way.gradients, right(net), atol=1e-7, rtol=1e-9)
    if norm == "batch":  # with GroupNorm some targets are so small that ε shows
        assert all(coefficient.min() > 0.999 for coefficient in long_way.coefficients.values())


@pytest.mark.parametrize("distribution", guesses.DISTRIBUTIONS)
@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_random_guesses_are_unbiased(space: str, averaged: bool, distribution: str) -> None:
    """The mean of 200 draws is the true gradient within its error: along that gradient, and in each parameter."""
    net = small_net(samples=3)
    settings = {"distribution": distribution, "generator": generator(1)}
    right = {name: g for name, g in net.backpropagation().items() if name.split(".")[1] != "2"}
    truth = torch.cat([g.flatten() for g in right.values()])
    rows = []
    for _ in range(200):
        found = net.estimate("global", "random", space, averaged, **settings).gradients
        rows.append(torch.cat([found[name].flatten() for name in right]))
    draws = torch.stack(rows)
    along = draws @ truth / (truth @ truth)
    assert abs(along.mean() - 1) < 4.5 * along.std() / len(draws) ** 0.5
    varies = draws.std(0) > 0  # behind a ReLU that is off for all samples there is nothing to estimate
    assert varies.float().mean() > 0.5
    assert not (draws.mean(0) - truth)[~varies].any()
    z = (draws.mean(0) - truth)[varies] / (draws.std(0)[varies] / len(draws) ** 0.5)
    assert z.abs().max() < 6
    assert 0.5 < z.square().mean() < 2  # near 1; the estimates of one block share their noise


@pytest.mark.parametrize("mode", ["projection", "forward_mode"])
def test_nothing_changes_unless_statistics_are_asked_for(mode: str) -> None:
    net = small_net()
    before, kept = net.state(), torch.get_rng_state()
    for target, guess, where in itertools.product(("global", "local"), ("local", "random"), SPACES):
        net.estimate(target, guess, *where, mode=mode, generator=generator())
    assert torch.equal(torch.get_rng_state(), kept)
    after = net.state()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in net.whole().parameters())
    assert not any(m._forward_hooks for m in net.blocks.modules())
    assert all(m.track_running_stats for m in net.blocks.modules() if isinstance(m, nn.BatchNorm2d))
    net.estimate("global", "random", mode=mode, update_statistics=True)
    for name, value in net.state().items():
        if name.endswith("num_batches_tracked"):  # once, in what is used
            unused = name.startswith(("auxiliaries.0", "auxiliaries.1"))
            assert value == (0 if unused else 1), name


def test_works_under_no_grad_and_leaves_frozen_parameters_out() -> None:
    net = small_net()
    right = net.estimate("global", "local", "weight", False).gradients
    frozen = dict(net.blocks.named_parameters())["1.body.1.bias"].requires_grad_(False)
    with torch.no_grad():
        found = net.estimate("global", "local", "weight", False).gradients
    assert not frozen.requires_grad
    assert set(right) - set(found) == {"blocks.1.body.1.bias"}
    assert_same(found, {n: g for n, g in right.items() if n in found}, **EXACT)


def test_losses_and_right_answers_of_every_block() -> None:
    net = small_net()
    outputs = net.inputs
    for k, (block, auxiliary) in enumerate(zip(net.blocks, net.auxiliaries, strict=True)):
        outputs = block(outputs)
        scores = auxiliary(outputs)
        for guess in ("random", "local"):
            found = net.estimate("global", guess)
            torch.testing.assert_close(found.losses[k], functional.cross_entropy(scores, net.labels).detach())
            assert found.correct[k] == (scores.argmax(1) == net.labels).sum()


def test_one_block_alone_is_backpropagation() -> None:
    net = small_net()
    alone = Net(net.blocks[:1], nn.ModuleList([net.auxiliaries[0]]), net.inputs, net.labels)
    for target, guess in itertools.product(("global", "local"), ("random", "local")):
        assert_same(alone.estimate(target, guess, "weight").gradients, alone.backpropagation(), **EXACT)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"mode": "forward_mode", "measure": True}, "measure"),
        ({"mode": "forward_mode", "precision": "bfloat16"}, "precision"),
        ({"precision": "half"}, "precision"),
        ({"guess_auxiliaries": []}, "guess_auxiliaries"),
        ({"guess": "random", "guess_auxiliaries": []}, "guess_auxiliaries"),
        ({"guess": "ntk", "guess_auxiliaries": []}, "guess_auxiliaries"),
        ({"without": True}, "auxiliaries"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(options: dict[str, Any], setting: str) -> None:
    net = small_net()
    if options.pop("without", False):
        net.auxiliaries = nn.ModuleList()
    with pytest.raises(SettingError) as raised:
        net.estimate("global", options.pop("guess", "local"), **options)
    assert raised.value.setting == setting
    assert "\n" not in str(raised.value)


def test_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(SettingError, match="inference_mode"):
        small_net().estimate("global", "local")
