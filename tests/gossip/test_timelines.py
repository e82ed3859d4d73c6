"""Time lines: the synchronous and the asynchronous picture of the same gradients."""

from __future__ import annotations

import numpy as np
import pytest

from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.gossip.schedule import COMMUNICATION, GRADIENT
from unlocked.papers.acid.figures import asynchronous_trace, synchronous_trace


def test_traces_show_the_same_gradients() -> None:
    """They are drawn from one schedule; nobody waits in the asynchronous one."""
    events = schedules.poisson(topology.build("ring", 4), 1.0, 200, 0)
    free, bound = asynchronous_trace(events, 20.0), synchronous_trace(events, 20.0, 0.5)
    first = []
    for worker, own in free[free.kind == "gradient"].groupby("worker"):
        times = events.time[(events.kind == GRADIENT) & (events.i == worker)]
        first.append(times[0])
        np.testing.assert_allclose(own.start, [0, *times[times < 20.0]])
        np.testing.assert_allclose(own.end, [*times[times < 20.0], 20.0])
    averaging = free[free.kind == "averaging"]
    assert len(averaging) == ((events.kind == COMMUNICATION) & (events.time < 20.0)).sum()
    assert (averaging.start == averaging.end).all()
    assert (bound.end <= 20.0).all()
    for _, own in bound.groupby("worker"):
        np.testing.assert_allclose(own.start.to_numpy()[1:], own.end.to_numpy()[:-1])
    begun = bound[(bound.kind == "gradient") & (bound.start == 0)].set_index("worker").end
    np.testing.assert_allclose(begun, first)
    starts = bound[(bound.kind == "communication")].groupby("start").size()
    assert (starts == 4).all()
    assert starts.index[0] == pytest.approx(max(first))
