"""One number per run, for figures and claims to compare: frames in, a series by run out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from unlocked.items.frames import Frames


def settled(frames: Frames, metric: str) -> pd.Series:
    """Mean of a metric over all its indices and the second half of a run, in gradients or, without any, in time."""
    rows = frames.history[frames.history["metric"] == metric]
    clock = rows["step"].where(rows.groupby("run")["step"].transform("max") > 0, rows["virtual_time"])
    late = rows[clock >= clock.groupby(rows["run"]).transform("max") / 2]
    return late.groupby(["run", "index"])["value"].mean().groupby("run").mean().reindex(frames.runs.index)


def over_training(frames: Frames, metric: str) -> pd.Series:
    """Mean of a metric over a run's evaluations after the start."""
    rows = frames.rows(metric)
    return rows[rows["step"] > 0].groupby("run")["value"].mean().reindex(frames.runs.index)


def consensus(frames: Frames) -> pd.Series:
    """The consensus distance of a run as one number.

    A training: mean over its evaluations after the start, evenly spaced in gradients. Its learning rate falls in the
    second half, so a mean over that half alone would mostly say how fast a method forgets earlier distances. A study,
    which has one learning rate: mean over the second half.
    """
    training = over_training(frames, "consensus_distance")
    return training.where(frames.runs["study"] == "training", settled(frames, "consensus_distance"))


def geometric_mean(frames: Frames, metric: str) -> pd.Series:
    """Geometric mean over all indices of a positive metric's last values: none outweighs the others by its size."""
    return np.exp(np.log(frames.last(metric)).mean(axis=1)).reindex(frames.runs.index)


def mean(frames: Frames, metric: str) -> pd.Series:
    """Mean over all indices of a metric's last values."""
    return frames.last(metric).mean(axis=1).reindex(frames.runs.index)


def lowest(frames: Frames) -> pd.Series:
    """The smallest training loss of the workers."""
    return frames.rows("train_loss").groupby("run")["value"].min().reindex(frames.runs.index)


def time_to(frames: Frames, loss: float) -> pd.Series:
    """Virtual time at which the workers' training loss first falls to `loss`, interpolated; infinite if never."""
    times = {}
    for run, rows in frames.rows("train_loss").groupby("run"):
        time, value = rows["virtual_time"].to_numpy(), rows["value"].to_numpy()
        first = int(np.argmax(value <= loss))
        ends = [first, max(0, first - 1)]
        times[run] = np.interp(loss, value[ends], time[ends]) if value[first] <= loss else np.inf
    return pd.Series(times, index=frames.runs.index, dtype=float)


def exponent(x: pd.Series, y: pd.Series) -> float:
    """Least-squares slope of log(y) against log(x)."""
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])
