"""The optimiser's arithmetic against torch's, the large-batch schedule against the released code."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from unlocked import optim
from unlocked.gossip.workers import Layout

MILESTONES = {"CIFAR10": (0.5, 0.75), "ImageNet": (0.3, 0.6, 0.8)}


@pytest.mark.parametrize("key", ["CIFAR10_300ep_bs128_lr0.1/n=4", "ImageNet_90ep_bs128_lr0.1/n=64"])
def test_large_batch_factor_is_that_of_the_released_code(golden: dict[str, Any], key: str) -> None:
    """Warm-up, plateau and milestones agree at every step that the golden file lists."""
    case = golden["large_batch_factor"][key]
    workers = int(key.rsplit("=", 1)[1])
    factors = [
        optim.large_batch_factor(
            step * workers,
            case["nb_grad_tot"],
            case["epochs_if_1_worker"],
            case["batch_size"],
            workers,
            MILESTONES[case["dataset"]],
        )
        for step in case["local_step"]
    ]
    assert len(factors) > 40
    assert factors == pytest.approx(case["factor"], rel=1e-9, abs=1e-12)


@given(workers=st.sampled_from([2, 4, 16, 64]), batch=st.sampled_from([64, 128, 256]))
def test_large_batch_warms_up_linearly_and_then_only_falls(workers: int, batch: int) -> None:
    """From 1 in equal steps to batch * workers / 256, never up again after that."""
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
    """With zero warm-up epochs the linear scaling holds from the first step."""
    assert optim.large_batch_factor(0, 1000, 10, 256, 4, (0.5,), warmup_epochs=0) == 4


def net() -> nn.Module:
    """A small net with a matrix, biases and a normalisation."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 3)).double()


def gradients(model: nn.Module, seed: int) -> list[torch.Tensor]:
    """The gradients of a seeded batch."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    loss = nn.functional.cross_entropy(model(inputs), torch.randint(3, (6,), generator=draw))
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_flat_momentum_sgd_is_torchs(momentum: float, decay: float) -> None:
    """Six steps of the flat form agree with torch.optim.SGD whose one-dimensional parameters have no weight decay."""
    model, lr = net(), 0.3
    layout = Layout(model)
    x = layout.flatten([p.detach() for p in model.parameters()])
    buffer, vector = torch.zeros_like(x), optim.decay_vector(model, decay)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    theirs = torch.optim.SGD(groups, lr=lr, momentum=momentum)
    for seed in range(6):
        found = gradients(model, seed)
        optim.momentum_(buffer, layout.flatten(found), x, vector, momentum)
        x -= lr * buffer
        for parameter, gradient in zip(model.parameters(), found, strict=True):
            parameter.grad = gradient
        theirs.step()
    torch.testing.assert_close(x, layout.flatten([p.detach() for p in model.parameters()]), rtol=1e-12, atol=1e-13)


def test_momentum_of_a_stack_is_that_of_its_rows() -> None:
    """Stacked workers get the same buffers as workers one by one."""
    draw = torch.Generator().manual_seed(1)
    buffer, gradient, x = (torch.randn(3, 5, generator=draw) for _ in range(3))
    decay, rows = torch.rand(5, generator=draw), [row.clone() for row in buffer]
    optim.momentum_(buffer, gradient, x, decay, 0.9)
    for row, g, own in zip(rows, gradient, x, strict=True):
        optim.momentum_(row, g, own, decay, 0.9)
    torch.testing.assert_close(buffer, torch.stack(rows))


def test_decay_vector_spares_one_dimensional_parameters() -> None:
    """Entries of matrices have the decay, entries of biases and norms have none."""
    vector = optim.decay_vector(net(), 0.25)
    expected = [p.numel() * [0.25 if p.ndim > 1 else 0.0] for p in net().parameters()]
    assert vector.tolist() == list(chain(*expected))


def test_step_factor() -> None:
    """Times gamma every so many epochs, not before."""
    assert [optim.step_factor(e, 30, 0.2) for e in (0, 29, 30, 59, 60)] == pytest.approx([1, 1, 0.2, 0.2, 0.04])


def test_learning_rate_follows_the_named_schedule() -> None:
    """constant, step and large_batch each give the base rate times their factor."""
    base = {"lr": 0.5, "epochs": 10, "batch_size": 64, "milestones": [0.5], "warmup_epochs": 1, "step_every": 4}
    make = lambda name: OmegaConf.create({**base, "step_gamma": 0.1, "schedule": name})  # noqa: E731
    steps = (0, 399, 400, 999)
    assert [optim.learning_rate(make("constant"), k, 1000) for k in steps] == [0.5] * 4
    assert [optim.learning_rate(make("step"), k, 1000) for k in steps] == pytest.approx([0.5, 0.5, 0.05, 0.005])
    expected = [0.5, 1.0, 1.0, 0.1]
    assert [optim.learning_rate(make("large_batch"), k, 1000, workers=8) for k in steps] == pytest.approx(expected)
