"""Against reference values of the released code, where that code does what its paper says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from forward_gradient.conftest import CLOSE, Net, assert_same, contributions, ours, tensor
from unlocked.forward_gradient import measures, project

RUNS = {
    "weight__global_local": {"target": "global", "guess": "local", "space": "weight", "averaged": False},
    "activation__global_local": {"target": "global", "guess": "local", "space": "activity"},
    "avg-weight-fast__global_local": {"target": "global", "guess": "local", "space": "weight", "averaged": True},
    "activation__local_random": {"target": "local", "guess": "random", "space": "activity"},
    "std": {"target": "global", "guess": "global", "space": "weight", "averaged": True},
    "localonly": {"target": "local", "guess": "local", "space": "weight", "averaged": True},
}


@pytest.mark.parametrize(
    ("case", "names", "options"),
    [
        ("compute_projection", ("target", "guess", "out"), {"per_sample": True}),
        ("compute_projection", ("target", "guess_zero_row", "out_zero_row"), {"per_sample": True}),
        ("compute_projection_tiny_guess", ("target", "guess", "out"), {"per_sample": True}),
        ("compute_avg_projection", ("target", "guess", "out"), {"per_sample": False}),
        ("random_guess_activation", ("target", "noise", "out"), {"per_sample": True, "normalise": False}),
        ("fast_process_gradient_local", ("target_weight", "guess_weight", "weight_grad"), {"per_sample": False}),
        ("fast_process_gradient_local", ("target_bias", "guess_bias", "bias_grad"), {"per_sample": False}),
    ],
)
def test_projection(golden: dict, case: str, names: tuple[str, str, str], options: dict) -> None:
    target, guess, out = (tensor(golden["cases"][case][name]) for name in names)
    close = {"atol": 0, "rtol": 1e-9} if "tiny" in case else CLOSE
    torch.testing.assert_close(project(target, guess, **options), out, **close)


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
    inputs = tensor(values["inputs"])
    found = contributions(layer, inputs, tensor(values["grad_output"]))
    for name in ("weight", "bias"):
        every = [found[name].weighted(alone) for alone in torch.eye(len(inputs), dtype=torch.float64)]
        torch.testing.assert_close(torch.stack(every), tensor(values[name]), **CLOSE)


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
def test_end_to_end(golden: dict, golden_net: Net, run: str) -> None:
    """Gradients, losses, statistics that are updated once, and a step that leaves parameters without gradient alone."""
    right = golden["end_to_end"]["runs"][run]
    found = golden_net.estimate(**RUNS[run], noise=replayed(golden, run), update_statistics=True)
    assert_same(found.gradients, golden_gradients(golden, run))
    places = [k for k in range(3) if right["loss"][k] != 0]  # 0: not computed there
    torch.testing.assert_close(found.losses[places], tensor(right["loss"])[places], **CLOSE)
    after = dict(right["buffers_after"])
    if run not in ("weight__global_local", "activation__local_random"):  # whose steps follow the mistakes above
        after |= right["params_after"]
    for name, parameter in golden_net.whole().named_parameters():
        parameter.grad = found.gradients.get(name)
    settings = {name: golden["end_to_end"]["optim"][name] for name in ("lr", "momentum", "weight_decay")}
    torch.optim.SGD(golden_net.whole().parameters(), **settings).step()
    state = golden_net.state()
    for name, value in after.items():
        torch.testing.assert_close(state[ours(name)].double(), tensor(value), **CLOSE)
