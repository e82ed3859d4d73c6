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
    """Keys are like `ring/n=4/rate=0.5`."""
    ours = {key: case for key, case in golden[part].items() if not key.startswith(OTHER_CONVENTIONS)}
    assert len(ours) >= 18
    for key, expected in ours.items():
        name, workers, rate = key.split("/")
        graph = topology.build(OURS.get(name, name), int(workers.removeprefix("n=")))
        chi = topology.chi(graph, float(rate.removeprefix("rate=")))
        assert chi == pytest.approx((expected["chi1"], expected["chi2"]), rel=1e-9), key


@pytest.mark.parametrize(
    ("name", "workers", "chi"),
    [("ring", n, (1 / (1 - math.cos(2 * math.pi / n)), (n - 1) / n)) for n in (3, 8, 33, 64)]
    + [("complete", n, ((n - 1) / n,) * 2) for n in (2, 5, 64)]
    + [("exponential", 64, (3, 1.02407648))],  # counts the antipode twice
)
@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_closed_forms(name: str, workers: int, rate: float, chi: tuple[float, float]) -> None:
    expected = [value / rate for value in chi]
    assert topology.chi(topology.build(name, workers), rate) == pytest.approx(expected, rel=1e-8)


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
    graph = topology.build(name, 16, seed=1)
    assert sorted(graph) == list(range(16))
    assert nx.is_connected(graph)
    assert nx.number_of_selfloops(graph) == 0
    assert all(weight >= 1 for _, _, weight in graph.edges(data="weight"))


@pytest.mark.parametrize(
    ("name", "workers", "edges"),
    [("ring", 7, 7), ("path", 7, 6), ("star", 7, 6), ("complete", 7, 21), ("torus", 12, 24), ("torus", 16, 32),
     ("hypercube", 16, 32), ("exponential", 16, 56), ("ring", np.int64(8), 8)],
)  # fmt: skip
def test_number_of_edges(name: str, workers: int, edges: int) -> None:
    assert topology.build(name, workers).number_of_edges() == edges


def test_random_graph_is_a_function_of_its_seed() -> None:
    first, again, other = (set(topology.build("erdos_renyi", 32, seed=s).edges) for s in (5, 5, 6))
    assert first == again
    assert first != other


def test_random_graphs_stay_what_they_are() -> None:
    """Records name a graph by its seed: the same edges in every version."""
    edges = "02 04 06 14 15 16 17 23 24 25 27 35 37 56 57 67"
    assert sorted(topology.build("erdos_renyi", 8, 5).edges) == [(int(a), int(b)) for a, b in edges.split()]


@given(graph=connected(), rate=st.floats(0.1, 10))
def test_laplacian_and_chi_of_any_graph(graph: nx.Graph, rate: float) -> None:
    """Rows sum to zero, symmetric, positive semidefinite; 0 < chi2 <= chi1, both scale with 1/rate."""
    matrix = topology.laplacian(graph, rate)
    scale = np.abs(matrix).max()
    np.testing.assert_allclose(matrix.sum(1), 0, atol=1e-12 * scale)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert np.linalg.eigvalsh(matrix).min() > -1e-12 * scale
    assert np.trace(matrix) == pytest.approx(2 * sum(topology.edge_rates(graph, rate).values()))
    chi1, chi2 = topology.chi(graph, rate)
    assert 0 < chi2 <= chi1 * (1 + 1e-9)
    assert topology.chi(graph) == pytest.approx((chi1 * rate, chi2 * rate), rel=1e-9)
    inverse = np.linalg.pinv(matrix)
    resistances = [inverse[i, i] + inverse[j, j] - 2 * inverse[i, j] for i, j in graph.edges]
    assert chi2 == pytest.approx(max(resistances) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "workers", "setting", "word"),
    [
        ("circle", 8, "graph", "ring"),
        ("ring", 2, "workers", "at least 3"),
        ("complete", 1, "workers", "at least 2"),
        ("path", -4, "workers", "at least 2"),
        ("ring", 4.0, "workers", "least"),
        ("exponential", 12, "workers", "8 or 16"),
        ("hypercube", 6, "workers", "power of two"),
        ("torus", 7, "workers", "product"),
        ("torus", 2, "workers", "at least 4"),
    ],
)
def test_impossible_graphs_are_refused(name: str, workers: Any, setting: str, word: str) -> None:
    with pytest.raises(SettingError, match=word) as caught:
        topology.build(name, workers)
    assert (caught.value.setting, caught.value.value) == (setting, name if setting == "graph" else workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rate", [0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("function", [topology.edge_rates, topology.laplacian, topology.chi])
def test_impossible_rates_are_refused(function: Any, rate: float) -> None:
    with pytest.raises(SettingError, match=f"^rate = {rate!r}: "):
        function(topology.build("ring", 4), rate)


def test_a_disconnected_graph_has_no_constants() -> None:
    with pytest.raises(SettingError, match="connected"):
        topology.chi(nx.Graph([(0, 1), (2, 3)]))


# registration


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, topology.Graph]:
    """The graphs, to be changed during one test."""
    monkeypatch.setattr(topology, "GRAPHS", dict(topology.GRAPHS))
    return topology.GRAPHS


def variant(name: str, build: Any = nx.wheel_graph, doc: str | None = "A graph.") -> Any:
    """A function to register."""

    def function(workers: int, _seed: int) -> nx.Graph:
        return build(workers)

    function.__name__, function.__doc__ = name, doc
    return function


def test_a_new_graph_is_one_function(registry: dict[str, topology.Graph]) -> None:
    topology.graph("Wheel", least=4)(variant("wheel"))
    assert registry["wheel"].title == "Wheel"
    assert topology.build("wheel", 6).degree[0] == 5
    assert topology.chi(topology.build("wheel", 6))[0] > 0
    with pytest.raises(SettingError, match="at least 4"):
        topology.check("wheel", 3)


def lonely(workers: int) -> nx.Graph:
    """Without a seed."""
    return nx.path_graph(workers)


@pytest.mark.parametrize(
    ("function", "word"),
    [
        (variant("Wheel-2"), "lower-case"),
        (variant("ring"), "another graph"),
        (variant("spokes", doc=None), "docstring"),
        (lonely, r"must take \(workers, seed\)"),
        (variant("pairs", lambda n: nx.Graph([(0, 1), (2, 3)])), "connected"),
        (variant("from_one", lambda n: nx.path_graph(range(1, n + 1))), "over 0..3"),
        (variant("larger", lambda n: nx.path_graph(n + 1)), "over 0..3"),
    ],
)
def test_wrong_graphs_are_refused_when_registered(registry: dict[str, Any], function: Any, word: str) -> None:
    before = dict(registry)
    with pytest.raises(SettingError, match=word) as caught:
        topology.graph("A title", least=4)(function)
    assert str(caught.value).startswith(f"graph = {function.__name__!r}: ")
    assert "\n" not in str(caught.value)
    assert registry == before
