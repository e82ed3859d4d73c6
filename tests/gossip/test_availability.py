"""The pairing by availability: what it promises about workers, edges and debts, and what rates come of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

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
from unlocked.gossip.schedule import COMMUNICATION, GRADIENT, OWED, Schedule

GRAPHS = tuple(topology.GRAPHS)
RATES = (0.5, 1.0, 2.0)


def talks(events: Schedule) -> list[tuple[float, int, int]]:
    """Every averaging: its end and its two workers."""
    chosen = events.kind == COMMUNICATION
    columns = (events.time[chosen].tolist(), events.i[chosen].tolist(), events.j[chosen].tolist())
    return list(zip(*columns, strict=True))


def owed_so_far(events: Schedule, rate: float, law: str, seed: int) -> Iterator[tuple[int, int, list[int], list[int]]]:
    """After every event: its kind and first worker, and what every worker has owed and done until then."""
    debts = [schedules.communications_owed(law, rate, seed, w) for w in range(events.workers)]
    owed, done = [0] * events.workers, [0] * events.workers
    for kind, i, j in zip(events.kind, events.i.tolist(), events.j.tolist(), strict=True):
        if kind == GRADIENT:
            owed[i] += next(debts[i])
        else:
            done[i] += 1
            done[j] += 1
        yield int(kind), i, owed, done


def effective_rate(events: Schedule) -> float:
    """Averagings per worker and gradient."""
    return 2 * len(talks(events)) / events.gradients


@pytest.mark.parametrize("message", [0.0, 0.3])
@pytest.mark.parametrize("owed", OWED)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", GRAPHS)
def test_promises(name: str, rate: float, owed: str, message: float) -> None:
    """Only edges, one averaging at a time, never more than owed, and nobody waits beside a willing neighbour."""
    graph = topology.build(name, 16)
    events = schedules.availability(graph, rate, 16 * 60, 3, message=message, owed=owed)
    assert all(graph.has_edge(i, j) for _, i, j in talks(events))
    ends: dict[int, list[float]] = {}
    for end, i, j in talks(events):
        ends.setdefault(i, []).append(end)
        ends.setdefault(j, []).append(end)
    for own in ends.values():
        assert (np.diff(own) >= message - 1e-9).all()  # an averaging takes `message` and ends at its event
    for _, _, due, done in owed_so_far(events, rate, owed, 3):
        assert all(d <= o for d, o in zip(done, due, strict=True))
    if message == 0:
        # what the last gradient made due takes place after the end
        waiting = [w for w in range(16) if due[w] > done[w] and w != events.i[-1]]
        assert nx.is_empty(graph.subgraph(waiting)), "two neighbours owe and do not talk"
    assert talks(events)[-1][0] > 0.8 * events.time[-1]


@pytest.mark.parametrize("owed", OWED)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("name", "least"), [("ring", 0.88), ("complete", 0.97), ("exponential", 0.97)])
def test_effective_rates(name: str, least: float, rate: float, owed: str) -> None:
    """Nearly all that is owed takes place: on the ring a worker needs one of two neighbours to owe as well."""
    events = schedules.availability(topology.build(name, 16), rate, 16 * 200, 1, owed=owed)
    assert least * rate < effective_rate(events) < 1.05 * rate
    if owed == "deterministic":
        assert effective_rate(events) <= rate


def test_time_of_messages_costs_little_where_workers_owe_little() -> None:
    """Averagings happen beside gradients: a third of a gradient time each lowers the rate by little."""
    graph = topology.build("complete", 16)
    swift, slow = (effective_rate(schedules.availability(graph, 1.0, 3200, 1, message=m)) for m in (0.0, 0.3))
    assert slow == pytest.approx(swift, rel=0.02)


def test_a_link_that_is_too_slow_limits_the_rate() -> None:
    """With messages of two gradient times no worker averages more than half as often as it computes."""
    events = schedules.availability(topology.build("complete", 8), 2.0, 1600, 1, message=2.0)
    assert 0.4 < effective_rate(events) < 0.51


def test_one_star() -> None:
    """On a star the centre takes part in every averaging, so its debt limits all others'."""
    events = schedules.availability(topology.build("star", 9), 1.0, 1800, 0, owed="deterministic")
    assert all(0 in (i, j) for _, i, j in talks(events))
    centre = events.gradients_per_worker()[0]
    assert centre - 1 <= len(talks(events)) <= centre


# common random numbers


def arrays(events: Schedule) -> list[np.ndarray]:
    return [events.kind, events.time, events.i, events.j]


