"""How far gossip keeps workers apart on a quadratic problem, without simulating it: the stationary second moments.

Along an eigenvector of the Hessian, with curvature a, a worker is a vector of two or three numbers: its parameter x,
with momentum the auxiliary variable x~, with SGD momentum the buffer m. What happens to it is linear plus noise:

- between events, at rate 1, x and x~ are drawn together: `N = eta [[-1, 1], [1, -1]]`;
- a gradient, at rate 1, multiplies it by `I + E` and adds noise and the pull of the worker's own optimum;
- an averaging on edge e, at rate lambda_e, adds `-c (x_i - x_j)` with `c = (alpha, alpha~, 0)`, and the opposite there.

So the second moments of all workers follow a linear equation. Along an eigenvector of the Laplacian with eigenvalue l
they are a small matrix M_l, which solves a Lyapunov equation

    B M_l + M_l B^T + E S E^T + w l c c^T + (noise and optima) = 0,    B = N + E - l c e_x^T,

coupled to the others by two means alone: S, the mean of all M_l, because a gradient hits one worker and not a mode; and
w, the mean squared difference across an edge. That is exact where all workers and all edges are alike (ring, complete
graph, hypercube, square torus), and otherwise takes S and w as means over workers and edges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from unlocked.errors import SettingError
from unlocked.gossip import topology
from unlocked.gossip.momentum import Constants

CURVATURES = (0.1, 1.0)  # the least and the greatest of the quadratic problem that is simulated; evenly between
Array = np.ndarray


@dataclass(frozen=True)
class Problem:
    """One direction of a quadratic: its curvature, the deviation of a gradient's noise, that of the workers' optima
    (whose mean is zero), and SGD's learning rate and momentum."""

    curvature: float
    noise: float = 1.0
    optima: float = 0.0
    lr: float = 0.05
    momentum: float = 0.0


@dataclass(frozen=True)
class Spectrum:
    """Of a graph's Laplacian at a communication rate: distinct eigenvalues from 0 on, and how often each occurs."""

    values: Array
    shares: Array  # of all eigenvalues
    rate: float
    chi: tuple[float, float]

    @classmethod
    def of(cls, graph: nx.Graph, rate: float = 1.0) -> Spectrum:
        """The spectrum of a graph."""
        values = np.linalg.eigvalsh(topology.laplacian(graph, rate))
        values[0] = 0.0
        distinct, counts = np.unique(np.round(values, 10), return_counts=True)
        return cls(distinct, counts / len(values), rate, topology.chi(graph, rate))


def consensus_distance(spectrum: Spectrum, constants: Constants, problem: Problem) -> float:
    """Stationary `1/n sum (x_i - x_mean)^2` along one direction; infinite if the second moments grow without end."""
    values, shares = spectrum.values, spectrum.shares
    gradient, averaging, mixing = dynamics(constants, problem)
    x = np.eye(len(gradient))[0]
    drift = mixing + gradient - values[:, None, None] * np.outer(averaging, x)
    if np.linalg.eigvals(drift).real.max() >= 0:
        return math.inf
    spread = np.where(values > 0, problem.optima, 0.0)
    forced = forcing(drift, gradient, spread, shares, problem)
    edges = values[:, None, None] * np.outer(averaging, averaging)
    moments = coupled(drift, gradient, edges, forced, shares, 2 * shares * values / spectrum.rate)
    return math.inf if moments is None else float(shares[1:] @ moments[1:, 0, 0])


def averaging_decay(spectrum: Spectrum, constants: Constants) -> float:
    """Rate at which the consensus distance of expected vectors decays when workers only average."""
    _, averaging, mixing = dynamics(constants, Problem(0.0))
    kept = np.outer(averaging, np.eye(len(averaging))[0])
    drift = mixing - spectrum.values[1:, None, None] * kept
    return float(-2 * np.linalg.eigvals(drift).real.max())


def dynamics(constants: Constants, problem: Problem) -> tuple[Array, Array, Array]:
    """`E`, `c` and `N` on the numbers of a worker that matter: x, x~ if there is momentum, m if SGD has it."""
    a, lr, beta = problem.curvature, problem.lr, problem.momentum
    chosen = [0, *[1] * constants.momentum, *[2] * (beta > 0)]
    gradient = np.array([[-lr * a, 0, -lr * beta], [-lr * a, 0, -lr * beta], [a, 0, beta - 1]])
    averaging = np.array([constants.alpha, constants.alpha_tilde, 0.0])
    mixing = constants.eta * np.array([[-1.0, 1, 0], [1, -1, 0], [0, 0, 0]])
    return gradient[np.ix_(chosen, chosen)], averaging[chosen], mixing[np.ix_(chosen, chosen)]


