"""Measurements of paper B: what they record agrees with what is known, and they stop and continue like trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from forward_gradient.runs import tiny
from unlocked import config, loop, record
from unlocked.forward_gradient import network, studies
from unlocked.forward_gradient.memory import peak_bytes
from unlocked.record import Record
from unlocked.tracking import Interrupted, Recorder
from unlocked.vision import cost
from unlocked.vision import data as vision_data
from unlocked.vision.data import Dataset


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return vision_data.load("digits", train_limit=96, test_limit=50)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def recorded(run: DictConfig, data: Dataset, folder: Path, **options: Any) -> Record:
    recorder = Recorder(folder / config.run_id(run), run, total_steps=1, **options)
    loop.run(studies.Training(run, data), recorder, data)
    return record.load(recorder.folder)


@pytest.mark.parametrize("name", ["resnet18_8", "resnet18_2"])
def test_auxiliary_costs_are_those_counted_by_hand(digits: Dataset, tmp_path: Path, name: str) -> None:
    """fvcore on the real modules agrees with the plan's counts, but for what fvcore charges norms and pooling."""
    run = tiny(study="auxiliary_cost", model__name=name)
    found = recorded(run, digits, tmp_path)
    for kind in ("cnn", "mlp", "linear", "copy"):
        counted = cost.count_blocks(name, kind, classes=10, channels=1, size=8, width=run.model.width)
        assert found.values(f"parameters/{kind}").tolist() == [c.parameters for c in counted.auxiliaries]
        assert found.values("parameters/blocks").tolist() == [c.parameters for c in counted.blocks]
        flops = found.values(f"flops/{kind}").to_numpy()
        macs = np.array([c.forward_macs for c in counted.auxiliaries])
        assert (flops >= macs).all()
    assert found.summary["counts"] == {"gradients": 0}


def test_one_pass_is_wrong_under_batch_statistics_alone(digits: Dataset, tmp_path: Path) -> None:
    """Per sample: wrong under batch statistics, exact to rounding otherwise. Summed over the batch: exact always."""
    found = recorded(tiny(study="batchnorm_coupling"), digits, tmp_path)
    assert found.values("per_sample_error/batch_statistics").min() > 0.05
    for case in ("running_statistics", "group_norm"):
        assert found.values(f"per_sample_error/{case}").max() < 1e-10
    for case in ("batch_statistics", "running_statistics", "group_norm"):
        assert found.values(f"batch_level_error/{case}").max() < 1e-9


def test_forward_mode_keeps_less_than_backpropagation(digits: Dataset, tmp_path: Path) -> None:
    """From the first block, a Jacobian-vector product's peak lies between the forward pass's and backpropagation's."""
    metrics = recorded(tiny(study="forward_mode_cost", model__width=0.25), digits, tmp_path).summary["metrics"]
    assert metrics["bytes/forward/0"] < metrics["bytes/jvp/0"] < metrics["bytes/backpropagation/0"]
    assert all(value > 0 for value in metrics.values())
    assert metrics["bytes/jvp/0"] < metrics["bytes/tangents/0"] < 16 * metrics["bytes/jvp/0"]
    assert len(metrics) == 8 * (3 * 2 + 1)


def test_estimator_error_is_measured_at_both_ends(digits: Dataset, tmp_path: Path) -> None:
    """Averaging random guesses brings the estimate nearer to the gradient; dimensions are those of the net."""
    found = recorded(tiny(study="estimator_error", tangents=16), digits, tmp_path)
    rows = found.history[found.history["metric"] == "error_cosine/local/activity"]
    assert sorted(rows["step"].unique()) == [0, 6]
    for space in ("weight", "activity"):
        errors = [found.values(f"relative_error/random/{space}/{n}").mean() for n in (1, 16)]
        assert errors[1] < errors[0] / 2
        cosines = [found.values(f"error_cosine/random/{space}/{n}").abs().mean() for n in (1, 16)]
        assert cosines[1] > cosines[0]
    net = network.build(tiny(study="estimator_error"), digits)
    assert found.values("dimension/weight")[0] == sum(p.numel() for p in net.blocks[0].parameters())
    assert found.values("dimension/activity")[0] == 4 * 8 * 8
    assert found.summary["metrics"]["test_accuracy"] > 0


def test_a_stopped_study_continues(digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured before the stop is kept, the rest is measured after."""
    monkeypatch.setattr(loop, "STEPS_PER_LOOK", 1)
    run = tiny(study="batchnorm_coupling")
    with pytest.raises(Interrupted):
        recorded(run, digits, tmp_path, stop=SimpleNamespace(requested=15))
    resumed = recorded(run, digits, tmp_path)
    whole = recorded(run, digits, tmp_path / "whole")
    assert resumed.history.drop(columns="wall_time").equals(whole.history.drop(columns="wall_time"))
    assert resumed.summary["provenance"]["resumed"] == 1


def test_peak_memory_counts_what_lives_at_once() -> None:
    """Temporaries that are freed are taken off, what was there before is not counted, in place costs nothing."""
    there = torch.zeros(1000)  # 4000 bytes
    assert peak_bytes(lambda: there + 1) == 4000
    assert peak_bytes(lambda: ((there + 1) + 1) + 1) == 8000
    assert peak_bytes(lambda: there.clone().add_(1)) == 4000
    assert peak_bytes(lambda: there.view(10, 100).add_(0)) == 0


def test_peak_memory_of_a_way_back_grows_with_depth() -> None:
    """Backpropagation keeps every layer's output."""
    inputs = torch.zeros(10, 50)

    def way_back(depth: int) -> int:
        net = nn.Sequential(*(nn.Sequential(nn.Linear(50, 50), nn.Tanh()) for _ in range(depth)))
        return peak_bytes(lambda: torch.autograd.grad(net(inputs).sum(), list(net.parameters())))

    assert way_back(20) > 1.8 * way_back(10)
