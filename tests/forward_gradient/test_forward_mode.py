"""Forward mode finds the same estimates as projection, and refuses what it cannot find."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from forward_gradient.conftest import Net, small_net
from unlocked.errors import SettingError
from unlocked.forward_gradient import Estimate, estimate

SPACES = [("weight", False), ("weight", True), ("activity", False), ("activity", True)]
CELLS = list(itertools.product(("global", "local"), ("random", "local", "ntk", "fixed_ntk"), SPACES))


def both(net: Net, target: str, guess: str, space: str, averaged: bool, **more: object) -> tuple[Estimate, Estimate]:
    """The same estimate by projection and in forward mode, with the same noise."""
    settings = {"target": target, "guess": guess, "space": space, "averaged": averaged}
    return (
        estimate(*net.everything(), **settings, generator=torch.Generator().manual_seed(4)),
        estimate(
            *net.everything(), **settings, mode="forward_mode", generator=torch.Generator().manual_seed(4), **more
        ),
    )


def assert_agree(one: Estimate, other: Estimate, **close: float) -> None:
    assert set(one.gradients) == set(other.gradients)
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(other.gradients[name], gradient, **close, msg=lambda m, n=name: f"{n}: {m}")
    for name, coefficient in one.coefficients.items():
        torch.testing.assert_close(other.coefficients[name], coefficient, **close)
    torch.testing.assert_close(other.losses, one.losses)
    assert torch.equal(other.correct, one.correct)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("target", "guess", "where"), CELLS)
def test_agrees_with_projection(norm: str, target: str, guess: str, where: tuple[str, bool]) -> None:
    net = small_net(norm, samples=4)
    assert_agree(*both(net, target, guess, *where), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_agrees_with_projection_in_single_precision(space: str, averaged: bool) -> None:
    net = small_net("batch", samples=8, dtype=torch.float32)
    assert_agree(*both(net, "global", "local", space, averaged), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("space", ["weight", "activity"])
@pytest.mark.parametrize("target", ["global", "local"])
def test_one_pass_is_exact_where_samples_do_not_interact(space: str, target: str) -> None:
    net = small_net("group")
    assert_agree(*both(net, target, "local", space, False, per_sample_method="one_pass"), atol=1e-9, rtol=1e-9)
    assert_agree(*both(net, target, "random", space, False, per_sample_method="tangents"), atol=1e-9, rtol=1e-9)
    net = small_net("batch")
    estimate(*net.everything(), target="global", guess="local", space="activity", update_statistics=True)
    net.blocks.eval()
    net.auxiliaries.eval()
    assert_agree(*both(net, target, "local", space, False, per_sample_method="one_pass"), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("space", ["weight", "activity"])
def test_one_pass_with_batch_statistics_is_refused(space: str) -> None:
    net = small_net("batch")
    with pytest.raises(SettingError, match="batch statistics") as raised:
        both(net, "global", "local", space, False, per_sample_method="one_pass")
    assert "\n" not in str(raised.value)
    assert_agree(*both(net, "global", "local", space, True, per_sample_method="one_pass"), atol=1e-9, rtol=1e-9)


def test_the_size_of_a_chunk_does_not_matter() -> None:
    net = small_net("batch", samples=5)
    for chunk in (1, 2, 5):
        assert_agree(*both(net, "global", "local", "activity", False, chunk=chunk), atol=1e-9, rtol=1e-9)


def test_several_tangents_and_rademacher() -> None:
    net = small_net("batch", samples=3)
    settings = {"target": "global", "guess": "random", "space": "weight", "tangents": 3, "distribution": "rademacher"}
    found = [
        estimate(*net.everything(), **settings, mode=mode, generator=torch.Generator().manual_seed(1))
        for mode in ("projection", "forward_mode")
    ]
    assert_agree(*found, atol=1e-9, rtol=1e-9)


def test_a_backward_hook_is_refused() -> None:
    net = small_net("batch")
    handle = net.blocks[1].register_full_backward_hook(lambda *_: None)
    with pytest.raises(SettingError, match="backward hook"):
        both(net, "global", "local", "activity", False)
    handle.remove()
    both(net, "global", "local", "activity", False)


def test_the_target_is_never_formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way back in forward mode stays inside one block or one auxiliary net."""
    net = small_net("batch")
    seen: list[bool] = []
    grad = torch.autograd.grad

    def spy(outputs: torch.Tensor, inputs: list, *rest: object, **more: object):
        first = {id(p) for p in net.blocks[0].parameters()}
        seen.append(outputs.dim() == 0 and any(id(tensor) in first for tensor in inputs))
        return grad(outputs, inputs, *rest, **more)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    both(net, "global", "random", "weight", True)
    assert seen
    assert not any(seen)


def test_a_shared_layer_and_dense_layers() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return torch.tanh(self.layer(torch.tanh(self.layer(inputs))))

    torch.manual_seed(0)
    blocks = nn.ModuleList([Twice(), Twice()]).double()
    heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]).double()
    net = Net(blocks, heads, torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1]))
    for space, averaged in SPACES:
        assert_agree(*both(net, "global", "random", space, averaged), atol=1e-9, rtol=1e-9)
