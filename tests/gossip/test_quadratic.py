"""What the momentum does where it can be computed: pure averaging, and a quadratic problem on the 64-ring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from trainings import history

from unlocked.gossip import topology
from unlocked.gossip.quadratic import BLOCK, Quadratic

# ratio of the consensus distance to the rate-1 baseline's, by (lr, momentum, heterogeneous): measured with a program
# of its own, over 20 seeds
VARIANTS = (
    {"method": "baseline", "rate": 2.0},
    {"method": "acid"},
    {"method": "acid", "dynamics": "released"},
)
EFFECT: dict[tuple[float, float, bool], tuple[float, float, float]] = {
    (0.005, 0.9, False): (0.625, 0.602, 0.656),
    (0.005, 0.9, True): (0.623, 0.312, 0.527),
    (0.05, 0.0, True): (0.628, 0.410, 0.582),
    (0.05, 0.0, False): (0.653, 1.514, 1.164),
}
SEEDS = range(2)
Study = Callable[..., Any]


@pytest.fixture(scope="module")
def study(tiny_run: Any, train_of: Any) -> Study:
    """The training of a study on the ring; changes as of `tiny_run`."""

    def make(kind: str, **changes: Any) -> Any:
        settings = {"study": kind, "workers": 64, "graph": "ring", "evaluation.points": 16}
        return train_of(tiny_run(settings | changes))

    return make


def decay(training: Any) -> float:
    """Rate at which the consensus distance falls, by a line through its logarithm from 300 to 1000 gradient times."""
    late = [m for m in history(training) if m.virtual_time >= 300]
    distances = [m.metrics["consensus_distance"] for m in late]
    return -np.polyfit([m.virtual_time for m in late], np.log(distances), 1)[0]


def test_averaging_decays_as_the_theory_says(study: Study) -> None:
    """Without momentum at 1/chi1 within 5 %; with it about ten times as fast, below the bound sqrt(chi1/chi2)."""
    chi1, chi2 = topology.chi(topology.build("ring", 64))
    plain, accelerated = (
        np.mean([decay(study("averaging", method=method, seed=seed)) for seed in range(6)])
        for method in ("baseline", "acid")
    )
    assert plain == pytest.approx(1 / chi1, rel=0.05)
    assert 8 < accelerated / plain < (chi1 / chi2) ** 0.5 * 1.05
    assert accelerated / plain < 15


def test_averaging_keeps_the_mean(study: Study) -> None:
    """Workers come together where their average was; both methods start from the same vectors."""
    starts = []
    for method in ("acid", "baseline"):
        training = study("averaging", method=method, workers=8, **{"quadratic.horizon": 300.0})
        starts.append(training.engine.x.clone())
        last = history(training)[-1]
        assert last.metrics["consensus_distance"] < 1e-6
        assert last.metrics["distance_to_optimum"] == pytest.approx(float(starts[0].mean(0).square().sum()), rel=1e-9)
    assert torch.equal(*starts)


def distance(training: Any) -> float:
    """Consensus distance of x as it lies in memory, over the second half of the run."""
    half = [m.metrics for m in history(training) if m.virtual_time >= 500]
    return float(np.mean([m.get("consensus_distance_stored", m["consensus_distance"]) for m in half]))


@pytest.mark.parametrize("setting", EFFECT)
def test_the_effect_of_the_momentum(study: Study, setting: tuple[float, float, bool]) -> None:
    """Every ratio is the known one: within 4 %, or inside the 95 % interval over the seeds (and within 15 %)."""
    problem = dict(zip(("optim.lr", "optim.momentum", "quadratic.heterogeneous"), setting, strict=True))

    def distances(**variant: Any) -> np.ndarray:
        return np.array([distance(study("quadratic", seed=seed, **problem, **variant)) for seed in SEEDS])

    reference = distances(method="baseline")
    for variant, known in zip(VARIANTS, EFFECT[setting], strict=True):
        own = distances(**variant)
        ratio = own.mean() / reference.mean()
        half = scipy.stats.t.ppf(0.975, len(SEEDS) - 1) * scipy.stats.sem(own / reference)
        assert abs(ratio - known) < min(max(0.04 * known, half), 0.15 * known), (variant, ratio, half)


def noise(problem: Quadratic, worker: int, step: int) -> np.ndarray:
    """A gradient's noise: the gradient at the optimum."""
    return problem.stacked([worker], [step], problem.b[[worker]])[0][0].numpy()


def test_gradients_by_hand() -> None:
    """`a (x - b) + noise` with a from .1 to 1, b of mean zero over workers, noise of the deviation asked for."""
    problem = Quadratic(8, 50, seed=0, noise=2.0, heterogeneous=True)
    x = torch.randn(8, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients, losses = problem.stacked(list(range(8)), [3] * 8, x)
    a, away = np.linspace(0.1, 1, 50), (x - problem.b).numpy()
    np.testing.assert_allclose(gradients, a * away + [noise(problem, worker, 3) for worker in range(8)])
    np.testing.assert_allclose(losses, 0.5 * (a * away**2).sum(1))
    np.testing.assert_allclose(problem.b.mean(0), 0, atol=1e-12)
    assert problem.b.std() == pytest.approx(1, rel=0.15)
    draws = np.concatenate([noise(problem, 1, k) for k in range(400)])
    assert draws.mean() == pytest.approx(0, abs=5 * 2 / 20000**0.5)
    assert draws.std() == pytest.approx(2, rel=0.03)


def test_noise_is_a_function_of_worker_and_step() -> None:
    """In any order of asking, over the limits of blocks; equal optima when homogeneous."""
    one, two = (Quadratic(4, 50, seed=0) for _ in range(2))
    asked = {step: noise(one, 2, step) for step in (0, BLOCK - 1, BLOCK, 5, 3 * BLOCK + 7)}
    for step in reversed(asked):
        np.testing.assert_array_equal(noise(two, 2, step), asked[step])
    assert len({drawn.tobytes() for drawn in (*asked.values(), noise(one, 1, 0))}) == 6
    assert not one.b.any()


@pytest.mark.parametrize(("kind", "gradients"), [("quadratic", 160), ("averaging", 0)])
@pytest.mark.parametrize("method", ["acid", "baseline"])
def test_the_history_of_a_study(study: Study, kind: str, gradients: int, method: str) -> None:
    training = study(kind, method=method, workers=8, **{"quadratic.horizon": 20.0})
    measurements = history(training)
    assert len(measurements) == 17
    assert (np.diff([m.virtual_time for m in measurements]) > 0).all()
    assert (np.diff([m.step for m in measurements]) > 0).all()
    assert ("train_loss" in measurements[-1].metrics) == (kind == "quadratic")
    counts = training.counts()
    assert counts["gradients"] == gradients
    assert counts["communications"] > 0


@pytest.mark.parametrize(
    ("changes", "setting"),
    [
        ({"study": "quadratics"}, "study"),
        ({"study": "averaging", "method": "allreduce"}, "method"),
        ({"study": "quadratic", "quadratic.horizon": 0.0}, "quadratic.horizon"),
        ({"study": "quadratic", "quadratic.noise": -1.0}, "quadratic.noise"),
    ],
)
def test_refusals(tiny_run: Any, changes: dict[str, Any], setting: str) -> None:
    with pytest.raises(ValueError, match=setting) as error:
        tiny_run(changes)
    assert "\n" not in str(error.value)
