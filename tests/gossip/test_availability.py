"""The pairing by availability: what it promises about workers, edges and debts, and what rates come of it."""

from __future__ import annotations

import itertools

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlocked.errors import SettingError
from unlocked.gossip import clock as clocks
from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.gossip.clock import Clock
from unlocked.gossip.schedule import COMMUNICATION, GRADIENT, Schedule

GRAPHS = tuple(topology.GRAPHS)
RATES = (0.5, 1.0, 2.0)


def talks(events: Schedule) -> list[tuple[float, int, int]]:
    """Every averaging: its end and its two workers."""
    own = events.only(events.kind == COMMUNICATION)
    return list(zip(own.time.tolist(), own.i.tolist(), own.j.tolist(), strict=True))


def due(events: Schedule, rate: float, seed: int) -> list[int]:
    """What every worker still owes at the end, after a look at that nobody ever did more than it owed."""
    debts = [schedules.communications_owed(rate, seed, w) for w in range(events.workers)]
    owed = [0] * events.workers
    for kind, i, j in zip(events.kind, events.i.tolist(), events.j.tolist(), strict=True):
        if kind == GRADIENT:
            owed[i] += next(debts[i])
        else:
            owed[i] -= 1
            owed[j] -= 1
            assert min(owed[i], owed[j]) >= 0
    return owed


def effective_rate(graph: str, workers: int, rate: float, message: float = 0.0) -> float:
    """Averagings per worker and gradient."""
    events = schedules.availability(topology.build(graph, workers), rate, workers * 200, 1, message=message)
    return 2 * len(talks(events)) / events.gradients


@pytest.mark.parametrize("message", [0.0, 0.3])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", GRAPHS)
def test_promises(name: str, rate: float, message: float) -> None:
    """Only edges, one averaging at a time, never more than owed, and nobody waits beside a willing neighbour, unless it
    is passed over because other edges are heavier."""
    graph = topology.build(name, 16)
    events = schedules.availability(graph, rate, 16 * 60, 3, message=message)
    assert all(graph.has_edge(i, j) for _, i, j in talks(events))
    for worker in range(16):  # an averaging takes `message` and ends at its event
        assert (np.diff([end for end, *pair in talks(events) if worker in pair]) >= message - 1e-9).all()
    owed = due(events, rate, 3)
    if message == 0 and name != "exponential":
        # what the last gradient made due takes place after the end
        waiting = [w for w in range(16) if owed[w] and w != events.i[-1]]
        assert nx.is_empty(graph.subgraph(waiting)), "two neighbours owe and do not talk"
    assert talks(events)[-1][0] > 0.8 * events.time[-1]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("name", "least"), [("ring", 0.88), ("complete", 0.97), ("exponential", 0.97)])
def test_effective_rates(name: str, least: float, rate: float) -> None:
    """Nearly all that is owed takes place: on the ring a worker needs one of two neighbours to owe as well."""
    assert least * rate < effective_rate(name, 16, rate) < 1.05 * rate


def test_messages_limit_the_rate_only_where_they_are_slow() -> None:
    """A third of a gradient time lowers it little; with two of them nobody averages more often than every second."""
    swift = effective_rate("complete", 16, 1.0)
    assert effective_rate("complete", 16, 1.0, message=0.3) == pytest.approx(swift, rel=0.02)
    assert 0.4 < effective_rate("complete", 8, 2.0, message=2.0) < 0.51


def test_one_star() -> None:
    """On a star the centre takes part in every averaging, so its debt limits all others'."""
    events = schedules.availability(topology.build("star", 9), 1.0, 1800, 0)
    assert all(0 in (i, j) for _, i, j in talks(events))
    debts = schedules.communications_owed(1.0, 0, 0)
    owed = sum(itertools.islice(debts, int(events.gradients_per_worker()[0])))
    assert owed - 1 <= len(talks(events)) <= owed


def test_a_heavier_edge_is_preferred() -> None:
    """Of two waiting neighbours of weights 2 and 1 the lighter is passed over half of the time, and otherwise drawn as
    one of three; a light one alone is passed over as often."""
    graph = nx.Graph()
    graph.add_weighted_edges_from([(0, 1, 2), (0, 2, 1)])
    makers = [schedules.Matchmaker(graph, seed) for seed in range(2000)]
    partners = [[maker.partner_of(worker) for worker in (1, 2, 0)][-1] for maker in makers]
    assert partners.count(1) / 2000 == pytest.approx(5 / 6, abs=5 * (5 / 36 / 2000) ** 0.5)
    alone = [schedules.Matchmaker(graph, seed) for seed in range(2000)]
    partners = [[maker.partner_of(worker) for worker in (2, 0)][-1] for maker in alone]
    assert partners.count(2) / 2000 == pytest.approx(1 / 2, abs=5 * (1 / 4 / 2000) ** 0.5)


