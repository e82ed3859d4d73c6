"""The optimiser's arithmetic against torch's, the large-batch schedule against the released code."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parameters_to_vector

from unlocked import optim

MILESTONES = {"CIFAR10": (0.5, 0.75), "ImageNet": (0.3, 0.6, 0.8)}


@pytest.mark.parametrize("key", ["CIFAR10_300ep_bs128_lr0.1/n=4", "ImageNet_90ep_bs128_lr0.1/n=64"])
def test_large_batch_factor_is_that_of_the_released_code(golden: dict[str, Any], key: str) -> None:
    case, workers = golden["large_batch_factor"][key], int(key.rsplit("=", 1)[1])
    budget = case["nb_grad_tot"], case["epochs_if_1_worker"], case["batch_size"], workers, MILESTONES[case["dataset"]]
    factors = [optim.large_batch_factor(step * workers, *budget) for step in case["local_step"]]
    assert len(factors) > 40
    assert factors == pytest.approx(case["factor"], rel=1e-9, abs=1e-12)


@given(workers=st.sampled_from([2, 4, 16, 64]), batch=st.sampled_from([64, 128, 256]))
def test_large_batch_warms_up_linearly_and_then_only_falls(workers: int, batch: int) -> None:
    total, epochs = 400 * 100, 100
    factors = [optim.large_batch_factor(k, total, epochs, batch, workers, (0.5, 0.75)) for k in range(0, total, 100)]
    top = batch * workers / 256
    assert factors[0] == 1
    steps = [b - a for a, b in pairwise(factors[:20])]
    assert steps == pytest.approx([steps[0]] * len(steps), abs=1e-9)
    assert factors[20] == pytest.approx(top)
    assert all(a >= b for a, b in pairwise(factors[20:]))
    assert factors[-1] == pytest.approx(top / 100)


def test_no_warmup_starts_at_the_top() -> None:
    assert optim.large_batch_factor(0, 1000, 10, 256, 4, (0.5,), warmup_epochs=0) == 4


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_flat_momentum_sgd_is_torchs(momentum: float, decay: float) -> None:
    """Six steps agree with torch.optim.SGD whose one-dimensional parameters have no weight decay."""
    draw = torch.Generator().manual_seed(0)
    model, lr = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 3)).double(), 0.3
    x = parameters_to_vector(model.parameters()).detach()
    buffer, vector = torch.zeros_like(x), optim.decay_vector(model, decay)
    matrices, rest = ([p for p in model.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]
    theirs = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    for _ in range(6):
        inputs, labels = torch.randn(6, 5, generator=draw, dtype=torch.float64), torch.randint(3, (6,), generator=draw)
        theirs.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        optim.momentum_(buffer, gradient, x, vector, momentum)
        x -= lr * buffer
        theirs.step()
    torch.testing.assert_close(x, parameters_to_vector(model.parameters()).detach(), rtol=1e-12, atol=1e-13)


def test_momentum_of_a_stack_is_that_of_its_rows() -> None:
    draw = torch.Generator().manual_seed(1)
    buffer, gradient, x = (torch.randn(3, 5, generator=draw) for _ in range(3))
    decay, rows = torch.rand(5, generator=draw), [row.clone() for row in buffer]
    optim.momentum_(buffer, gradient, x, decay, 0.9)
    for row, g, own in zip(rows, gradient, x, strict=True):
        optim.momentum_(row, g, own, decay, 0.9)
    torch.testing.assert_close(buffer, torch.stack(rows))


def test_step_factor() -> None:
    assert [optim.step_factor(e, 30, 0.2) for e in (0, 29, 30, 59, 60)] == pytest.approx([1, 1, 0.2, 0.2, 0.04])


@pytest.mark.parametrize("longest", [0.1, 3.0, 1e3])
def test_clipping_is_torchs(longest: float) -> None:
    """Of one vector, and of a stack row by row; gradients that are short enough stay as they are to the last bit."""
    stack = (
        torch.randn(4, 10, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 1.0, 2.0, 10.0])[:, None]
    )
    before, theirs = stack.clone(), []
    for row in stack:
        parameter = nn.Parameter(torch.zeros(10))
        parameter.grad = row.clone()
        nn.utils.clip_grad_norm_([parameter], longest)
        theirs.append(parameter.grad)
    torch.testing.assert_close(torch.stack([optim.clip_(row.clone(), longest) for row in stack]), torch.stack(theirs))
    torch.testing.assert_close(optim.clip_(stack, longest), torch.stack(theirs))
    short = before.norm(dim=1) < longest - 1e-5
    assert torch.equal(stack[short], before[short])
    assert torch.equal(optim.clip_(before.clone(), None), before)


def test_the_mean_of_losses_starts_anew() -> None:
    losses = torch.tensor([6.0, 4.0], dtype=torch.float64)
    assert optim.mean_loss_(losses) == 1.5
    assert losses.tolist() == [0, 0]
    assert optim.mean_loss_(losses) is None


def test_a_step_of_all_parameters_is_torchs_own() -> None:
    """To the last bit, with momentum and decay; what has no gradient stays, and gets no buffer."""
    mine, theirs = (torch.nn.Linear(5, 3), torch.nn.Linear(5, 3))
    theirs.load_state_dict(mine.state_dict())
    torchs = torch.optim.SGD(theirs.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    buffers: dict[str, torch.Tensor] = {}
    for number in range(3):
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(number))
        gradients = {}
        for net in (mine, theirs):
            net.zero_grad()
            net(inputs).square().sum().backward()
            gradients = {name: p.grad for name, p in net.named_parameters()} if net is mine else gradients
        optim.step_(dict(mine.named_parameters()), gradients, buffers, 0.1, 0.9, 0.01)
        torchs.step()
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    before = mine.weight.clone()
    optim.step_({"bias": mine.bias}, {"bias": torch.ones(3)}, only := {}, 0.1, 0.9, 0.01)
    assert torch.equal(before, mine.weight)
    assert set(only) == {"bias"}
