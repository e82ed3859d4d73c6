"""A²CiD²: the constants, the continuous mixing, and the pair averaging. The only place where the update is written.

Between topology (which gives chi1 and chi2) and the engines (which decide when to call these functions). The
functions work in place on anything with tensor arithmetic: one worker's vector or a stack of them, torch or NumPy.

A worker holds its parameters `x` and their momentum twin `x_tilde`, which start equal. Between events the two are
drawn together; a gradient step moves both; an averaging with a peer moves `x` by `alpha` and `x_tilde` by the larger
`alpha_tilde`, so that the twin runs ahead towards consensus and pulls `x` along.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlocked.errors import SettingError, choose

DYNAMICS = ("exact", "released")


@dataclass(frozen=True)
class Constants:
    """Strength of the mixing (`eta`, per unit of time) and of the averaging (`alpha`, `alpha_tilde`)."""

    eta: float
    alpha: float
    alpha_tilde: float

    @classmethod
    def accelerated(cls, chi1: float, chi2: float) -> Constants:
        """A²CiD²: `eta = 1/(2 sqrt(chi1 chi2))`, `alpha = 1/2`, `alpha_tilde = sqrt(chi1/chi2)/2`."""
        for name, value in (("chi1", chi1), ("chi2", chi2)):
            if not (value > 0 and math.isfinite(value)):
                raise SettingError(name, value, "must be positive and finite; take it from topology.chi")
        return cls(1 / (2 * math.sqrt(chi1 * chi2)), 0.5, 0.5 * math.sqrt(chi1 / chi2))

    @classmethod
    def baseline(cls) -> Constants:
        """Asynchronous gossip without momentum: no mixing, plain averaging (`x_tilde` is not used)."""
        return cls(0.0, 0.5, 0.5)

    @property
    def momentum(self) -> bool:
        """Whether the twin has any effect on the parameters."""
        return self.eta != 0.0


def mix_(x: Any, x_tilde: Any, eta: float, elapsed: Any) -> None:
    """Let `elapsed` units of time pass, in place: the exact solution of `d(x, x~) = eta (x~ - x, x - x~) dt`.

    `x += b (x~ - x)`, `x~ -= b (x~ - x)` with `b = (1 - exp(-2 eta elapsed))/2`; `x + x~` does not change.
    `x`, `x_tilde`: same shape. `elapsed`: a number >= 0, or for a stack (k, d) a column (k, 1) of them.
    """
    if isinstance(elapsed, (int, float)):
        if elapsed < 0:
            raise ValueError(f"time runs forward: elapsed = {elapsed}")
        weight = -math.expm1(-2 * eta * elapsed) / 2
    else:
        exponent = -2 * eta * elapsed
        weight = (exponent.expm1() if hasattr(exponent, "expm1") else np.expm1(exponent)) / -2
    if eta == 0:
        return
    difference = x_tilde - x
    add_(x, difference, weight)
    add_(x_tilde, difference, -weight)


def add_(target: Any, value: Any, factor: Any) -> None:
    """`target += factor value` in place; on tensors in one pass over memory. `factor`: a number or a column (k, 1)."""
    if not hasattr(target, "addcmul_"):
        target += factor * value
    elif isinstance(factor, float):
        target.add_(value, alpha=factor)
    else:
        target.addcmul_(value, factor)


def average_(x: Any, x_tilde: Any, difference: Any, constants: Constants, side: int = 1) -> None:
    """One side of an averaging, in place: with `difference` = own x minus the peer's x (`side` 1) or its negative (-1),
    `x -= alpha difference`, `x~ -= alpha_tilde difference`.
    """
    add_(x, difference, -side * constants.alpha)
    if constants.momentum:
        add_(x_tilde, difference, -side * constants.alpha_tilde)


def communicate_(
    x_i: Any,
    x_tilde_i: Any,
    elapsed_i: Any,
    x_j: Any,
    x_tilde_j: Any,
    elapsed_j: Any,
    constants: Constants,
    dynamics: str = "exact",
) -> None:
    """A communication between workers i and j, in place; `elapsed_*` is the time since each one's last event.

    `exact`: both are mixed up to now, then averaged: the sums of x and of x~ over workers do not change.
    `released`: each receives the peer's x from *before* the mixing and averages its own mixed x with it, as the code
    released with the paper does; the sums drift. Without momentum the two are the same.
    """
    choose("dynamics", dynamics, DYNAMICS)
    late = dynamics == "released" and constants.momentum
    sent_i, sent_j = (x_i + 0, x_j + 0) if late else (x_i, x_j)
    mix_(x_i, x_tilde_i, constants.eta, elapsed_i)
    mix_(x_j, x_tilde_j, constants.eta, elapsed_j)
    if late:
        from_j, from_i = x_i - sent_j, x_j - sent_i
        average_(x_i, x_tilde_i, from_j, constants)
        average_(x_j, x_tilde_j, from_i, constants)
    else:
        from_j = x_i - x_j
        average_(x_i, x_tilde_i, from_j, constants)
        average_(x_j, x_tilde_j, from_j, constants, side=-1)


def descend_(x: Any, x_tilde: Any, direction: Any, constants: Constants, rate: Any = 1.0) -> None:
    """A gradient step, in place: the same `rate direction` moves `x` and `x_tilde`. `rate`: a number or a column."""
    add_(x, direction, -rate)
    if constants.momentum:
        add_(x_tilde, direction, -rate)
