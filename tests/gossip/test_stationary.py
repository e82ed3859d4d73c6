"""Stationary second moments: against those of all workers together, event by event, and against the simulator."""

from __future__ import annotations

import math
from typing import Any

import networkx as nx
import numpy as np
import pytest
from trainings import history

from unlocked.errors import SettingError
from unlocked.gossip import stationary, topology
from unlocked.gossip.momentum import Constants
from unlocked.gossip.stationary import Problem, Spectrum


def whole(graph: nx.Graph, rate: float, constants: Constants, problem: Problem) -> float:
    """The consensus distance from the second moments of the 3n numbers of all workers: each event is a matrix.

    The optima's part is the sum over an orthonormal basis of vectors of optima with mean zero.
    """
    n, a, lr, beta = len(graph), problem.curvature, problem.lr, problem.momentum
    eye, momentum = np.eye(3 * n), constants.momentum

    def at(i: int, part: int) -> np.ndarray:
        return eye[3 * i + part]

    drift = np.zeros((3 * n, 3 * n))
    squares = np.zeros((9 * n * n, 9 * n * n))
    forces, noise = [], np.zeros((3 * n, 3 * n))
    for i in range(n):
        x, tilde, m = (at(i, part) for part in range(3))
        drift += constants.eta * (np.outer(x, tilde - x) + np.outer(tilde, x - tilde))
        step = x + tilde * momentum
        change = np.outer(a * (m - lr * step), x) + np.outer((beta - 1) * m - lr * beta * step, m)
        forces.append(m - lr * step)
        drift, squares = drift + change, squares + np.kron(change, change)
        noise += problem.noise**2 * np.outer(forces[i], forces[i])
        if not momentum:  # pin the variable that has no part in it
            drift -= np.outer(tilde, tilde)
    for (i, j), ticks in topology.edge_rates(graph, rate).items():
        away = (at(i, 0) - at(j, 0)) * constants.alpha + (at(i, 1) - at(j, 1)) * constants.alpha_tilde * momentum
        change = -np.outer(away, at(i, 0) - at(j, 0))
        drift, squares = drift + ticks * change, squares + ticks * np.kron(change, change)
    for i in range(n) if not beta else ():
        drift[3 * i + 2] = -at(i, 2)
    operator = np.kron(drift, eye) + np.kron(eye, drift) + squares
    right = noise
    for b in np.linalg.qr(np.eye(n) - 1 / n)[0].T[: n - 1] if problem.optima else ():
        pulls = [-a * problem.optima * b[i] * forces[i] for i in range(n)]  # of a gradient of worker i
        mean = -np.linalg.solve(drift, sum(pulls))
        changes = [np.outer(a * forces[i], at(i, 0)) + (beta - 1) * np.outer(at(i, 2), at(i, 2)) for i in range(n)]
        for i in range(n):
            changes[i] -= lr * beta * np.outer(at(i, 0) + at(i, 1) * momentum, at(i, 2))
            moved = mean + changes[i] @ mean
            right = right + np.outer(pulls[i], moved) + np.outer(moved, pulls[i]) + np.outer(pulls[i], pulls[i])
    moments = -np.linalg.solve(operator, right.flatten()).reshape(3 * n, 3 * n)
    workers = moments[::3, ::3]
    return float(np.trace(workers - workers.mean(0)) / n)


GRAPHS = [("ring", 5), ("complete", 4), ("hypercube", 8), ("ring", 8)]
PROBLEMS = [Problem(0.7, 1.0, optima, lr, beta) for optima in (0.0, 1.5) for lr, beta in ((0.1, 0.0), (0.02, 0.9))]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"optima {p.optima:g}, momentum {p.momentum:g}")
@pytest.mark.parametrize(("name", "workers"), GRAPHS)
def test_the_second_moments_are_those_of_all_workers(name: str, workers: int, problem: Problem) -> None:
    """On graphs whose workers and edges are all alike: exactly, for the baseline and for every strength."""
    graph = topology.build(name, workers)
    chi = topology.chi(graph, 1.5)
    for constants in (Constants.baseline(), *(Constants.accelerated(*chi, c) for c in (0.3, 1.0, 3.0))):
        found = stationary.consensus_distance(Spectrum.of(graph, 1.5), constants, problem)
        assert found == pytest.approx(whole(graph, 1.5, constants, problem), rel=1e-8)


@pytest.mark.parametrize("name", ["exponential", "erdos_renyi", "star", "path"])
def test_elsewhere_they_are_near(name: str) -> None:
    """Where edges or workers differ, means over them take their place."""
    graph = topology.build(name, 8)
    constants = Constants.accelerated(*topology.chi(graph))
    found = stationary.consensus_distance(Spectrum.of(graph), constants, PROBLEMS[0])
    exact = whole(graph, 1.0, constants, PROBLEMS[0])
    assert found == pytest.approx(exact, rel=0.25)
    assert abs(found / exact - 1) > 1e-6