def forcing(drift: Array, gradient: Array, spread: Array, shares: Array, problem: Problem) -> Array:
    """The inhomogeneous part of every mode's equation (modes, k, k): noise, and optima of deviation `spread` by mode.

    A gradient is `a (x - b) + noise`: it moves a worker by `E z - h (a b + noise)`, where h is the direction in which a
    unit of gradient moves it. In the mean a mode stands at `mu b` with `B mu = h a`.
    """
    a, direction = problem.curvature, gradient[:, 0] / problem.curvature
    mean = np.linalg.solve(drift, np.broadcast_to(a * direction[:, None], (*drift.shape[:2], 1)))[..., 0]  # mu
    pull = -a * outer(direction, mean) * spread[:, None, None] ** 2
    own = np.einsum("l,lk->k", shares * spread**2, mean)  # E[b z] of a worker
    cross = -a * np.outer(gradient @ own, direction)
    variance = problem.noise**2 + a**2 * (shares @ spread**2)
    return pull + pull.swapaxes(1, 2) + cross + cross.T + variance * np.outer(direction, direction)


def outer(one: Array, other: Array) -> Array:
    """Outer products along the last axis."""
    return one[..., :, None] * other[..., None, :]


def coupled(drift: Array, gradient: Array, edges: Array, forced: Array, shares: Array, across: Array) -> Array | None:
    """All M_l (modes, k, k). Each is linear in S and w, which are means of them: one small system. None: unstable."""
    modes, k, _ = drift.shape
    eye = np.eye(k)
    lyapunov = np.einsum("lij,ab->liajb", drift, eye) + np.einsum("ij,lab->liajb", eye, drift)
    every = np.broadcast_to(np.kron(gradient, gradient), (modes, k * k, k * k))
    sources = np.concatenate([every, edges.reshape(modes, -1, 1), forced.reshape(modes, -1, 1)], axis=2)
    solved = -np.linalg.solve(lyapunov.reshape(modes, k * k, k * k), sources)  # M_l for unit S and w, and without
    means = np.concatenate([np.einsum("l,lij->ij", shares, solved), (across @ solved[:, 0])[None]])
    if np.abs(np.linalg.eigvals(means[:, :-1])).max() >= 1:
        return None
    both = np.linalg.solve(np.eye(k * k + 1) - means[:, :-1], means[:, -1])
    return (solved[..., :-1] @ both + solved[..., -1]).reshape(modes, k, k)


def measures(spectrum: Spectrum, constants: Constants, problems: Sequence[Problem]) -> tuple[float, float]:
    """Over several directions, stationary: consensus distance, and mean loss of the workers over that of their average,
    which is half the sum of curvature times distance."""
    distances = [consensus_distance(spectrum, constants, problem) for problem in problems]
    return sum(distances), sum(p.curvature * d for p, d in zip(problems, distances, strict=True)) / 2


def best_strength(spectrum: Spectrum, problems: Sequence[Problem], most: float = 16.0) -> float:
    """The strength of the momentum with the least stationary loss difference over some directions, to a few percent.

    Searched from chi2/chi1, which is the baseline itself, to `most`; an end of that interval says that the best lies
    there or beyond. `SettingError` where no strength has a stationary state.
    """
    chi1, chi2 = spectrum.chi
    if flat := [problem for problem in problems if not problem.curvature > 0]:
        raise SettingError("problems", flat, "must have curvatures above 0")

    def cost(strength: float) -> float:
        return measures(spectrum, Constants.accelerated(chi1, chi2, strength), problems)[1]

    low, high = chi2 / chi1, most
    for _ in range(2):  # a grid, and a finer one about its best
        grid = np.geomspace(low, high, 17).tolist()
        costs = [cost(strength) for strength in grid]
        lowest = int(np.argmin(costs))
        if not math.isfinite(costs[lowest]):
            raise SettingError("problems", list(problems), "have no stationary state at any strength")
        low, high = grid[max(0, lowest - 1)], grid[min(len(grid) - 1, lowest + 1)]
    return float(grid[lowest])
