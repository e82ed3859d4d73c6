"""What a method is, the entries that its names stand for, and entries of one's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from forward_gradient.conftest import SPACES, assert_as_reference, generator, registered, small_net
from unlocked.errors import SettingError
from unlocked.forward_gradient import Guess, Method, Target, guesses, targets

SIGN = Guess("sign_local", "sign of local", "#E69F00", "head", lambda gradient: gradient.sign(), trains_heads=True)
CLIPPED = Guess("clipped", "clipped noise", "#E69F00", "noise", lambda noise: noise.clamp(-1, 1), normalised=False)
SIGN_TARGET = Guess("sign_target", "sign of target", "#E69F00", "target", lambda gradient: gradient.sign())
BOTH = Target(
    "both", "both", "#000000", function=lambda whole, own: (whole + own) / 2, uses_net=True, uses_heads=True
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "setting"),
    [
        ({"target": "Global"}, "target"),
        ({"guess": "noise"}, "guess"),
        ({"space": "activation"}, "space"),
        ({"mode": "backward"}, "mode"),
        ({"distribution": "uniform"}, "distribution"),
        ({"averaged": "yes"}, "averaged"),
        ({"target": "local", "guess": "global"}, "guess"),
        ({"guess": "global", "mode": "forward_mode"}, "mode"),
        ({"guess": "random", "tangents": 0}, "tangents"),
        ({"tangents": 2}, "tangents"),
        ({"per_block": True}, "per_block"),
        ({"per_block": True, "space": "weight", "averaged": False}, "per_block"),
        ({"guess": "sign_local"}, "guess"),  # not registered: taken for no other
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(changed: dict[str, Any], setting: str) -> None:
    with pytest.raises(SettingError) as raised:
        Method(**{"target": "global", "guess": "local"} | changed)
    assert raised.value.setting == setting
    assert "\n" not in str(raised.value)


def test_what_a_method_knows() -> None:
    projected = {(t, g): Method(t, g).is_projected for t, g in (("global", "global"), ("local", "local"))}
    assert not any(projected.values())
    assert Method("local", "local", normalise=False).is_projected
    assert Method("local", "fixed_ntk").is_projected
    assert [Method("global", "local", space).is_averaged for space in ("weight", "activity")] == [True, False]
    labels = ["backpropagation", "NTK guess", "frozen blocks"]
    assert [Method("global", g).label for g in ("global", "ntk", "frozen")] == labels
    assert [Method(t, "ntk").has_guess_nets for t in ("global", "local")] == [False, True]
    assert [g for g in guesses.names() if Method("global", g).trains_auxiliaries] == ["local"]
    assert [g for g in guesses.names() if guesses.get(g).redrawn] == ["ntk"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "Sign"}, "lower-case"),
        ({"name": ""}, "lower-case"),
        ({"name": "local"}, "registered already"),
        ({"label": " "}, "label"),
        ({"colour": ""}, "colour"),
        ({"colour": "red"}, "colour"),
        ({"source": "net"}, "one of noise, head, target, nothing"),
        ({"source": ""}, "one of noise, head, target, nothing"),
        ({"function": None}, "called"),
        ({"source": "noise"}, "no auxiliary nets"),
        ({"source": "target", "trains_heads": False, "redrawn": True}, "no auxiliary nets"),
        ({"redrawn": True}, "cannot both"),
    ],
)
def test_a_wrong_guess_is_refused_when_it_is_registered(changed: dict[str, Any], message: str) -> None:
    names = [*guesses.names()]
    with pytest.raises(SettingError, match=message) as raised:
        guesses.register(replace(SIGN, **changed))
    assert "\n" not in str(raised.value)
    assert [*guesses.names()] == names


@pytest.mark.parametrize(
    "changed",
    [{"uses_net": False, "uses_heads": False}, {"loss": "all"}, {"uses_net": False, "loss": "net"}, {"function": 1}],
)
def test_a_wrong_target_is_refused_when_it_is_registered(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        targets.register(replace(BOTH, **changed))


@pytest.mark.parametrize("guess", [SIGN, CLIPPED, SIGN_TARGET], ids=lambda guess: guess.name)
@pytest.mark.parametrize("target", ["global", "local"])
@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_a_guess_of_ones_own_works_everywhere(guess: Guess, target: str, space: str, averaged: bool) -> None:
    """One registration: by projection, in forward mode, and measured; it is not the local guess."""
    net = small_net("group")
    with registered(guesses, guess):
        method = Method(target, guess.name, space, averaged=averaged)
        found = assert_as_reference(net, method).gradients
        assert_as_reference(net, method, measure=True)
        if guess.source != "target":
            assert_as_reference(net, replace(method, mode="forward_mode"))
    local = net.estimate(target, "local", space, averaged).gradients
    assert (found["blocks.0.body.0.weight"] - local["blocks.0.body.0.weight"]).abs().max() > 1e-6
    assert guess is not SIGN or set(found) == set(local)


@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_a_target_of_ones_own(space: str, averaged: bool) -> None:
    with registered(targets, BOTH):
        assert_as_reference(small_net(), Method("both", "local", space, averaged=averaged))
        with pytest.raises(SettingError, match="take projection"):
            Method("both", "local", mode="forward_mode")


@pytest.mark.parametrize("distribution", guesses.DISTRIBUTIONS)
def test_noise_has_unit_covariance(distribution: str) -> None:
    drawn = guesses.noise(distribution, generator())((4000,), torch.float64, torch.device("cpu"))
    assert abs(drawn.mean()) < 0.1
    assert drawn.var() == pytest.approx(1, abs=0.1)
    assert (len(drawn.unique()) == 2) == (distribution == "rademacher")


def test_redrawn_auxiliaries_come_from_their_seed_and_leave_the_classifier() -> None:
    net, kept, states = small_net(), torch.get_rng_state(), []
    for step in (1, 2, 1):
        guesses.redraw_(net.auxiliaries, 5, "step", step)
        states.append(net.state())
    first, second, again = states
    assert torch.equal(torch.get_rng_state(), kept)
    assert not torch.equal(first["auxiliaries.0.0.weight"], second["auxiliaries.0.0.weight"])
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(small_net().state()["auxiliaries.2.3.weight"], first["auxiliaries.2.3.weight"])
