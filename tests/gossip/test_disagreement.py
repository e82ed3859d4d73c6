"""What disagreement costs: against second differences of the loss, where the loss is smooth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from trainings import history

from unlocked.gossip.disagreement import Disagreement


@pytest.fixture
def smooth() -> nn.Module:
    """With BatchNorm, in float64."""
    torch.manual_seed(0)
    layers = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Softplus(), nn.Linear(8, 3)
    return nn.Sequential(*layers).double()


@pytest.fixture
def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(20, 6).double(), torch.randint(3, (20,))) for _ in range(2)]


def loss_of(measuring: Disagreement, batches: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor], float]:
    return lambda flat: sum(float(cross_entropy(measuring.logits(x)(flat), y)) for x, y in batches) / len(batches)


def test_the_forms_are_second_differences(smooth: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Of the loss (Hessian), and of the loss of the network made linear at the average (Gauss-Newton)."""
    measuring, mean = Disagreement(smooth, batches), parameters_to_vector(smooth.parameters()).detach()
    away, step = torch.randn(len(mean), dtype=torch.float64), 1e-3
    found = measuring.measure(mean, [mean + step * away, mean - step * away])
    loss = loss_of(measuring, batches)
    second = (loss(mean + step * away) + loss(mean - step * away)) / 2 - loss(mean)
    assert found["loss_difference"] == pytest.approx(second, rel=1e-6)
    assert found["disagreement_hessian"] == pytest.approx(second, rel=1e-3)

    def linear(sign: float) -> float:
        total = 0.0
        for images, labels in batches:
            scores, moved = torch.func.jvp(measuring.logits(images), (mean,), (sign * step * away,))
            total += float(cross_entropy(scores + moved, labels)) / len(batches)
        return total

    expected = (linear(1.0) + linear(-1.0)) / 2 - loss(mean)
    assert found["disagreement_gauss_newton"] == pytest.approx(expected, rel=1e-3)
    assert abs(found["disagreement_gauss_newton"] / found["disagreement_hessian"] - 1) > 0.01


def test_no_disagreement_costs_nothing(smooth: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    """And measuring leaves the model and its running statistics alone."""
    before = {name: value.clone() for name, value in smooth.state_dict().items()}
    mean = parameters_to_vector(smooth.parameters()).detach()
    measuring = Disagreement(smooth, batches)
    found = measuring.measure(mean, [mean, mean.clone()])
    assert found.pop("worker_train_loss") == pytest.approx(loss_of(measuring, batches)(mean))
    assert list(found.values()) == pytest.approx([0, 0, 0], abs=1e-15)
    assert all(torch.equal(value, before[name]) for name, value in smooth.state_dict().items())


NETS = [{"model.name": "mlp"}, {"model.name": "resnet18", "model.width": 0.0625, "optim.epochs": 0.2}]


@pytest.mark.parametrize("net", NETS, ids=lambda net: net["model.name"])
def test_only_runs_that_ask_are_measured(tiny_run: Any, train_of: Any, net: dict[str, Any]) -> None:
    """At every evaluation after a start without disagreement; the training itself and other metrics do not change."""
    plain, asking = (history(train_of(tiny_run(net, **{"evaluation.disagreement": n}))) for n in (0, 20))
    for one, other in zip(plain, asking, strict=True):
        assert one.metrics.items() <= other.metrics.items()
        assert set(other.metrics) - set(one.metrics) == {
            "worker_train_loss", "loss_difference", "disagreement_hessian", "disagreement_gauss_newton",
        }  # fmt: skip
    assert asking[0].metrics["loss_difference"] == pytest.approx(0, abs=1e-6)
    last = asking[-1].metrics
    assert abs(last["loss_difference"]) > 1e-6
    assert last["disagreement_gauss_newton"] > 0
