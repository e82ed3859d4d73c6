"""What the tests of forward gradients share: the golden file, its net, and small nets drawn from a seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unlocked.vision import auxiliary, blocks

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "forward_gradient.json").read_text())


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class GoldenBlock(nn.Module):
    """The block of the golden file's net, with its parameter names."""

    def __init__(self, before: int, after: int, downsample: bool) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(2) if downsample else nn.Identity()
        self.conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(after)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(self.pool(inputs))))


@dataclass
class Net:
    """A net with a batch."""

    blocks: nn.ModuleList
    auxiliaries: nn.ModuleList
    inputs: Tensor
    labels: Tensor

    def everything(self) -> tuple:
        return self.blocks, self.auxiliaries, self.inputs, self.labels

    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers by the names of `Estimate.gradients`."""
        both = nn.ModuleDict({"blocks": self.blocks, "auxiliaries": self.auxiliaries})
        return {name: value.detach().clone() for name, value in both.state_dict().items()}


def ours(golden_name: str) -> str:
    """The golden file's name of a parameter or buffer, as ours."""
    _, index, part, rest = golden_name.split(".", 3)
    if part == "block":
        return f"blocks.{index}.{rest}"
    return f"auxiliaries.{index}.{rest.removeprefix('classifier.')}"


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
    state = {ours(name): tensor(value) for name, value in end["state_dict"].items()}
    nn.ModuleDict({"blocks": body, "auxiliaries": heads}).load_state_dict(state)
    return net


def small_net(norm: str = "batch", samples: int = 6, dtype: torch.dtype = torch.float64, kind: str = "cnn") -> Net:
    """The first three blocks of an 8-block net of width 1/16 on 8×8 images, with a classifier of their own."""
    whole = blocks.build("resnet18_8", channels=1, size=8, width=1 / 16, norm=norm, seed=3)
    body = whole.modules[1:4]
    heads = [
        auxiliary.build(kind, channels=c, classes=3, hidden=4, norm=norm, seed=k)
        for k, c in enumerate(whole.channels[1:3])
    ]
    heads.append(auxiliary.classifier(whole.channels[3], 3, norm))
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, 4, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.arange(samples) % 3
    return Net(body.to(dtype), nn.ModuleList(heads).to(dtype), inputs, labels)