@pytest.mark.parametrize("pairing", list(schedules.PAIRINGS))
def test_same_seed_same_events(pairing: str) -> None:
    """Twice the same seed gives the same events, another seed others."""
    clock = Clock(law="gamma", away_share=0.2)
    draw = [schedules.draw(pairing, topology.build("torus", 12), 1.0, 500, s, clock=clock) for s in (0, 0, 1)]
    for one, two in zip(arrays(draw[0]), arrays(draw[1]), strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(draw[0].time, draw[2].time)


@pytest.mark.parametrize("clock", [Clock(), Clock(law="gamma", slow_workers=2, away_share=0.2)])
def test_gradients_do_not_depend_on_the_pairing(clock: Clock) -> None:
    """Who computes when is the same for both pairings, every debt, graph, rate and message time."""
    reference = clocks.gradient_events(clock, 8, 300, 4)
    options: list[tuple[str, str, float, dict[str, Any]]] = [
        ("poisson", "ring", 1.0, {}),
        ("availability", "ring", 1.0, {}),
        ("availability", "complete", 2.0, {"message": 0.4}),
        ("availability", "star", 0.5, {"owed": "deterministic"}),
    ]
    for pairing, graph, rate, more in options:
        events = schedules.draw(pairing, topology.build(graph, 8), rate, 300, 4, clock=clock, **more)
        computes = events.kind == GRADIENT
        np.testing.assert_array_equal(events.time[computes], reference[0])
        np.testing.assert_array_equal(events.i[computes], reference[1])


def test_methods_share_gradients(tiny_run: Any, data_of: Any) -> None:
    """acid and baseline meet the same events under availability too; all-reduce the same durations."""
    from unlocked.gossip import allreduce, virtual

    settings = {"pairing": "availability", "clock.law": "gamma", "clock.latency": 0.02}
    data = data_of(tiny_run(settings))
    one, two = (virtual.Training(tiny_run(settings | {"method": m}), data) for m in ("acid", "baseline"))
    for mine, other in zip(arrays(one.events), arrays(two.events), strict=True):
        np.testing.assert_array_equal(mine, other)
    together = allreduce.Training(tiny_run({"method": "allreduce", "clock.law": "gamma"}), data)
    computes = one.events.kind == GRADIENT
    firsts = [one.events.time[computes & (one.events.i == w)][0] for w in range(4)]
    assert together.ends[1] == pytest.approx(max(firsts))


# absences


@pytest.mark.parametrize("pairing", list(schedules.PAIRINGS))
def test_only_present_workers_average(pairing: str) -> None:
    """Both workers of an averaging are there when it starts, and gradients end where workers are."""
    clock = Clock(law="gamma", away_share=0.3, away_time=8.0)
    message = 0.25 if pairing == "availability" else 0.0
    events = schedules.draw(pairing, topology.build("ring", 8), 1.0, 1600, 2, clock=clock, message=message)
    horizon = events.time[-1]
    gaps = [list(itertools.takewhile(lambda g: g[0] < horizon, clocks.absences(clock, w, 2))) for w in range(8)]

    def there(worker: int, time: float) -> bool:
        return not any(leaves <= time < back for leaves, back in gaps[worker])

    found = talks(events)
    assert len(found) > 200
    assert all(there(i, end - message) and there(j, end - message) for end, i, j in found)
    shares = [sum(min(back, horizon) - leaves for leaves, back in own) / horizon for own in gaps]
    assert np.mean(shares) == pytest.approx(0.3, abs=0.1)
    gradients = events.gradients_per_worker() / horizon
    np.testing.assert_allclose(gradients, 1 - np.array(shares), atol=0.06)


@pytest.mark.parametrize("name", GRAPHS)
def test_absences_lead_to_no_deadlock(name: str) -> None:
    """Two neighbours who both waited while one of them was away find each other afterwards."""
    clock = Clock(away_share=0.4, away_time=5.0)
    events = schedules.availability(topology.build(name, 4), 1.0, 4000, 0, clock=clock)
    halves = np.searchsorted([end for end, _, _ in talks(events)], events.time[-1] / 2)
    assert len(talks(events)) - halves > 0.7 * halves > 0
    if name in ("ring", "complete", "exponential"):
        assert effective_rate(events) > 0.8


@given(
    name=st.sampled_from(GRAPHS),
    rate=st.floats(0.05, 4),
    owed=st.sampled_from(OWED),
    message=st.sampled_from((0.0, 0.1, 3.0)),
    share=st.sampled_from((0.0, 0.5)),
    seed=st.integers(0, 1000),
)
def test_any_setting_ends(name: str, rate: float, owed: str, message: float, share: float, seed: int) -> None:
    """Whatever is asked for, there is a schedule with all gradients, in order of time."""
    clock = Clock(away_share=share, away_time=3.0)
    events = schedules.availability(topology.build(name, 4), rate, 80, seed, clock, message, owed)
    assert events.gradients == 80
    assert events.kind[-1] == GRADIENT
    assert (np.diff(events.time) >= 0).all()
    assert all(
        d <= o for _, _, due, done in owed_so_far(events, rate, owed, seed) for d, o in zip(done, due, strict=True)
    )


# debts and refusals


@pytest.mark.parametrize("rate", [0.3, 1.0, 1.5, 2.0])
def test_communications_owed(rate: float) -> None:
    """Both laws owe `rate` on average; deterministic is never more than one off, Poisson has Poisson's variance."""
    found = {
        law: np.array(list(itertools.islice(schedules.communications_owed(law, rate, 0, 1), 4000))) for law in OWED
    }
    assert np.abs(np.cumsum(found["deterministic"]) - rate * np.arange(1, 4001)).max() < 1
    assert found["poisson"].mean() == pytest.approx(rate, abs=5 * (rate / 4000) ** 0.5)
    assert found["poisson"].var() == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize(
    ("pairing", "options", "setting"),
    [
        ("random", {}, "pairing"),
        ("poisson", {"message": 0.1}, "pairing"),
        ("availability", {"owed": "gamma"}, "owed"),
    ],
)
def test_refusals(pairing: str, options: dict[str, Any], setting: str) -> None:
    """Unknown laws, and messages that take time under clocks that have none, are refused in one line."""
    with pytest.raises(SettingError) as error:
        schedules.draw(pairing, topology.build("ring", 4), 1.0, 10, 0, **options)
    assert error.value.setting == setting
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("pairing", list(schedules.PAIRINGS))
@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rates_must_be_positive(pairing: str, rate: float) -> None:
    """No law takes a rate that is not a positive number."""
    with pytest.raises(SettingError, match="rate"):
        schedules.draw(pairing, topology.build("ring", 4), rate, 10, 0)


# Poisson clocks against theory


@pytest.mark.parametrize("name", GRAPHS)
def test_poisson_edges_by_chi_square(name: str) -> None:
    """Averagings per edge, pooled over seeds, fit lambda_ij times the time by a chi-square test at 1e-4."""
    from scipy.stats import chi2

    graph, statistic, edges = topology.build(name, 16), 0.0, 0
    rates = topology.edge_rates(graph, 1.0)
    for seed in range(3):
        events = schedules.poisson(graph, 1.0, 16_000, seed)
        counted = events.communications_per_edge()
        for edge, value in rates.items():
            wanted = value * events.time[-1]
            statistic += (counted.get(edge, 0) - wanted) ** 2 / wanted
            edges += 1
        total = 2 * len(talks(events)) / events.gradients
        assert total == pytest.approx(1.0, abs=5 * (2 / events.gradients) ** 0.5 + 5 / events.gradients**0.5)
    assert chi2.ppf(1e-4, edges) < statistic < chi2.ppf(1 - 1e-4, edges)


# traces


def test_traces_show_the_same_gradients() -> None:
    """Synchronous and asynchronous time lines are drawn from one schedule; nobody waits in the asynchronous one."""
    events = schedules.poisson(topology.build("ring", 4), 1.0, 200, 0)
    free = schedules.asynchronous_trace(events, 20.0)
    for worker, own in free[free.kind == "gradient"].groupby("worker"):
        np.testing.assert_allclose(own.start.to_numpy()[1:], own.end.to_numpy()[:-1])
        assert own.start.iloc[0] == 0
        assert own.end.iloc[-1] == 20.0
        times = events.time[(events.kind == GRADIENT) & (events.i == worker)]
        np.testing.assert_allclose(own.end.to_numpy()[:-1], times[times < 20.0])
    averaging = free[free.kind == "averaging"]
    assert len(averaging) == sum(end < 20.0 for end, _, _ in talks(events))
    assert (averaging.start == averaging.end).all()
    bound = schedules.synchronous_trace(events, 20.0, 0.5)
    assert (
        bound.groupby("worker").apply(lambda own: (own.end - own.start).sum(), include_groups=False) <= 20.0 + 1e-9
    ).all()
    first = bound[(bound.kind == "gradient") & (bound.start == 0)].set_index("worker").end
    np.testing.assert_allclose(
        first.to_numpy(), [events.time[(events.kind == GRADIENT) & (events.i == w)][0] for w in range(4)]
    )
    starts = bound[(bound.kind == "communication")].groupby("start").size()
    assert (starts == 4).all()
    assert starts.index[0] == pytest.approx(first.max())
