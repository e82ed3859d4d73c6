"""A²CiD² event by event, as the paper writes it: the version to read first, and the one that faster ones must equal.

Worker i holds `x[i]` and the auxiliary variable `x_tilde[i]`, as of its last event. An event first lets the time since
then pass (`mix`), then takes a gradient step or averages with a peer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlocked.gossip.momentum import Constants


def replay(
    events: Iterable[Sequence[Any]], x0: Any, constants: Constants, lr: float, dynamics: str = "exact"
) -> tuple[Tensor, Tensor]:
    """Run given events one by one: returns `(x, x_tilde)`, float64 (n, d), each worker as of its last event.

    `events`, in order of time: `("gradient", t, i, g)` with the gradient g (d,), plain SGD; or
    `("communication", t, i, j)`. `x0`: (n, d), also the start of x_tilde. `ValueError` for anything else.
    """
    x = torch.as_tensor(np.asarray(x0), dtype=torch.float64).clone()
    x_tilde, last = x.clone(), [0.0] * len(x)

    def mix(i: int, t: float) -> None:
        """The exact solution of d(x, x~) = eta (x~ - x, x - x~) dt since the worker's last event."""
        if t < last[i]:
            raise ValueError(f"time runs forward: elapsed = {t - last[i]}")
        pull = (1 - math.exp(-2 * constants.eta * (t - last[i]))) / 2 * (x_tilde[i] - x[i])
        x[i], x_tilde[i], last[i] = x[i] + pull, x_tilde[i] - pull, t

    def move(i: int, step: Tensor, step_tilde: Tensor) -> None:
        """The auxiliary variable of the baseline stays where it is."""
        x[i] -= step
        x_tilde[i] -= step_tilde * constants.momentum

    for kind, t, i, other in events:
        if kind == "gradient":
            mix(i, t)
            step = lr * torch.as_tensor(other, dtype=torch.float64)
            move(i, step, step)
        elif kind == "communication":
            before = x[[i, other]]
            mix(i, t)
            mix(other, t)
            mixed = x[[i, other]]
            sent = before if dynamics == "released" and constants.momentum else mixed
            for worker, difference in ((i, mixed[0] - sent[1]), (other, mixed[1] - sent[0])):
                move(worker, constants.alpha * difference, constants.alpha_tilde * difference)
        else:
            raise ValueError(f"event {kind!r}: must be 'gradient' or 'communication'")
    return x, x_tilde
