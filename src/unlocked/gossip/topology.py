"""Communication graphs and the two constants of a graph that set the speed of gossip.

A graph is a `networkx.Graph` over workers 0..n-1 whose edge attribute `weight` is the edge's multiplicity. It becomes
a rate matrix by one convention, for regular and irregular graphs alike: every worker starts a communication at rate
`rate`/2 and picks one of its neighbours in proportion to the weights, so
`lambda_ij = rate/2 * w_ij * (1/deg_i + 1/deg_j)`. On a regular graph every worker then takes part in `rate`
communications per unit of time (the mean duration of one gradient).

A new graph is one function with the decorator `graph`: settings, tables and figures find it in `GRAPHS`.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import numpy as np

from unlocked import seeding
from unlocked.errors import SettingError, choose
from unlocked.registry import name_of

Build = Callable[[int, int], nx.Graph]  # (workers, seed); the seed matters for random graphs only


@dataclass(frozen=True)
class Graph:
    """A kind of graph."""

    title: str  # in tables and figures
    build: Build
    least: int  # workers
    lacks: Callable[[int], str]  # what a number of workers lacks to have such a graph; empty: nothing


GRAPHS: dict[str, Graph] = {}


def graph(title: str, *, least: int = 2, lacks: Callable[[int], str] = lambda workers: "") -> Callable[[Build], Build]:
    """Register a function `(workers, seed) -> networkx.Graph`; `SettingError` if it, or its least graph, is wrong."""

    def register(function: Build) -> Build:
        name = name_of("graph", function, GRAPHS, ("workers", "seed"))
        made = function(least, 0)
        if sorted(made) != list(range(least)) or not nx.is_connected(made):
            raise SettingError("graph", name, f"with {least} workers must be connected and over 0..{least - 1}")
        GRAPHS[name] = Graph(title, function, least, lacks)
        return function

    return register


def power_of_two(workers: int) -> str:
    """What other numbers lack."""
    below = 1 << (int(workers).bit_length() - 1)
    return "" if workers == below else f"must be a power of two (e.g. {below} or {2 * below})"


def rows(workers: int) -> int:
    """Of the squarest grid."""
    return max(r for r in range(1, int(workers**0.5) + 1) if workers % r == 0)


@graph("complete")
def complete(workers: int, _seed: int) -> nx.Graph:
    """Each worker may talk to every other."""
    return nx.complete_graph(workers)


@graph("exponential", lacks=power_of_two)
def exponential(workers: int, _seed: int) -> nx.Graph:
    """Hops of 1, 2, 4, ... in both directions; a hop that meets itself (the antipode) counts twice."""
    result = nx.Graph()
    result.add_nodes_from(range(workers))
    for hop in (1 << k for k in range(workers.bit_length() - 1)):
        for i in range(workers):
            j = (i + hop) % workers
            result.add_edge(i, j, weight=result.get_edge_data(i, j, {"weight": 0})["weight"] + 1)
    return result


@graph("hypercube", lacks=power_of_two)
def hypercube(workers: int, _seed: int) -> nx.Graph:
    """Workers are binary words; neighbours differ in one bit."""
    dimension = workers.bit_length() - 1
    edges = [(i, i ^ (1 << bit)) for i in range(workers) for bit in range(dimension) if i < i ^ (1 << bit)]
    return nx.Graph(edges)


@graph("torus", least=4, lacks=lambda n: "" if rows(n) > 1 else "must be a product of two numbers > 1")
def torus(workers: int, _seed: int) -> nx.Graph:
    """A periodic grid, as square as the number of workers allows."""
    columns = workers // rows(workers)
    grid = nx.grid_2d_graph(rows(workers), columns, periodic=True)
    return nx.relabel_nodes(grid, {(r, c): r * columns + c for r, c in grid})


@graph("ring", least=3)
def ring(workers: int, _seed: int) -> nx.Graph:
    """Each worker has two neighbours."""
    return nx.cycle_graph(workers)


@graph("star")
def star(workers: int, _seed: int) -> nx.Graph:
    """Worker 0 in the centre: the one irregular graph among the classical ones."""
    return nx.star_graph(workers - 1)


@graph("path")
def path(workers: int, _seed: int) -> nx.Graph:
    """A ring with one edge cut: the worst connected."""
    return nx.path_graph(workers)


@graph("Erdős–Rényi")
def erdos_renyi(workers: int, seed: int) -> nx.Graph:
    """Each edge with probability 2 ln(n)/n, redrawn from the same generator until the graph is connected."""
    draws = seeding.generator(seed, "erdos_renyi")
    probability = min(1.0, 2 * np.log(workers) / workers)
    while True:
        result = nx.gnp_random_graph(workers, probability, seed=int(draws.integers(2**31)))
        if nx.is_connected(result):
            return result


def check(name: str, workers: int) -> None:
    """`SettingError` on `graph` or `workers` if there is no such graph."""
    kind = GRAPHS[choose("graph", name, GRAPHS)]
    enough = isinstance(workers, numbers.Integral) and workers >= kind.least
    if reason := kind.lacks(workers) if enough else f"must be at least {kind.least}":
        raise SettingError("workers", workers, f"{reason} for the {name} graph")


def build(name: str, workers: int, seed: int = 0) -> nx.Graph:
    """The graph `name` over workers 0..n-1, see the module's convention; `seed` matters for random graphs only.

    `SettingError` for an unknown name or a number of workers that the graph cannot have.
    """
    check(name, workers)
    result = GRAPHS[name].build(int(workers), seed)
    for _, _, edge in result.edges(data=True):
        edge.setdefault("weight", 1)
    return result


def edge_rates(graph: nx.Graph, rate: float = 1.0) -> dict[tuple[int, int], float]:
    """Communications per unit of time on each edge (i < j), see the module's convention. Their sum is n·rate/2."""
    if not 0 < rate < np.inf:
        raise SettingError("rate", rate, "must be a positive number of communications per gradient")
    degree = dict(graph.degree(weight="weight"))  # the view would count anew at every look
    return {
        (min(i, j), max(i, j)): rate / 2 * w * (1 / degree[i] + 1 / degree[j])
        for i, j, w in sorted(graph.edges(data="weight", default=1))
    }


