"""Measurements: what they record agrees with what is known, and they stop and continue like trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from comparison import assert_survives_stops
from papers.forward_gradient.runs import digits, recorded, tiny
from unlocked.papers.forward_gradient import estimator_error, network
from unlocked.papers.forward_gradient.estimator_error import EstimatorError


@pytest.mark.parametrize("name", ["resnet18_8", "resnet18_2"])
def test_auxiliary_costs_are_those_of_the_nets(tmp_path: Path, name: str) -> None:
    """Parameters are those of the run's own nets, and every one of a linear layer or convolution costs its FLOPs."""
    run = tiny(study="auxiliary_cost", model__name=name)
    found = recorded(run, tmp_path)

    def counts(modules: object) -> list[int]:
        return [sum(p.numel() for p in module.parameters()) for module in modules]

    assert found.values("parameters/blocks").tolist() == counts(network.build(run, digits()).blocks)
    for kind in ("cnn", "mlp", "linear", "copy"):
        heads = network.auxiliaries(run, digits(), kind, run.seed)[:-1]
        assert found.values(f"parameters/{kind}").tolist() == counts(heads)
        weights = [sum(p.numel() for p in head.parameters() if p.dim() > 1) for head in heads]
        assert (found.values(f"flops/{kind}").to_numpy() >= weights).all()
    assert found.summary["counts"] == {"gradients": 0}


def test_one_pass_is_wrong_under_batch_statistics_alone(tmp_path: Path) -> None:
    """Per sample: wrong under batch statistics, exact to rounding otherwise. Summed over the batch: exact always."""
    found = recorded(tiny(study="batchnorm_coupling"), tmp_path)
    assert found.values("per_sample_error/batch_statistics").min() > 0.05
    for case in ("running_statistics", "group_norm"):
        assert found.values(f"per_sample_error/{case}").max() < 1e-10
    for case in ("batch_statistics", "running_statistics", "group_norm"):
        assert found.values(f"batch_level_error/{case}").max() < 1e-9


def test_forward_mode_keeps_less_than_backpropagation(tmp_path: Path) -> None:
    """From the first block, a Jacobian-vector product's peak lies between the forward pass's and backpropagation's."""
    metrics = recorded(tiny(study="forward_mode_cost", model__width=0.25), tmp_path).summary["metrics"]
    assert metrics["bytes/forward/0"] < metrics["bytes/jvp/0"] < metrics["bytes/backpropagation/0"]
    assert all(value > 0 for value in metrics.values())
    assert metrics["bytes/jvp/0"] < metrics["bytes/tangents/0"] < 16 * metrics["bytes/jvp/0"]
    assert len(metrics) == 8 * (3 * 2 + 1)


def test_estimator_error_is_measured_at_both_ends(tmp_path: Path) -> None:
    """Averaging random guesses brings the estimate nearer to the gradient; dimensions are those of the net."""
    found = recorded(tiny(study="estimator_error", tangents=16), tmp_path)
    rows = found.history[found.history["metric"] == "error_cosine/local/activity"]
    assert sorted(rows["step"].unique()) == [0, 6]
    for space in ("weight", "activity"):
        errors = [found.values(f"relative_error/random/{space}/{n}").mean() for n in (1, 16)]
        assert errors[1] < errors[0] / 2
        cosines = [found.values(f"error_cosine/random/{space}/{n}").abs().mean() for n in (1, 16)]
        assert cosines[1] > cosines[0]
    net = network.build(tiny(study="estimator_error"), digits())
    assert found.values("dimension/weight")[0] == sum(p.numel() for p in net.blocks[0].parameters())
    assert found.values("dimension/activity")[0] == 4 * 8 * 8
    assert found.summary["metrics"]["test_accuracy"] > 0
    for guess in ("local", "ntk", "fixed_ntk", "random"):
        for space in ("weight", "activity", "weight_per_sample"):
            assert found.values(f"alignment/{guess}/{space}").abs().between(0, 1).all()
    start = found.history[found.history["step"] == 0].set_index(["metric", "index"])["value"]
    for block in range(7):  # the auxiliary nets are as they were drawn
        local, fixed = (start[f"alignment/{guess}/weight", block] for guess in ("local", "fixed_ntk"))
        assert local == pytest.approx(fixed, rel=1e-4, abs=1e-6)  # but laid out in another way


def test_the_error_of_random_guesses_in_closed_form_is_that_of_many() -> None:
    """Per tensor and per sample, on the study's own net and batch."""
    training = EstimatorError(tiny(study="estimator_error"), digits())
    study = estimator_error.Comparison(training.run, training.data, training.net, 0)
    for space, draws in (("weight", 120), ("weight_per_sample", 6)):
        several = [study.estimate("random", space, number).gradients for number in range(draws)]
        errors = [estimator_error.compare("", one, study.truth)["relative_error/"] for one in several]
        simulated = torch.tensor(errors).square().mean(0)
        torch.testing.assert_close(simulated, study.in_closed_form(space), rtol=0.3, atol=0)


def test_a_stopped_study_continues(tmp_path: Path) -> None:
    assert_survives_stops(tiny(study="batchnorm_coupling"), digits(), tmp_path, stops=1)
