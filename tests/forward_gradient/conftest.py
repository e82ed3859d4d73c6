"""What the tests of forward gradients share: the golden file with its net, small nets, and comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from unlocked.forward_gradient import Estimate, Method, estimate, guesses, passes, per_sample, reference, spaces
from unlocked.vision import auxiliary, blocks

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "forward_gradient.json").read_text())
SPACES = [("weight", False), ("weight", True), ("activity", False), ("activity", True)]
OF_METHOD = ("mode", "normalise", "tangents", "distribution")
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class GoldenBlock(nn.Module):
    """The block of the golden file's net, with its parameter names."""

    def __init__(self, before: int, after: int, downsample: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2) if downsample else nn.Identity()
        self.conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(after)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(self.pool(inputs))))


class Twice(nn.Module):
    """A layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.tanh(self.layer(torch.tanh(self.layer(inputs))))


@dataclass
class Net:
    """A net with a batch."""

    blocks: nn.ModuleList
    auxiliaries: nn.ModuleList
    inputs: Tensor
    labels: Tensor

    def everything(self) -> tuple:
        return self.blocks, self.auxiliaries, self.inputs, self.labels

    def whole(self) -> nn.ModuleDict:
        """Blocks and auxiliary nets by the names of `Estimate.gradients`."""
        return nn.ModuleDict({"blocks": self.blocks, "auxiliaries": self.auxiliaries})

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.whole().state_dict().items()}

    def estimate(
        self, target: str, guess: str, space: str = "activity", averaged: bool | None = None, **options: Any
    ) -> Estimate:
        """An estimate; options of `Method` and of `estimate`."""
        of_method = {name: options.pop(name) for name in OF_METHOD if name in options}
        return estimate(*self.everything(), Method(target, guess, space, averaged=averaged, **of_method), **options)

    def backpropagation(self) -> dict[str, Tensor]:
        """The net's gradients without any of the code under test."""
        scores = self.auxiliaries[-1](nn.Sequential(*self.blocks)(self.inputs))
        parts = ("blocks.", f"auxiliaries.{len(self.blocks) - 1}.")
        named = {name: p for name, p in self.whole().named_parameters() if name.startswith(parts)}
        loss = functional.cross_entropy(scores, self.labels)
        return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_same(found: Mapping[str, Tensor], right: Mapping[str, Tensor], **close: float) -> None:
    assert set(found) == set(right)
    for name, gradient in right.items():
        torch.testing.assert_close(found[name], gradient, **(close or CLOSE), msg=lambda m, n=name: f"{n}: {m}")


def assert_as_reference(net: Net, method: Method, *, measure: bool = False, **options: object) -> Estimate:
    one, other = (guesses.noise(method.distribution, generator(7)) for _ in range(2))
    found = estimate(*net.everything(), method, noise=other, measure=measure, **options)
    assert_same(found.gradients, reference.estimate(*net.everything(), method, noise=one, **options))
    return found


def contributions(layer: nn.Module, inputs: Tensor, cotangent: Tensor) -> dict[str, per_sample.Contributions]:
    """What every sample contributes to the gradients of a layer's parameters, not formed."""
    step = passes.forward(0, layer, inputs, chained=False, record_calls=True)
    return spaces.PerSampleWeight().read(step, cotangent)


@contextmanager
def registered(module: Any, entry: Any) -> Iterator[None]:
    """An entry of `guesses` or `targets`, for a while."""
    module.register(entry)
    try:
        yield
    finally:
        del module.get.__self__[entry.name]


def ours(golden_name: str) -> str:
    """The golden file's name of a parameter or buffer, as ours."""
    _, index, part, rest = golden_name.split(".", 3)
    return f"blocks.{index}.{rest}" if part == "block" else f"auxiliaries.{index}.{rest.removeprefix('classifier.')}"


@pytest.fixture
def golden() -> dict:
    return GOLDEN


@pytest.fixture
def golden_net() -> Net:
    end = GOLDEN["end_to_end"]
    channels = [3, 4, 4, 5]
    body = nn.ModuleList(GoldenBlock(channels[k], channels[k + 1], downsample=k == 1) for k in range(3))
    heads = nn.ModuleList(
        nn.Sequential(
            nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(pixels), nn.Flatten(), nn.Linear(width * pixels**2, 3)
        )
        for width, pixels in ((4, 2), (4, 2), (5, 1))
    )
    net = Net(body.double(), heads.double(), tensor(end["x"]), torch.tensor(end["y"]))
    net.whole().load_state_dict({ours(name): tensor(value) for name, value in end["state_dict"].items()})
    return net


def small_net(norm: str = "batch", samples: int = 6, dtype: torch.dtype = torch.float64, kind: str = "cnn") -> Net:
    """The first three blocks of an 8-block net of width 1/16 on 8×8 images, with a classifier of their own."""
    whole = blocks.build("resnet18_8", channels=1, width=1 / 16, norm=norm, seed=3)
    torch.manual_seed(0)
    heads = [auxiliary.build(kind, channels=c, classes=3, hidden=4, norm=norm) for c in whole.channels[1:3]]
    heads.append(auxiliary.classifier(whole.channels[3], 3, norm))
    inputs = normal(samples, 4, 4, 4).to(dtype)
    labels = torch.arange(samples) % 3
    return Net(whole.modules[1:4].to(dtype), nn.ModuleList(heads).to(dtype), inputs, labels)


def dense_net(*blocks: nn.Module, samples: int = 5, classes: int = 3) -> Net:
    """Blocks from 4 numbers to 4 numbers, and linear heads."""
    torch.manual_seed(0)
    heads = nn.ModuleList(nn.Linear(4, classes) for _ in blocks).double()
    return Net(nn.ModuleList(blocks).double(), heads, normal(samples, 4), torch.arange(samples) % classes)
