"""Precision, memory layout and compilation: the estimate stays within a stated tolerance of the plain one's."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from forward_gradient.conftest import Net, small_net
from papers.forward_gradient.runs import advance, fresh, parameters

# Relative errors of all gradients joined. Backpropagation in bfloat16, which has 8 bits, is itself .09 off on this net;
# after two steps on batches of 16, which BatchNorm makes touchier, the parameters' moves are .24 off.
BFLOAT16, BFLOAT16_STEPS = 0.2, 0.4
LAYOUT = 1e-4  # the same sums in another order
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def placed(device: str, layout: torch.memory_format = torch.contiguous_format) -> Net:
    net = small_net(samples=256, dtype=torch.float32)
    both = (part.to(device, memory_format=layout) for part in (net.blocks, net.auxiliaries))
    return Net(*both, net.inputs.to(device, memory_format=layout), net.labels.to(device))


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    one, other = (torch.cat([side[name].flatten().double() for name in expected]) for side in (found, expected))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("space", "averaged"), [("weight", False), ("weight", True), ("activity", False)])
@pytest.mark.parametrize("guess", ["local", "global"])
def test_an_estimate(device: str, space: str, averaged: bool, guess: str) -> None:
    """In bfloat16 everything beyond the blocks' layers stays in single precision."""
    cell = "global", guess, space, averaged
    plain = placed(device).estimate(*cell).gradients
    low = placed(device).estimate(*cell, precision="bfloat16")
    assert all(g.dtype == torch.float32 for g in (*low.gradients.values(), *low.coefficients.values()))
    assert 0 < relative_error(low.gradients, plain) < BFLOAT16
    assert relative_error(placed(device, torch.channels_last).estimate(*cell).gradients, plain) < LAYOUT


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        ({"channels_last": False}, LAYOUT),
        ({"precision": "bfloat16"}, BFLOAT16_STEPS),
        pytest.param({"compile": True}, LAYOUT, marks=[pytest.mark.slow, COMPILER]),
    ],
)
def test_options_of_a_training(device: str, option: dict[str, Any], tolerance: float) -> None:
    """They reach the estimate, and two steps go nearly the same way."""
    settings = {"optim__lr": 1e-3, "model__name": "resnet18_2", "runtime__device": device}
    start = parameters(fresh(**settings))
    runs = settings | {f"runtime__{key}": value for key, value in option.items()}, settings
    after = [parameters(advance(fresh(**one), 2)) for one in runs]
    moves = [{name: found[name] - start[name] for name in start} for found in after]
    assert 0 < relative_error(*moves) < tolerance