def test_heavier_edges_average_more_often_in_proportion() -> None:
    """Nearly: the antipode of the exponential graph counts twice. And every worker still does all that it owes."""
    graph = topology.build("exponential", 16)
    events = schedules.availability(graph, 1.0, 16 * 1000, 0)
    counts = events.communications_per_edge()
    by_weight = {w: np.mean([counts[edge] for edge in counts if graph.edges[edge]["weight"] == w]) for w in (1, 2)}
    assert 1.6 < by_weight[2] / by_weight[1] < 2.1
    assert 2 * sum(counts.values()) / events.gradients > 0.97


# common random numbers


def arrays(events: Schedule) -> list[np.ndarray]:
    return [events.kind, events.time, events.i, events.j]


@pytest.mark.parametrize("pairing", schedules.PAIRINGS)
def test_same_seed_same_events(pairing: str) -> None:
    draw = schedules.PAIRINGS[pairing]
    drawn = [draw(topology.build("torus", 12), 1.0, 500, s, clock=Clock(law="gamma")) for s in (0, 0, 1)]
    for one, two in zip(arrays(drawn[0]), arrays(drawn[1]), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(drawn[0].time, drawn[2].time)


@pytest.mark.parametrize("clock", [Clock(), Clock(law="gamma", slow_workers=2)])
@pytest.mark.parametrize(
    ("pairing", "graph", "rate", "message"),
    [("poisson", "ring", 1.0, 0.0), ("poisson", "exponential", 2.0, 0.0), ("availability", "ring", 1.0, 0.0),
     ("availability", "complete", 2.0, 0.4), ("availability", "star", 0.5, 0.0)],
)  # fmt: skip
def test_gradients_do_not_depend_on_the_pairing(
    clock: Clock, pairing: str, graph: str, rate: float, message: float
) -> None:
    """Who computes when is the same for both pairings, every graph, rate and message time."""
    draw = schedules.PAIRINGS[pairing]
    events = draw(topology.build(graph, 8), rate, 300, 4, clock=clock, message=message)
    own = events.only(events.kind == GRADIENT)
    np.testing.assert_array_equal((own.time, own.i), clocks.gradient_events(clock, 8, 300, 4))


@given(
    name=st.sampled_from(GRAPHS),
    rate=st.floats(0.05, 4),
    message=st.sampled_from((0.0, 0.1, 3.0)),
    seed=st.integers(0, 1000),
)
def test_any_setting_ends(name: str, rate: float, message: float, seed: int) -> None:
    """Whatever is asked for, there is a schedule with all gradients, in order of time."""
    events = schedules.availability(topology.build(name, 4), rate, 80, seed, message=message)
    assert events.gradients == 80
    assert events.kind[-1] == GRADIENT
    assert (np.diff(events.time) >= 0).all()
    due(events, rate, seed)


@pytest.mark.parametrize("rate", [0.3, 1.0, 1.5, 2.0])
def test_communications_owed_have_the_moments_of_a_poisson_law(rate: float) -> None:
    owed = np.array(list(itertools.islice(schedules.communications_owed(rate, 0, 1), 4000)))
    assert owed.mean() == pytest.approx(rate, abs=5 * (rate / 4000) ** 0.5)
    assert owed.var() == pytest.approx(rate, rel=0.15)


def test_messages_take_no_time_under_poisson_clocks() -> None:
    with pytest.raises(SettingError, match="averages in no time"):
        schedules.poisson(topology.build("ring", 4), 1.0, 10, 0, message=0.1)


def test_ties_are_broken_at_random() -> None:
    """With constant gradient times all workers are free at once: anyone may be first."""
    ring, clock = topology.build("ring", 16), Clock(law="constant")
    first = {talks(schedules.availability(ring, 10.0, 32, seed, clock))[0] for seed in range(30)}
    assert len({(i, j) for _, i, j in first}) > 8


def test_a_barrier_costs_time_where_gradients_are_uneven() -> None:
    """None with equal gradients, more with spread, most on the ring; never more than the whole time."""
    ring, complete = (topology.build(name, 16) for name in ("ring", "complete"))

    def idle(graph: nx.Graph, variation: float) -> float:
        return schedules.barrier_idle(graph, 16 * 300, 0, Clock(law="gamma", variation=variation))

    assert schedules.barrier_idle(ring, 16 * 300, 0, Clock(law="constant")) == 0
    assert 0 <= idle(complete, 1.0) < idle(ring, 0.3) < 0.05 < idle(ring, 1.0) < 0.2


def test_two_workers_at_a_barrier_wait_for_one_another() -> None:
    """A pair averages when both are at their k-th gradient; each begins the next when that and its own are over."""
    lost, begun, lengths = 0.0, [0.0, 0.0], [clocks.durations(Clock(), worker, 0) for worker in (0, 1)]
    for _ in range(400):
        met, ends = max(begun), [start + next(own) for start, own in zip(begun, lengths, strict=True)]
        lost += sum(max(0.0, met - end) for end in ends)
        begun = [max(met, end) for end in ends]
    found = schedules.barrier_idle(topology.build("path", 2), 800, 0, Clock())
    assert found == pytest.approx(lost / (2 * max(begun)), rel=0.02)