@pytest.mark.parametrize("changes", [{"optim.lr": 0.05, "optim.momentum": 0.0}, {"optim.lr": 0.005}])
@pytest.mark.parametrize("method", [{"method": "baseline"}, {"strength": 1.0}, {"strength": 0.1}])
def test_the_simulator_agrees(tiny_run: Any, train_of: Any, changes: dict[str, Any], method: dict[str, Any]) -> None:
    """Consensus distance and loss difference over a long run, in all 50 directions."""
    long = {"quadratic.horizon": 3000.0, "evaluation.points": 300, "evaluation.disagreement": True}
    training = train_of(run := tiny_run(changes | method | long, study="quadratic", workers=8))
    late = [m.metrics for m in history(training) if m.virtual_time > 300]
    curvatures = np.linspace(*stationary.CURVATURES, run.quadratic.dimension)
    problems = [Problem(a, lr=run.optim.lr, momentum=run.optim.momentum) for a in curvatures]
    spectrum, constants = Spectrum.of(topology.build("ring", 8)), training.engine.constants
    distance, loss = stationary.measures(spectrum, constants, problems)
    assert np.mean([m["consensus_distance"] for m in late]) == pytest.approx(distance, rel=0.05)
    assert np.mean([m["loss_difference"] for m in late]) == pytest.approx(loss, rel=0.05)


def test_the_weakest_momentum_is_the_baseline() -> None:
    """At chi2/chi1 x and x~ are moved alike by everything, so they stay equal."""
    spectrum = Spectrum.of(topology.build("ring", 16))
    chi1, chi2 = spectrum.chi
    for problem in PROBLEMS:
        plain, weakest = (
            stationary.consensus_distance(spectrum, constants, problem)
            for constants in (Constants.baseline(), Constants.accelerated(chi1, chi2, chi2 / chi1))
        )
        assert weakest == pytest.approx(plain, rel=1e-9)


def test_what_grows_without_end_is_infinite() -> None:
    """A learning rate beyond 2/curvature, whose mean would be stable; and an averaging that drives apart."""
    spectrum = Spectrum.of(topology.build("ring", 16))
    for constants in (Constants.baseline(), Constants.accelerated(*spectrum.chi)):
        assert math.isinf(stationary.consensus_distance(spectrum, constants, Problem(1.0, lr=2.5)))
        assert math.isfinite(stationary.consensus_distance(spectrum, constants, Problem(1.0, lr=1.9)))
    assert math.isinf(stationary.consensus_distance(spectrum, Constants(1.0, 0.5, -5.0), Problem(1.0)))


def test_the_best_strength_is_the_best() -> None:
    """Of a grid, to its spacing; weak under noise, strong where the workers' optima differ."""
    spectrum = Spectrum.of(topology.build("ring", 64))
    best = {}
    for optima in (0.0, 1.0):
        problems = [Problem(a, 1.0, optima, 0.05) for a in (0.1, 0.5, 1.0)]
        best[optima] = stationary.best_strength(spectrum, problems)
        grid = np.geomspace(0.005, 16, 60)
        costs = [stationary.measures(spectrum, Constants.accelerated(*spectrum.chi, c), problems)[1] for c in grid]
        assert best[optima] == pytest.approx(grid[int(np.argmin(costs))], rel=0.2)
    assert best[0.0] < 0.1 < 1 < best[1.0]
    with pytest.raises(SettingError, match="no stationary state"):
        stationary.best_strength(spectrum, [Problem(1.0), Problem(1.0, lr=2.5)])
    with pytest.raises(SettingError, match="curvatures above 0"):
        stationary.best_strength(spectrum, [Problem(1.0), Problem(0.0)])


@pytest.mark.parametrize("workers", [16, 64])
@pytest.mark.parametrize("name", ["complete", "exponential", "torus", "ring"])
def test_averaging_alone_decays_as_the_papers_constants_say(name: str, workers: int) -> None:
    """In the mean: the baseline at 1/chi1, A²CiD² at 1/sqrt(chi1 chi2)."""
    spectrum = Spectrum.of(topology.build(name, workers))
    chi1, chi2 = spectrum.chi
    assert stationary.averaging_decay(spectrum, Constants.baseline()) == pytest.approx(1 / chi1)
    accelerated = stationary.averaging_decay(spectrum, Constants.accelerated(chi1, chi2))
    assert accelerated == pytest.approx((chi1 * chi2) ** -0.5, rel=1e-6)
