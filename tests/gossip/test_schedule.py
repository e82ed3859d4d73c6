"""The events of a run: the laws of the Poisson clocks, levels and cuts."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.gossip.schedule import COMMUNICATION, GRADIENT, Schedule


@st.composite
def small_schedules(draw: st.DrawFn) -> Schedule:
    """Poisson events of 3 to 9 workers."""
    graph = topology.build(draw(st.sampled_from(("ring", "complete", "star", "path"))), draw(st.integers(3, 9)))
    rate, gradients = draw(st.sampled_from((0.3, 1.0, 4.0))), draw(st.integers(1, 60))
    return schedules.poisson(graph, rate, gradients, draw(st.integers(0, 10_000)))


@pytest.mark.parametrize("name", topology.GRAPHS)
@pytest.mark.parametrize("rate", [0.5, 2.0])
def test_counts_follow_the_theory(name: str, rate: float) -> None:
    """Gradients per worker and communications per edge lie within 5 sigma of their expectation, and vary."""
    workers, gradients = 16, 40_000
    graph = topology.build(name, workers)
    events = schedules.poisson(graph, rate, gradients, seed=7)
    duration = events.time[-1]
    assert duration == pytest.approx(gradients / workers, abs=5 * gradients**0.5 / workers)
    per_worker = events.gradients_per_worker()
    assert per_worker.sum() == events.gradients == gradients
    expected = gradients / workers
    assert np.abs(per_worker - expected).max() < 5 * expected**0.5
    assert per_worker.std() > 0.3 * expected**0.5
    counted, rates = events.communications_per_edge(), topology.edge_rates(graph, rate)
    assert set(counted) == set(rates)
    z = np.array([(counted[e] - rates[e] * duration) / (rates[e] * duration) ** 0.5 for e in rates])
    assert np.abs(z).max() < 5
    assert 0.3 < (z**2).mean() < 2.5  # chi-square over the edges: neither too wild nor too tame


def test_waiting_times_are_exponential() -> None:
    """Mean and deviation of one worker's waiting times are both 1, and of all communications both 2/(n rate)."""
    events = schedules.poisson(topology.build("ring", 8), 2.0, 40_000, seed=1)
    for times, mean in (
        (events.time[(events.kind == GRADIENT) & (events.i == 3)], 1.0),
        (events.time[events.kind == COMMUNICATION], 2 / (8 * 2.0)),
    ):
        waits = np.diff(times)
        assert waits.mean() == pytest.approx(mean, rel=5 / len(waits) ** 0.5)
        assert waits.std() == pytest.approx(mean, rel=10 / len(waits) ** 0.5)


@given(events=small_schedules())
def test_a_schedule_is_well_formed(events: Schedule) -> None:
    """Times ascend, the last event is a gradient, peers are distinct workers, gradients have none."""
    talks = events.kind == COMMUNICATION
    assert (np.diff(events.time) >= 0).all()
    assert events.time[0] > 0
    assert events.kind[-1] == GRADIENT
    assert (events.j[~talks] == -1).all()
    assert (events.i[talks] != events.j[talks]).all()
    assert events.i.min() >= 0
    assert max(events.i.max(), events.j.max()) < events.workers
    assert len(events) == events.gradients + sum(events.communications_per_edge().values())


def test_a_longer_schedule_starts_like_a_shorter_one() -> None:
    graph = topology.build("ring", 4)
    short, long = (schedules.poisson(graph, 1.0, n, seed=2) for n in (50, 100))
    np.testing.assert_allclose(short.time[short.kind == GRADIENT], long.time[long.kind == GRADIENT][:50])


@given(events=small_schedules(), bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_levels_keep_what_matters(events: Schedule, bounds: tuple[float, float]) -> None:
    """Levels cover a range once, hold no worker twice, keep every worker's own order, and make nobody wait longer."""
    start, stop = sorted(int(b * len(events)) for b in bounds)
    seen: list[int] = []
    order: dict[int, list[int]] = {w: [] for w in range(events.workers)}
    before: set[int] | None = None
    for gradients, talks in schedules.levels(events, range(start, stop)):
        assert (events.kind[gradients] == GRADIENT).all()
        assert (events.kind[talks] == COMMUNICATION).all()
        members = [*gradients.tolist(), *talks.tolist()]
        busy = [w for k in members for w in (events.i[k], events.j[k]) if w >= 0]
        assert members
        assert len(busy) == len(set(busy))
        assert before is None or all({events.i[k], events.j[k]} & before for k in members)
        before = set(busy)
        seen += members
        for k in members:
            for worker in {int(events.i[k]), int(events.j[k])} - {-1}:
                order[worker].append(k)
    assert sorted(seen) == list(range(start, stop))
    assert all(mine == sorted(mine) for mine in order.values())


def test_levels_run_together_what_can() -> None:
    """On a large ring a level holds many gradients on average."""
    events = schedules.poisson(topology.build("ring", 64), 1.0, 6400, seed=0)
    sizes = [len(gradients) for gradients, _ in schedules.levels(events, range(len(events)))]
    assert np.mean([s for s in sizes if s]) > 10


@given(events=small_schedules(), data=st.data())
def test_cuts_end_at_their_gradient(events: Schedule, data: Any) -> None:
    """Ranges are consecutive; each ends right after the gradient that completes its number, the last with all."""
    counts = sorted(data.draw(st.sets(st.integers(0, events.gradients), max_size=6)) | {events.gradients})
    ranges = events.cut(counts)
    assert len(ranges) == len(counts)
    assert (ranges[0].start, ranges[-1].stop) == (0, len(events))
    assert all(a.stop == b.start for a, b in pairwise(ranges))
    for span, count in zip(ranges, counts, strict=True):
        assert (events.kind[: span.stop] == GRADIENT).sum() == count
        assert count == 0 or events.kind[span.stop - 1] == GRADIENT


def test_counts_by_hand() -> None:
    """Pairs are counted whichever way round they are written."""
    i, j = np.array([0, 1, 2, 2], np.int32), np.array([1, 0, -1, 1], np.int32)
    events = Schedule(3, np.array([1, 1, 0, 1], np.uint8), np.arange(4.0), i, j)
    assert events.communications_per_edge() == {(0, 1): 2, (1, 2): 1}
    assert events.gradients_per_worker().tolist() == [0, 0, 1]
