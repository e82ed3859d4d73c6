"""Precision, memory layout and compilation: the estimate stays within a stated tolerance of the plain one's."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from forward_gradient.conftest import Net, small_net
from forward_gradient.runs import advance, parameters, tiny
from unlocked.errors import SettingError
from unlocked.forward_gradient import estimate
from unlocked.forward_gradient.trainer import Training
from unlocked.vision import data as vision_data

SPACES = [("weight", False), ("weight", True), ("activity", False)]
# Relative errors of all gradients joined. Backpropagation in bfloat16, which has 8 bits, is itself .09 off on this net;
# after two steps on batches of 16, which BatchNorm makes touchier, the parameters' moves are .24 off.
BFLOAT16, BFLOAT16_STEPS = 0.2, 0.4
LAYOUT = 1e-4  # the same sums in another order
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def placed(device: str, layout: torch.memory_format = torch.contiguous_format) -> Net:
    torch.manual_seed(0)
    net = small_net(samples=256, dtype=torch.float32)
    both = (part.to(device, memory_format=layout) for part in (net.blocks, net.auxiliaries))
    return Net(*both, net.inputs.to(device, memory_format=layout), net.labels.to(device))


def relative_error(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    one, other = (torch.cat([side[name].flatten().double() for name in expected]) for side in (found, expected))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("space", "averaged"), SPACES)
@pytest.mark.parametrize("guess", ["local", "global"])
def test_bfloat16(device: str, space: str, averaged: bool, guess: str) -> None:
    """Near the estimate in single precision, in which everything beyond the blocks' layers stays."""
    settings: dict[str, Any] = {"target": "global", "guess": guess, "space": space, "averaged": averaged}
    net = placed(device)
    plain = estimate(*net.everything(), **settings)
    found = estimate(*net.everything(), **settings, precision="bfloat16")
    assert all(g.dtype == torch.float32 for g in (*found.gradients.values(), *found.coefficients.values()))
    assert 0 < relative_error(found.gradients, plain.gradients) < BFLOAT16


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("space", "averaged"), SPACES)
def test_channels_last(device: str, space: str, averaged: bool) -> None:
    settings: dict[str, Any] = {"target": "global", "guess": "local", "space": space, "averaged": averaged}
    plain, found = (
        estimate(*placed(device, layout).everything(), **settings).gradients
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    assert relative_error(found, plain) < LAYOUT


def stepped(**settings: Any) -> dict[str, torch.Tensor]:
    """Parameters after two steps of a small training."""
    run = tiny(optim__lr=1e-3, model__name="resnet18_2", **settings)
    device = settings.get("runtime__device", "cpu")
    data = vision_data.load("digits", train_limit=96, test_limit=50, device=device)
    return parameters(advance(Training(run, data), 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("option", "tolerance"), [({"channels_last": True}, LAYOUT), ({"precision": "bfloat16"}, BFLOAT16_STEPS)]
)
def test_options_of_a_training(device: str, option: dict[str, Any], tolerance: float) -> None:
    """They reach the estimate, and two steps go nearly the same way."""
    plain = stepped(runtime__device=device)
    start = parameters(Training(tiny(model__name="resnet18_2"), vision_data.load("digits", train_limit=96)))
    found = stepped(runtime__device=device, **{f"runtime__{key}": value for key, value in option.items()})
    moves = [{name: after[name].cpu() - start[name] for name in start} for after in (found, plain)]
    assert 0 < relative_error(*moves) < tolerance


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_blocks(device: str) -> None:
    plain = stepped(runtime__device=device)
    found = stepped(runtime__device=device, runtime__compile=True)
    assert relative_error(found, plain) < LAYOUT


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"runtime__precision": "half"}, "runtime.precision"),
        ({"runtime__precision": "bfloat16", "mode": "forward_mode"}, "runtime.precision"),
        ({"runtime__precision": "bfloat16", "study": "batchnorm_coupling"}, "runtime.precision"),
        ({"runtime__compile": True, "mode": "forward_mode"}, "runtime.compile"),
        ({"runtime__compile": True, "space": "weight", "averaged": False}, "runtime.compile"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(settings: dict[str, Any], setting: str) -> None:
    with pytest.raises(SettingError) as raised:
        tiny(**settings)
    assert raised.value.setting == setting
    assert "\n" not in str(raised.value)


def test_forward_mode_is_exact_or_nothing() -> None:
    net = small_net()
    with pytest.raises(SettingError, match="forward_mode"):
        estimate(
            *net.everything(), target="global", guess="local", space="activity", mode="forward_mode",
            precision="bfloat16",
        )  # fmt: skip
