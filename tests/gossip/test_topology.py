"""Graphs, their rates and the two constants: golden numbers, closed forms, invariants, and what is refused."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlocked.errors import SettingError
from unlocked.gossip import topology

REGULAR = ("ring", "complete", "exponential", "torus", "hypercube")
OURS = {"torus2d": "torus", "star[mean_rate_1]": "star"}
OTHER_CONVENTIONS = ("star[center_rate_1]", "star[leaf_rate_1]")


def parse(key: str) -> tuple[str, int, float]:
    """`ring/n=4/rate=0.5` as name, workers and rate."""
    name, workers, rate = key.split("/")
    return OURS.get(name, name), int(workers.removeprefix("n=")), float(rate.removeprefix("rate="))


@st.composite
def connected(draw: st.DrawFn) -> nx.Graph:
    """A connected graph of 2 to 12 workers: a random tree and some more edges, with multiplicities."""
    workers = draw(st.integers(2, 12))
    graph = nx.Graph()
    for j in range(1, workers):
        graph.add_edge(draw(st.integers(0, j - 1)), j, weight=draw(st.integers(1, 3)))
    pairs = st.tuples(st.integers(0, workers - 1), st.integers(0, workers - 1))
    for i, j in draw(st.lists(pairs, max_size=12)):
        if i != j:
            graph.add_edge(i, j, weight=draw(st.integers(1, 3)))
    return graph


@pytest.mark.parametrize("part", ["acid_constants", "other_graphs"])
def test_chi_is_golden(golden: dict[str, Any], part: str) -> None:
    """chi1 and chi2 of every golden graph and rate agree to 1e-9."""
    checked = 0
    for key, expected in golden[part].items():
        if key.startswith(OTHER_CONVENTIONS):
            continue
        name, workers, rate = parse(key)
        found = topology.chi(topology.build(name, workers), rate)
        assert found == pytest.approx((expected["chi1"], expected["chi2"]), rel=1e-9), key
        checked += 1
    assert checked >= 18


@pytest.mark.parametrize("workers", [3, 8, 33, 64])
@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_ring_has_its_closed_form(workers: int, rate: float) -> None:
    """chi1 = 1/(r (1 - cos 2 pi/n)), chi2 = (n-1)/(n r)."""
    expected = 1 / (rate * (1 - math.cos(2 * math.pi / workers))), (workers - 1) / (workers * rate)
    assert topology.chi(topology.build("ring", workers), rate) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("workers", [2, 5, 64])
def test_complete_has_its_closed_form(workers: int) -> None:
    """chi1 = chi2 = (n-1)/n at rate 1."""
    expected = ((workers - 1) / workers,) * 2
    assert topology.chi(topology.build("complete", workers)) == pytest.approx(expected, rel=1e-10)


def test_the_64_exponential_graph_has_the_known_constants() -> None:
    """chi1 = 3 and chi2 = 1.024076 count the antipode twice."""
    assert topology.chi(topology.build("exponential", 64)) == pytest.approx((3, 1.024076), rel=1e-6)


def test_exponential_multiplicities(golden: dict[str, Any]) -> None:
    """Every neighbour occurs as often as in the released code's list."""
    for key, neighbours in golden["neighbours_initial_order"].items():
        name, workers = key.split("/n=")
        graph = topology.build(name, int(workers))
        for worker, listed in neighbours.items():
            mine = {j: graph.edges[int(worker), j]["weight"] for j in graph[int(worker)]}
            assert mine == dict(Counter(listed)), (key, worker)


@pytest.mark.parametrize("name", sorted(topology.GRAPHS))
@pytest.mark.parametrize("rate", [0.5, 3.0])
def test_rates_add_up(name: str, rate: float) -> None:
    """n rate / 2 communications per unit of time in all; on regular graphs `rate` of them for every worker."""
    graph = topology.build(name, 16, seed=3)
    rates = topology.edge_rates(graph, rate)
    assert set(rates) == {(min(e), max(e)) for e in graph.edges}
    assert sum(rates.values()) == pytest.approx(16 * rate / 2)
    if name in REGULAR:
        totals = [sum(v for edge, v in rates.items() if w in edge) for w in range(16)]
        assert totals == pytest.approx([rate] * 16)


@pytest.mark.parametrize("name", sorted(topology.GRAPHS))
def test_graphs_are_over_the_workers_and_connected(name: str) -> None:
    """Nodes are 0..n-1, no worker talks to itself, everyone is reached, every edge has a multiplicity."""
    graph = topology.build(name, 16, seed=1)
    assert sorted(graph) == list(range(16))
    assert nx.is_connected(graph)
    assert nx.number_of_selfloops(graph) == 0
    assert all(data["weight"] >= 1 for _, _, data in graph.edges(data=True))