def laplacian(graph: nx.Graph, rate: float = 1.0) -> np.ndarray:
    """`L = sum over edges of lambda_ij (e_i - e_j)(e_i - e_j)^T`, shape (n, n)."""
    result = np.zeros((graph.number_of_nodes(),) * 2)
    rates = edge_rates(graph, rate)
    ends, values = np.array(list(rates), dtype=int).reshape(-1, 2), np.array(list(rates.values()))
    result[ends[:, 0], ends[:, 1]] = result[ends[:, 1], ends[:, 0]] = -values
    np.add.at(result, (ends.ravel(), ends.ravel()), values.repeat(2))  # edge by edge, so that rounding has one order
    return result


def chi(graph: nx.Graph, rate: float = 1.0) -> tuple[float, float]:
    """`(chi1, chi2)`: the inverse algebraic connectivity and half the largest effective resistance of an edge.

    `chi1 = 1/lambda_2(L)`; `chi2 = max over edges of (e_i - e_j)^T L^+ (e_i - e_j) / 2`. Both scale with 1/rate;
    chi2 <= chi1. The consensus of plain gossip decays at 1/chi1, of A²CiD² at 1/sqrt(chi1 chi2).
    """
    try:  # slow to import, and settings need this module
        from scipy.linalg import eigh
    except ModuleNotFoundError:  # the methods alone: the same to rounding
        from numpy.linalg import eigh
    matrix = laplacian(graph, rate)
    values, vectors = eigh(matrix)
    if values[1] < 1e-12 * values[-1]:
        raise SettingError("graph", graph.name or "given", "must be connected")
    inverse = (vectors[:, 1:] / values[1:]) @ vectors[:, 1:].T
    i, j = np.array(list(graph.edges)).T
    resistance = inverse[i, i] + inverse[j, j] - 2 * inverse[i, j]
    return float(1 / values[1]), float(resistance.max() / 2)
