"""Communication graphs and the two constants of a graph that set the speed of gossip.

Upstream of schedules, engines and figures: pure theory, without torch. A graph is a `networkx.Graph` over
workers 0..n-1 whose edge attribute `weight` is the edge's multiplicity.

A graph becomes a rate matrix by one convention, for regular and irregular graphs alike: every worker starts a
communication at rate `rate`/2 and picks one of its neighbours in proportion to the weights, so
`lambda_ij = rate/2 * w_ij * (1/deg_i + 1/deg_j)`. On a regular graph every worker then takes part in `rate`
communications per unit of time (the mean duration of one gradient).
"""

from __future__ import annotations

import numbers
from collections.abc import Callable

import networkx as nx
import numpy as np
import scipy.linalg

from unlocked import seeding
from unlocked.errors import SettingError, choose


def ring(workers: int, seed: int) -> nx.Graph:
    """Each worker has two neighbours."""
    return nx.cycle_graph(workers)


def complete(workers: int, seed: int) -> nx.Graph:
    """Each worker may talk to every other."""
    return nx.complete_graph(workers)


def exponential(workers: int, seed: int) -> nx.Graph:
    """Hops of 1, 2, 4, ... in both directions; a hop that meets itself (the antipode) counts twice."""
    graph = nx.Graph()
    graph.add_nodes_from(range(workers))
    hop = 1
    while hop < workers:
        for i in range(workers):
            j = (i + hop) % workers
            multiplicity = graph.edges[i, j]["weight"] if graph.has_edge(i, j) else 0
            graph.add_edge(i, j, weight=multiplicity + 1)
        hop *= 2
    return graph


def star(workers: int, seed: int) -> nx.Graph:
    """Worker 0 in the centre: the one irregular graph among the classical ones."""
    return nx.star_graph(workers - 1)


def torus(workers: int, seed: int) -> nx.Graph:
    """A periodic grid, as square as the number of workers allows."""
    rows = max(r for r in range(1, int(workers**0.5) + 1) if workers % r == 0)
    grid = nx.grid_2d_graph(rows, workers // rows, periodic=True)
    return nx.relabel_nodes(grid, {(r, c): r * (workers // rows) + c for r, c in grid})


def hypercube(workers: int, seed: int) -> nx.Graph:
    """Workers are binary words; neighbours differ in one bit."""
    dimension = workers.bit_length() - 1
    edges = [(i, i ^ (1 << bit)) for i in range(workers) for bit in range(dimension) if i < i ^ (1 << bit)]
    return nx.Graph(edges)


def path(workers: int, seed: int) -> nx.Graph:
    """A ring with one edge cut: the worst connected."""
    return nx.path_graph(workers)


def erdos_renyi(workers: int, seed: int) -> nx.Graph:
    """Each edge with probability 2 ln(n)/n, redrawn from the same generator until the graph is connected."""
    draws = seeding.generator(seed, "erdos_renyi")
    probability = min(1.0, 2 * np.log(workers) / workers)
    while True:
        graph = nx.gnp_random_graph(workers, probability, seed=int(draws.integers(2**31)))
        if nx.is_connected(graph):
            return graph


GRAPHS: dict[str, Callable[[int, int], nx.Graph]] = {
    f.__name__: f for f in (ring, complete, exponential, star, torus, hypercube, path, erdos_renyi)
}
POWER_OF_TWO = ("exponential", "hypercube")
LEAST_WORKERS = {"ring": 3, "torus": 4}


def check(name: str, workers: int) -> None:
    """Refuse a graph that cannot be built, with the reason: `SettingError` on `graph` or `workers`."""
    choose("graph", name, GRAPHS)
    least = LEAST_WORKERS.get(name, 2)
    if not isinstance(workers, numbers.Integral) or workers < least:
        raise SettingError("workers", workers, f"a {name} graph needs at least {least}")
    if name in POWER_OF_TWO and workers & (workers - 1):
        below = 1 << (int(workers).bit_length() - 1)
        raise SettingError("workers", workers, f"the {name} graph needs a power of two, e.g. {below} or {2 * below}")
    if name == "torus" and all(workers % r for r in range(2, int(workers**0.5) + 1)):
        raise SettingError("workers", workers, "a torus needs a number of workers that is a product of two numbers > 1")


def build(name: str, workers: int, seed: int = 0) -> nx.Graph:
    """The graph `name` over `workers` workers; `seed` matters for random graphs only.

    Edges carry `weight`, their multiplicity (1 except for doubled hops of the exponential graph).
    Raises `SettingError` for an unknown name or a number of workers that the graph cannot have.
    """
    check(name, workers)
    graph = GRAPHS[name](int(workers), seed)
    for _, _, data in graph.edges(data=True):
        data.setdefault("weight", 1)
    return graph


def check_rate(rate: float) -> None:
    """Refuse a rate that is not a positive number."""
    if not rate > 0 or not np.isfinite(rate):
        raise SettingError("rate", rate, "must be a positive number of communications per gradient")


def edge_rates(graph: nx.Graph, rate: float = 1.0) -> dict[tuple[int, int], float]:
    """Communications per unit of time on each edge (i < j), see the module's convention. Their sum is n·rate/2."""
    check_rate(rate)
    degree = dict(graph.degree(weight="weight"))
    return {
        (min(i, j), max(i, j)): rate / 2 * w * (1 / degree[i] + 1 / degree[j])
        for i, j, w in sorted(graph.edges(data="weight", default=1))
    }


def laplacian(graph: nx.Graph, rate: float = 1.0) -> np.ndarray:
    """`L = sum over edges of lambda_ij (e_i - e_j)(e_i - e_j)^T`, shape (n, n)."""
    result = np.zeros((graph.number_of_nodes(),) * 2)
    for (i, j), value in edge_rates(graph, rate).items():
        result[i, i] += value
        result[j, j] += value
        result[i, j] -= value
        result[j, i] -= value
    return result


def chi(graph: nx.Graph, rate: float = 1.0) -> tuple[float, float]:
    """`(chi1, chi2)`: the inverse algebraic connectivity and half the largest effective resistance of an edge.

    `chi1 = 1/lambda_2(L)`; `chi2 = max over edges of (e_i - e_j)^T L^+ (e_i - e_j) / 2`. Both scale with 1/rate;
    chi2 <= chi1. The consensus of plain gossip decays at 1/chi1, of A²CiD² at 1/sqrt(chi1 chi2).
    """
    matrix = laplacian(graph, rate)
    values, vectors = scipy.linalg.eigh(matrix)
    if values[1] < 1e-12 * values[-1]:
        raise SettingError("graph", graph.name or "given", "must be connected")
    inverse = (vectors[:, 1:] / values[1:]) @ vectors[:, 1:].T
    i, j = np.array(list(graph.edges)).T
    resistance = inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]
    return float(1 / values[1]), float(resistance.max() / 2)
