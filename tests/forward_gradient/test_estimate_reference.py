"""Everything faster against the obvious estimator, and the obvious estimator against autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from forward_gradient.conftest import SPACES, Net, Twice, assert_as_reference, assert_same, dense_net, normal, small_net
from unlocked.forward_gradient import Method

CELLS = list(itertools.product(("global", "local"), ("random", "local", "ntk")))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("space", "averaged"), SPACES)
@pytest.mark.parametrize(
    ("target", "guess"), [*CELLS, ("global", "global"), ("global", "frozen"), ("local", "fixed_ntk")]
)
@pytest.mark.parametrize("samples", [2, 5])
def test_every_cell(norm: str, space: str, averaged: bool, target: str, guess: str, samples: int) -> None:
    assert_as_reference(small_net(norm, samples), Method(target, guess, space, averaged=averaged))


@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_other_settings(space: str, averaged: bool) -> None:
    """Several tangents, nets of the guess's own, and normalisation against the guess's habit."""
    net, other = small_net(samples=3), small_net(kind="linear")
    several = {"averaged": averaged, "tangents": 2, "distribution": "rademacher", "normalise": True}
    found = assert_as_reference(net, Method("local", "random", space, **several))
    places = {f"blocks.{name}" for name, _ in net.blocks[:-1].named_parameters()}
    if space == "activity":
        places = {f"blocks.{index}.output" for index in range(len(net.blocks) - 1)}
    assert found.coefficients.keys() == places
    assert {c.shape for c in found.coefficients.values()} == {(2,) if averaged else (2, 3)}
    plain = Method("local", "ntk", space, averaged=averaged, normalise=False)
    assert_as_reference(net, plain, guess_auxiliaries=other.auxiliaries)


class Token(nn.Module):
    """Attention-like: mixes the positions of a sample, with a LayerNorm and a parameter of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.mix(self.norm(inputs))
        return inputs + self.scale * self.out(torch.softmax(x @ x.mT, -1) @ x)


def stranger() -> Net:
    """Somebody's net for sequences of tokens, and a regression."""
    torch.manual_seed(0)
    blocks = nn.ModuleList([nn.Sequential(nn.Embedding(7, 4), Token(4)), Token(4), Token(4)]).double()
    heads = nn.ModuleList([nn.Sequential(nn.Flatten(), nn.Linear(12, 2)) for _ in blocks]).double()
    inputs = torch.arange(15).reshape(5, 3) * 5 % 7
    return Net(blocks, heads, inputs, normal(5, 2, seed=4))


def absolute(scores: Tensor, labels: Tensor) -> Tensor:
    """A loss of one's own, with what the mean over the batch cannot be taken apart into."""
    return (scores - labels).abs().mean() + (scores - labels).mean().square()


@pytest.mark.parametrize("loss", [functional.mse_loss, absolute])
@pytest.mark.parametrize(("space", "averaged"), SPACES)
@pytest.mark.parametrize(("target", "guess"), [*CELLS, ("global", "global")])
def test_a_strangers_net_and_loss(target: str, guess: str, space: str, averaged: bool, loss: Callable) -> None:
    """LayerNorm, Embedding, a parameter outside layers, float labels: no right answers to count."""
    modes = ("projection", "forward_mode") if (target, guess) == ("global", "random") else ("projection",)
    for mode in modes:
        found = assert_as_reference(stranger(), Method(target, guess, space, averaged=averaged, mode=mode), loss=loss)
        assert found.correct.tolist() == [0, 0, 0]


class Spare(nn.Linear):
    """Has a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.spare = nn.Linear(4, 4)


@pytest.mark.parametrize("block", [Twice, Spare])
@pytest.mark.parametrize("mode", ["projection", "forward_mode"])
def test_a_layer_that_is_used_twice_or_not_at_all(mode: str, block: type[nn.Module]) -> None:
    """Products between the uses count, and a weighted sum goes through each use alone; without one it is zero."""
    for guess, (space, averaged) in itertools.product(("local", "random"), SPACES):
        assert_as_reference(dense_net(block(), block()), Method("global", guess, space, averaged=averaged, mode=mode))


@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_parts_changed_in_place_do_not_matter(space: str, averaged: bool) -> None:
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
    right = net.estimate("global", "local", space, averaged).gradients
    for mode in ("projection", "forward_mode"):
        assert_same(changed.estimate("global", "local", space, averaged, mode=mode).gradients, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_backpropagation_is_autograd_bit_for_bit(norm: str, dtype: torch.dtype) -> None:
    net = small_net(norm, dtype=dtype)
    right = net.backpropagation()
    found = net.estimate("global", "global").gradients
    assert set(found) == set(right)
    assert all(torch.equal(found[name], gradient) for name, gradient in right.items())
