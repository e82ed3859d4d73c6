"""Against reference values of the released code, where that code does what its paper says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from forward_gradient.conftest import Net, ours, tensor
from unlocked.forward_gradient import estimate, measures, passes, project, projection, spaces

CLOSE = {"atol": 1e-9, "rtol": 1e-9}

RUNS = {
    "weight__global_local": {"target": "global", "guess": "local", "space": "weight"},
    "activation__global_local": {"target": "global", "guess": "local", "space": "activity"},
    "avg-weight-fast__global_local": {"target": "global", "guess": "local", "space": "weight", "averaged": True},
    "activation__local_random": {"target": "local", "guess": "random", "space": "activity"},
    "std": {"target": "global", "guess": "global", "space": "weight", "averaged": True},
    "localonly": {"target": "local", "guess": "local", "space": "weight", "averaged": True},
}


@pytest.mark.parametrize(
    ("case", "per_sample_coefficients"), [("compute_projection", True), ("compute_avg_projection", False)]
)
def test_projection(golden: dict, case: str, per_sample_coefficients: bool) -> None:
    values = {name: tensor(v) for name, v in golden["cases"][case].items() if isinstance(v, list)}
    out = project(values["target"], values["guess"], per_sample=per_sample_coefficients)
    torch.testing.assert_close(out, values["out"], **CLOSE)


def test_coefficients_zero_guess_and_tiny_guess(golden: dict) -> None:
    case = {n: tensor(v) for n, v in golden["cases"]["compute_projection"].items() if isinstance(v, list)}
    found = projection.coefficient(case["target"], case["guess"], per_sample=True)
    torch.testing.assert_close(found, case["coef"], **CLOSE)
    zero_row = project(case["target"], case["guess_zero_row"], per_sample=True)
    torch.testing.assert_close(zero_row, case["out_zero_row"], **CLOSE)
    tiny = {n: tensor(v) for n, v in golden["cases"]["compute_projection_tiny_guess"].items() if isinstance(v, list)}
    out = project(tiny["target"], tiny["guess"], per_sample=True)
    torch.testing.assert_close(out, tiny["out"], atol=0, rtol=1e-9)


def test_random_guess_is_not_normalised(golden: dict) -> None:
    case = golden["cases"]["random_guess_activation"]
    out = project(tensor(case["target"]), tensor(case["noise"]), per_sample=True, normalise=False)
    torch.testing.assert_close(out, tensor(case["out"]), **CLOSE)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_averaged_weight_projection(golden: dict, name: str) -> None:
    case = golden["cases"]["fast_process_gradient_local"]
    out = project(tensor(case[f"target_{name}"]), tensor(case[f"guess_{name}"]), per_sample=False)
    torch.testing.assert_close(out, tensor(case[f"{name}_grad"]), **CLOSE)


def test_alignment_measures(golden: dict) -> None:
    case = golden["cases"]["tracker_dict"]
    names = {
        "scalar_product": "scalar_prod_target_guess",
        "cosine": "cosine_target_guess",
        "distance": "norm_diff_target_guess",
        "relative_distance": "norm_diff_normed_target_guess",
        "norm_ratio": "norm_ratio_target_guess",
        "target_norm": "target_norm",
        "guess_norm": "guess_norm",
    }
    target, guess = tensor(case["target"]), tensor(case["guess"])
    rows = measures.compare(target, guess)
    summed = measures.compare(target.sum(0, keepdim=True), guess.sum(0, keepdim=True))
    for name, theirs in names.items():
        torch.testing.assert_close(rows[name], tensor(case["out"][theirs]), **CLOSE)
        theirs = theirs.replace("target_guess", "target_avg_guess_avg").replace("t_norm", "t_avg_norm")
        theirs = theirs.replace("guess_norm", "guess_avg_norm")
        torch.testing.assert_close(summed[name], tensor(case["out"][theirs]), **CLOSE)


@pytest.mark.parametrize(
    ("case", "layer"),
    [
        ("linear_gradient", nn.Linear(4, 2)),
        ("conv_gradient_3x3_s1p1", nn.Conv2d(2, 3, 3, padding=1)),
        ("batchnorm_gradient_train", nn.BatchNorm2d(3)),
    ],
)
def test_per_sample_contributions(golden: dict, case: str, layer: nn.Module) -> None:
    values = golden["cases"][case]
    layer = layer.double()
    inputs, gradient = tensor(values["inputs"]), tensor(values["grad_output"])
    space = spaces.PerSampleWeight()
    step = passes.forward(0, layer, inputs, chained=False, record_calls=True)
    found = space.read(step, gradient, passes.pull(step.outputs, gradient, space.wanted(step)))
    for name in ("weight", "bias"):
        for sample in range(len(inputs)):
            alone = torch.zeros(len(inputs), dtype=torch.float64)
            alone[sample] = 1
            torch.testing.assert_close(found[name].weighted(alone), tensor(values[name])[sample], **CLOSE)


def golden_gradients(golden: dict, run: str) -> dict[str, torch.Tensor]:
    """Reference gradients by our names, with the released code's known mistakes put right.

    In per-sample weight space its bias gradient overwrites the weight's (the file holds the corrected values too), and
    with a local target and a random guess its auxiliary nets are left untrained (those of local learning are right).
    """
    runs = golden["end_to_end"]["runs"]
    found = dict(runs[run]["grad"]) | runs[run].get("grad_bias_bug_fixed", {})
    if run == "activation__local_random":
        found |= {name: v for name, v in runs["localonly"]["grad"].items() if "auxnet" in name}
    return {ours(name): tensor(value) for name, value in found.items() if value is not None}


def replayed(golden: dict, run: str):
    noise = iter(golden["end_to_end"]["runs"][run]["noise_in_call_order"])
    return lambda shape, dtype, device: tensor(next(noise)).reshape(tuple(shape)).to(dtype)


@pytest.mark.parametrize("run", RUNS)
def test_end_to_end_gradients(golden: dict, golden_net: Net, run: str) -> None:
    found = estimate(*golden_net.everything(), **RUNS[run], noise=replayed(golden, run))
    right = golden_gradients(golden, run)
    assert set(found.gradients) == set(right)
    for name, gradient in right.items():
        torch.testing.assert_close(found.gradients[name], gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("run", RUNS)
def test_end_to_end_losses(golden: dict, golden_net: Net, run: str) -> None:
    found = estimate(*golden_net.everything(), **RUNS[run], noise=replayed(golden, run))
    right = golden["end_to_end"]["runs"][run]["loss"]
    places = [k for k in range(3) if right[k] != 0]  # 0: not computed there
    torch.testing.assert_close(found.losses[places], tensor(right)[places], **CLOSE)


@pytest.mark.parametrize("run", RUNS)
def test_end_to_end_statistics_are_updated_once(golden: dict, golden_net: Net, run: str) -> None:
    estimate(*golden_net.everything(), **RUNS[run], noise=replayed(golden, run), update_statistics=True)
    state = golden_net.state()
    for name, value in golden["end_to_end"]["runs"][run]["buffers_after"].items():
        torch.testing.assert_close(state[ours(name)].double(), tensor(value), **CLOSE)


@pytest.mark.parametrize(
    "run", [run for run in RUNS if run not in ("weight__global_local", "activation__local_random")]
)
def test_end_to_end_parameters_after_a_step(golden: dict, golden_net: Net, run: str) -> None:
    """A parameter without gradient is neither stepped nor decayed."""
    found = estimate(*golden_net.everything(), **RUNS[run], noise=replayed(golden, run))
    everything = nn.ModuleDict({"blocks": golden_net.blocks, "auxiliaries": golden_net.auxiliaries})
    for name, parameter in everything.named_parameters():
        parameter.grad = found.gradients.get(name)
    settings = golden["end_to_end"]["optim"]
    torch.optim.SGD(
        everything.parameters(),
        lr=settings["lr"],
        momentum=settings["momentum"],
        weight_decay=settings["weight_decay"],
    ).step()
    state = golden_net.state()
    for name, value in golden["end_to_end"]["runs"][run]["params_after"].items():
        torch.testing.assert_close(state[ours(name)], tensor(value), **CLOSE)