@pytest.mark.parametrize(
    ("name", "workers", "edges"),
    [
        ("ring", 7, 7),
        ("path", 7, 6),
        ("star", 7, 6),
        ("complete", 7, 21),
        ("torus", 12, 24),
        ("torus", 16, 32),
        ("hypercube", 16, 32),
        ("exponential", 16, 56),
    ],
)
def test_number_of_edges(name: str, workers: int, edges: int) -> None:
    """Each graph has the edges of its definition."""
    assert topology.build(name, workers).number_of_edges() == edges


def test_random_graph_is_a_function_of_its_seed() -> None:
    """The same seed gives the same graph, another seed another."""
    first, again, other = (set(topology.build("erdos_renyi", 32, seed=s).edges) for s in (5, 5, 6))
    assert first == again
    assert first != other


@given(graph=connected(), rate=st.floats(0.1, 10))
def test_laplacian_is_one(graph: nx.Graph, rate: float) -> None:
    """Rows sum to zero, symmetric, positive semidefinite, trace = twice the total rate."""
    matrix = topology.laplacian(graph, rate)
    scale = np.abs(matrix).max()
    np.testing.assert_allclose(matrix.sum(1), 0, atol=1e-12 * scale)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > -1e-12 * scale
    assert np.trace(matrix) == pytest.approx(2 * sum(topology.edge_rates(graph, rate).values()))


@given(graph=connected(), rate=st.floats(0.1, 10))
def test_chi_of_any_graph(graph: nx.Graph, rate: float) -> None:
    """0 < chi2 <= chi1, both scale with 1/rate, and chi2 agrees with the pseudoinverse."""
    chi1, chi2 = topology.chi(graph, rate)
    assert 0 < chi2 <= chi1 * (1 + 1e-9)
    assert topology.chi(graph) == pytest.approx((chi1 * rate, chi2 * rate), rel=1e-9)
    inverse = np.linalg.pinv(topology.laplacian(graph, rate))
    nodes = sorted(graph)
    assert nodes == list(range(len(nodes)))
    resistances = [inverse[i, i] + inverse[j, j] - 2 * inverse[i, j] for i, j in graph.edges]
    assert chi2 == pytest.approx(max(resistances) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "workers", "setting", "word"),
    [
        ("circle", 8, "graph", "ring"),
        ("ring", 2, "workers", "at least 3"),
        ("ring", 0, "workers", "at least 3"),
        ("complete", 1, "workers", "at least 2"),
        ("path", -4, "workers", "at least 2"),
        ("ring", 4.0, "workers", "least"),
        ("exponential", 12, "workers", "power of two"),
        ("hypercube", 6, "workers", "power of two"),
        ("torus", 7, "workers", "product"),
        ("torus", 2, "workers", "at least 4"),
    ],
)
def test_impossible_graphs_are_refused(name: str, workers: Any, setting: str, word: str) -> None:
    """One line that names the setting, its value and what would be right."""
    with pytest.raises(SettingError) as caught:
        topology.build(name, workers)
    message = str(caught.value)
    value = name if setting == "graph" else workers
    assert message.startswith(f"{setting} = {value!r}: ")
    assert word in message
    assert "\n" not in message


def test_a_power_of_two_nearby_is_suggested() -> None:
    """12 workers: 8 or 16 would work."""
    with pytest.raises(SettingError, match="8 or 16"):
        topology.build("exponential", 12)


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("function", [topology.edge_rates, topology.laplacian, topology.chi])
def test_impossible_rates_are_refused(function: Any, rate: float) -> None:
    """A rate that is not a positive number is named with its value on one line."""
    with pytest.raises(SettingError) as caught:
        function(topology.build("ring", 4), rate)
    assert str(caught.value).startswith(f"rate = {rate!r}: ")
    assert "\n" not in str(caught.value)


def test_a_disconnected_graph_has_no_constants() -> None:
    """Two pairs that never meet are refused."""
    with pytest.raises(SettingError, match="connected"):
        topology.chi(nx.Graph([(0, 1), (2, 3)]))


def test_a_numpy_number_of_workers_builds_the_same_graph() -> None:
    """A NumPy integer, as it comes out of a table, is as good as Python's."""
    assert set(topology.build("ring", np.int64(8)).edges) == set(topology.build("ring", 8).edges)
