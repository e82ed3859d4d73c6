"""Inner products and weighted sums of per-sample contributions, against contributions that are formed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from forward_gradient.conftest import CLOSE, assert_as_reference, contributions, dense_net, normal, small_net
from unlocked.errors import SettingError
from unlocked.forward_gradient import Method, per_sample, reference


def assert_as_formed(layer: nn.Module, inputs: Tensor) -> None:
    """All that is asked of contributions, against those of the reference."""
    layer = layer.double()
    shape = layer(inputs).shape
    at_outputs = [normal(*shape, seed=seed) for seed in (1, 2)]
    left, right = (contributions(layer, inputs, gradient) for gradient in at_outputs)
    formed = [reference.contributions(layer, inputs, gradient) for gradient in at_outputs]
    c = normal(len(inputs), seed=3)
    for name in left:
        one, other = (rows[name].detach() for rows in formed)
        products = [(one * other).flatten(1).sum(1), (one * one).flatten(1).sum(1)]
        for found, expected in zip(left[name].inner([right[name], left[name]]), products, strict=True):
            torch.testing.assert_close(found, expected, **CLOSE)
        torch.testing.assert_close(left[name].inner_with(other), products[0], **CLOSE)
        torch.testing.assert_close(left[name].weighted(c), torch.tensordot(c, one, 1), **CLOSE)
        [response] = left[name].responses(other)
        adjoint = (response * at_outputs[0]).flatten(1).sum(1)
        torch.testing.assert_close(adjoint, products[0], **CLOSE)
        torch.testing.assert_close(right[name].responses()[0], response, **CLOSE)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_convolutions(data: st.DataObject) -> None:
    """Over strides, groups, dilations, kernels, paddings and sizes, on both sides of the choice of Gram products."""
    groups = data.draw(st.sampled_from([1, 2, 3]))
    kernel, stride, dilation = (data.draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(3))
    padding = data.draw(st.tuples(*[st.integers(0, 2)] * 2))
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [data.draw(st.integers(low, low + 6)) for low in least]
    before, after = groups * data.draw(st.integers(1, 4)), groups * data.draw(st.integers(1, 4))
    layer = nn.Conv2d(
        before, after, kernel, stride, padding, dilation, groups, bias=data.draw(st.booleans())
    )  # fmt: skip
    assert_as_formed(layer, normal(data.draw(st.integers(1, 5)), before, *size))


@settings(max_examples=30, deadline=None)
@given(places=st.lists(st.integers(1, 3), max_size=2), before=st.integers(1, 6), after=st.integers(1, 6))
def test_dense_layers(places: list[int], before: int, after: int) -> None:
    assert_as_formed(nn.Linear(before, after), normal(4, *places, before))


@settings(max_examples=30, deadline=None)
@given(size=st.tuples(st.integers(1, 4), st.integers(1, 4)), groups=st.integers(1, 3), each=st.integers(1, 3))
def test_normalisations(size: tuple[int, int], groups: int, each: int) -> None:
    channels = groups * each
    inputs = normal(5, channels, *size)
    running = nn.BatchNorm2d(channels).double()
    running(inputs)
    for layer in (nn.BatchNorm2d(channels), running.eval(), nn.GroupNorm(groups, channels)):
        with torch.no_grad():
            layer.weight.copy_(normal(channels, seed=5))
        assert_as_formed(layer, inputs)
    assert_as_formed(nn.BatchNorm1d(channels), normal(5, channels))


@pytest.mark.parametrize(("size", "channels"), [(2, 9), (9, 2)])
def test_the_cheaper_way_is_taken(size: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gram products where positions are few; neither that choice nor the size of a chunk changes the result."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).double()
    inputs, gradient = normal(4, channels, size, size), normal(4, channels, size, size, seed=1)
    [use] = contributions(layer, inputs, gradient)["weight"].uses
    assert use.prefers_gram() == (size < channels)
    for prefers in (True, False):
        monkeypatch.setattr(per_sample.Use, "prefers_gram", lambda _, p=prefers: p)
        for limit in (1, 10**4):
            monkeypatch.setattr(per_sample, "CHUNK_BYTES", {"cpu": limit})
            assert_as_formed(layer, inputs)


class Scaled(nn.Module):
    """A layer of its own kind that treats samples apart."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(channels, seed=8))
        self.bias = nn.Parameter(normal(channels, seed=9))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight[:, None, None] + self.bias[:, None, None]


class Square(nn.Module):
    """Multiplies with the square of its weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(width, width, seed=8))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.square()


def test_layers_without_a_rule_are_differentiated_sample_by_sample() -> None:
    """Convolutions with unusual padding, and layers that nobody has heard of, in both modes."""
    for unknown in (nn.Conv2d(4, 3, 3, padding="same"), nn.Conv2d(4, 3, 3, padding_mode="circular"), Scaled(4)):
        assert not per_sample.is_known(unknown)
        assert_as_formed(unknown, normal(5, 4, 6, 6))
    assert_as_formed(Square(8), normal(5, 8))
    net = small_net()
    net.blocks[0] = nn.Sequential(net.blocks[0], Scaled(4))
    for mode in ("projection", "forward_mode"):
        found = assert_as_reference(net, Method("global", "local", "weight", averaged=False, mode=mode))
        assert found.notes == ("per-sample gradients by torch.func: Scaled",)


class Mixed(nn.BatchNorm1d):
    """Mixes samples in its own way."""


class Recurrent(nn.Module):
    """Gives one tensor, but its layer does not."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.LSTM(size, size)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)[0]


class Borrowing(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.Linear(size, size)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs @ self.layer.weight


@pytest.mark.parametrize(("block", "message"), [(Mixed, "Mixed"), (Recurrent, "LSTM"), (Borrowing, "layer.weight")])
def test_what_a_layer_hides_is_refused_rather_than_taken_for_nothing(block: type[nn.Module], message: str) -> None:
    net = dense_net(block(4), nn.Linear(4, 4))
    for guess in ("local", "random"):
        with pytest.raises(SettingError, match=message) as raised:
            net.estimate("global", guess, "weight", False)
        assert "\n" not in str(raised.value)
        net.estimate("global", guess, "weight", True)
        net.estimate("global", guess, "activity")
