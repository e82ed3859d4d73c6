"""AR-SGD: what a step computes, how many there are, and how long they take."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from trainings import advance_all

from unlocked.gossip import clock as clocks
from unlocked.gossip.clock import Clock
from unlocked.gossip.workers import flat_parameters
from unlocked.papers.acid import common

SMALL_RESNET = {"model.name": "resnet18", "model.width": 0.0625}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "model", [{"model.name": "mlp", "optim.clip": 0.3}, SMALL_RESNET], ids=["clipped mlp", "resnet"]
)
def test_allreduce_is_synchronous_sgd(tiny_run: Any, train_of: Any, model: dict[str, Any]) -> None:
    """A few steps agree with torch's optimiser and gradients taken one worker after the other."""
    training = train_of(run := tiny_run({"method": "allreduce", "optim.weight_decay": 0.01, **model}))
    net, start = common.build_model(run, training.data).train(), training.x.clone()
    decayed, rest = ([p for p in net.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": decayed, "weight_decay": run.optim.weight_decay}, {"params": rest}]
    sgd = torch.optim.SGD(groups, lr=1.0, momentum=run.optim.momentum)
    for step in range(4):
        training.step(step)
        sgd.zero_grad()
        for worker in range(run.workers):
            images, labels = training.streams.batches(training.data, [worker], [step])
            (cross_entropy(net(images[0]), labels[0]) / run.workers).backward()
        if run.optim.clip:
            assert clip_grad_norm_(net.parameters(), run.optim.clip) > run.optim.clip
        for group in sgd.param_groups:
            group["lr"] = common.learning_rate(run, step * run.workers)
        sgd.step()
    assert (training.x - start).abs().max() > 1e-3
    torch.testing.assert_close(training.x, flat_parameters(net), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [0.5, 0.5, 0.5]), ("large_batch", [0.5, 0.5 * 64 / 256 * 8, 0.5 * 0.02])]
)
def test_learning_rates(tiny_run: Any, schedule: str, expected: list[float]) -> None:
    """The base rate times the schedule's factor: at the start, after the warm-up, and past both milestones."""
    settings = {"optim.lr": 0.5, "optim.schedule": schedule, "optim.batch_size": 64, "optim.epochs": 20}
    run = tiny_run(settings, workers=8, **{"optim.warmup_epochs": 1.0})
    rates = [common.learning_rate(run, step) for step in (0, 22, run.total_gradients - 1)]
    assert rates == pytest.approx(expected)


def test_allreduce_runs_by_the_clock(tiny_run: Any, train_of: Any) -> None:
    """As many gradients as gossip does; times are those of the synchronous steps with the network's size in bytes."""
    settings = {"clock.latency": 0.01, "clock.bandwidth": 1e7, "clock.law": "gamma"}
    advance_all(training := train_of(tiny_run(settings, method="allreduce")))
    clock, size = Clock(law="gamma", latency=0.01, bandwidth=1e7), 4 * len(training.x)
    ends = clocks.synchronous_steps(clock, 4, 0, size)
    assert training.ends == pytest.approx([0.0, *(next(ends) for _ in range(44))])
    advance_all(gossip := train_of(tiny_run(method="acid")))
    assert training.counts()["gradients"] == gossip.counts()["gradients"] == 176
