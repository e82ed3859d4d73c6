"""Inner products and weighted sums of per-sample contributions, against contributions that are formed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from forward_gradient import plain
from forward_gradient.conftest import Net, small_net
from unlocked.errors import SettingError
from unlocked.forward_gradient import estimate, passes, per_sample, spaces

CLOSE = {"atol": 1e-9, "rtol": 1e-9}
SPACES = [("weight", False), ("weight", True), ("activity", False), ("activity", True)]
GRAM_AND_ROWS = [(2, 9), (9, 2)]  # positions along a side, channels: few positions are multiplied, few channels formed


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read(layer: nn.Module, inputs: Tensor, cotangent: Tensor) -> dict[str, per_sample.Contributions]:
    space = spaces.PerSampleWeight()
    step = passes.forward(0, layer, inputs, chained=False, record_calls=True)
    return space.read(step, cotangent, passes.pull(step.outputs, cotangent, space.wanted(step)))


def assert_as_formed(layer: nn.Module, inputs: Tensor) -> None:
    """All that is asked of contributions, against `plain.contributions`."""
    layer = layer.double()
    shape = layer(inputs).shape
    at_outputs = [normal(*shape, seed=seed) for seed in (1, 2)]
    left, right = (read(layer, inputs, gradient) for gradient in at_outputs)
    formed = [plain.contributions(layer, inputs, gradient) for gradient in at_outputs]
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


@pytest.mark.parametrize(("size", "channels"), GRAM_AND_ROWS)
def test_the_cheaper_way_is_taken(size: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gram products where positions are few; the choice changes the cost and not the result."""
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).double()
    inputs = normal(4, channels, size, size)
    gradient = normal(4, channels, size, size, seed=1)
    assert per_sample.rule(layer).prefers_gram(layer, "weight", gradient) == (size < channels)
    for prefers in (True, False):
        monkeypatch.setattr(per_sample.Rule, "prefers_gram", lambda *_, p=prefers: p)
        assert_as_formed(layer, inputs)


@pytest.mark.parametrize("limit", [1, 10**4])
def test_the_size_of_a_chunk_does_not_matter(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_sample, "CHUNK_BYTES", {"cpu": limit})
    assert_as_formed(nn.Conv2d(4, 6, 3), normal(5, 4, 6, 6))
    assert_as_formed(nn.BatchNorm2d(4), normal(5, 4, 6, 6))


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("space", "averaged"), SPACES)
@pytest.mark.parametrize(("target", "guess"), [("global", "local"), ("global", "random"), ("local", "random")])
@pytest.mark.parametrize("samples", [2, 5])
def test_estimates_are_those_of_the_plain_implementation(
    norm: str, space: str, averaged: bool, target: str, guess: str, samples: int
) -> None:
    net = small_net(norm, samples=samples)
    draws = [torch.Generator().manual_seed(7) for _ in range(2)]
    noises = [lambda s, dtype, device, g=g: torch.randn(*s, generator=g, dtype=dtype) for g in draws]
    expected = plain.estimate(net, target, guess, space, averaged, noises[0])
    found = estimate(*net.everything(), target=target, guess=guess, space=space, averaged=averaged, noise=noises[1])
    for name, gradient in expected.items():
        torch.testing.assert_close(found.gradients[name], gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


class Twice(nn.Module):
    """A layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.tanh(self.layer(inputs))))


def test_a_layer_that_is_used_twice() -> None:
    """Products between the uses count; a weighted sum goes through each use alone."""
    torch.manual_seed(0)
    heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]).double()
    net = Net(nn.ModuleList([Twice(), Twice()]).double(), heads, normal(5, 4), torch.tensor([0, 1, 2, 0, 1]))
    expected = plain.estimate(net, "global", "local", "weight", False)
    found = estimate(*net.everything(), target="global", guess="local", space="weight").gradients
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **CLOSE)


class Scaled(nn.Module):
    """A layer of its own kind that treats samples apart: `w x + b`, as a 1×1 convolution with a group per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(channels, seed=8))
        self.bias = nn.Parameter(normal(channels, seed=9))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.weight[:, None, None] + self.bias[:, None, None]


def test_layers_without_a_rule_are_differentiated_sample_by_sample() -> None:
    """Convolutions with unusual padding, and layers that nobody has heard of, in both modes."""
    inputs = normal(5, 4, 6, 6)
    same = nn.Conv2d(4, 3, 3, padding="same").double()
    usual = nn.Conv2d(4, 3, 3, padding=1).double()
    usual.load_state_dict(same.state_dict())
    own, convolution = Scaled(4), nn.Conv2d(4, 4, 1, groups=4).double()
    with torch.no_grad():
        convolution.weight.copy_(own.weight.reshape(4, 1, 1, 1))
        convolution.bias.copy_(own.bias)
    for unknown, known in ((same, usual), (own, convolution)):
        assert isinstance(per_sample.rule(unknown), per_sample.AnyLayer)
        shape = known(inputs).shape
        both = [read(layer, inputs, normal(*shape, seed=1)) for layer in (unknown, known)]
        guesses = [read(layer, inputs, normal(*shape, seed=2)) for layer in (unknown, known)]
        for name in both[0]:
            found, expected = (side[name].inner([g[name]])[0] for side, g in zip(both, guesses, strict=True))
            torch.testing.assert_close(found, expected, **CLOSE)
            found, expected = (side[name].responses()[0] for side in both)
            torch.testing.assert_close(found, expected, **CLOSE)
    net = small_net()
    net.blocks[0] = nn.Sequential(net.blocks[0], Scaled(4))
    one, other = (
        estimate(*net.everything(), target="global", guess="local", space="weight", mode=mode)
        for mode in ("projection", "forward_mode")
    )
    assert one.notes == other.notes == ("per-sample gradients by torch.func: Scaled",)
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(other.gradients[name], gradient, **CLOSE)


def test_a_layer_that_mixes_samples_in_its_own_way_is_refused() -> None:
    class Mixed(nn.BatchNorm2d):
        pass

    net = small_net()
    net.blocks[0] = nn.Sequential(net.blocks[0], Mixed(4).double())
    with pytest.raises(SettingError, match="Mixed"):
        estimate(*net.everything(), target="global", guess="local", space="weight")
    estimate(*net.everything(), target="global", guess="local", space="weight", averaged=True)
