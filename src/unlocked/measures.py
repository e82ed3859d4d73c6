"""Single numbers of one run: what claims and figures compare between runs.

On the road beside the items: records in, a number out. No trainer and no torch here.
"""

from __future__ import annotations

import numpy as np

from unlocked.record import Record


def settled(record: Record, metric: str = "consensus_distance", index: int = -1) -> float:
    """Mean of a metric over the second half of a run, in gradients or, where there are none, in time."""
    rows = record.series(metric, index)
    clock = rows["step"] if rows["step"].max() > 0 else rows["virtual_time"]
    return float(rows["value"][clock >= clock.max() / 2].mean())


def settled_mean(record: Record, metric: str) -> float:
    """Mean of a metric over all its indices (workers or blocks) and the second half of a run."""
    indices = record.history.loc[record.history["metric"] == metric, "index"].unique()
    return float(np.mean([settled(record, metric, int(index)) for index in indices]))


def consensus(record: Record) -> float:
    """The consensus distance of a run as one number.

    A training: mean over its evaluations after the start, evenly spaced in gradients. Its learning rate falls in the
    second half, so a mean over that half alone would mostly say how fast a method forgets earlier distances. A study,
    which has one learning rate: mean over the second half.
    """
    if record.config.study != "training":
        return settled(record)
    rows = record.series("consensus_distance")
    return float(rows["value"][rows["step"] > 0].mean())


def geometric_mean(record: Record, metric: str) -> float:
    """Geometric mean over all indices of a positive metric's last values: no index outweighs the others by its size."""
    return float(np.exp(np.log(record.values(metric)).mean()))


def final(record: Record, metric: str) -> float:
    """A metric at the end of a run."""
    return float(record.summary["metrics"][metric])


def lowest(record: Record, metric: str = "train_loss") -> float:
    """The smallest value that a metric takes in a run."""
    return float(record.series(metric)["value"].min())


def time_to(record: Record, loss: float) -> float:
    """Virtual time at which the workers' training loss first falls to `loss`, interpolated; infinite if never."""
    rows = record.series("train_loss")
    below = np.flatnonzero(rows["value"] <= loss)
    if not len(below):
        return float("inf")
    k = int(below[0])
    if k == 0:
        return float(rows["virtual_time"][0])
    (t0, t1), (v0, v1) = rows["virtual_time"][k - 1 : k + 1], rows["value"][k - 1 : k + 1]
    return float(t0 + (v0 - loss) / (v0 - v1) * (t1 - t0))
