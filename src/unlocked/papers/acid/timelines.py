"""Time lines of workers as tables: the same gradients with gossip and under all-reduce."""

from __future__ import annotations

import numpy as np
import pandas as pd

from unlocked.gossip.schedule import COMMUNICATION, GRADIENT, Schedule


def asynchronous_trace(schedule: Schedule, horizon: float) -> pd.DataFrame:
    """What each worker does until `horizon`: rows (worker, kind, start, end, peer).

    `gradient`: from a worker's one gradient event to its next; it computes all the time. `averaging`: a moment, with
    the other worker as `peer`.
    """
    kinds = pd.Series(schedule.kind).map({GRADIENT: "gradient", COMMUNICATION: "averaging"})
    rows = pd.DataFrame({"worker": schedule.i, "kind": kinds, "end": schedule.time, "peer": schedule.j})
    begun = rows.groupby(["worker", "kind"])["end"].shift(fill_value=0.0)
    rows.insert(2, "start", begun.where(kinds == "gradient", rows["end"]))
    return rows[rows["start"] < horizon].assign(end=rows["end"].clip(upper=horizon)).reset_index(drop=True)


def synchronous_trace(schedule: Schedule, horizon: float, averaging: float) -> pd.DataFrame:
    """The same gradient durations under all-reduce: all wait for the slowest, then average for `averaging` units.

    Rows as in `asynchronous_trace`, with kinds `gradient`, `idle` and `communication`.
    """
    gradients = schedule.kind == GRADIENT
    durations = [np.diff(schedule.time[gradients & (schedule.i == w)], prepend=0.0) for w in range(schedule.workers)]
    rows: list[tuple[int, str, float, float, int]] = []
    start = 0.0
    for step in zip(*durations, strict=False):
        barrier = start + max(step)
        for worker, duration in enumerate(step):
            bounds = start, start + duration, barrier, barrier + averaging
            for kind, a, b in zip(("gradient", "idle", "communication"), bounds, bounds[1:], strict=False):
                if a < min(b, horizon):
                    rows.append((worker, kind, a, min(b, horizon), -1))
        start = barrier + averaging
    return pd.DataFrame(rows, columns=["worker", "kind", "start", "end", "peer"])
