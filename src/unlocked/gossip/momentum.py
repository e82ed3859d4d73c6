"""A²CiD² (Nabli et al. 2023): the constants, the continuous mixing, and the averaging of a pair.

A worker holds its parameters `x` and an auxiliary variable `x_tilde`, which start equal. Between events the two are
drawn together; a gradient step moves both; an averaging with a peer moves `x` by `alpha` and `x_tilde` by the larger
`alpha_tilde`, so that the auxiliary variable runs ahead towards consensus and pulls `x` along.

The functions work in place on anything with tensor arithmetic: one worker's vector or a stack of them, torch or NumPy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlocked.errors import SettingError, choose

DYNAMICS = ("exact", "released")
Side = tuple[Any, Any, Any]


@dataclass(frozen=True)
class Constants:
    """Strength of the mixing (`eta`, per unit of time) and of the averaging (`alpha`, `alpha_tilde`)."""

    eta: float
    alpha: float
    alpha_tilde: float

    @classmethod
    def accelerated(cls, chi1: float, chi2: float, strength: float = 1.0) -> Constants:
        """A²CiD²: `eta = 1/(2 sqrt(chi1 chi2))`, `alpha = 1/2`, `alpha_tilde = sqrt(chi1/chi2)/2`.

        `strength` is a factor on chi1 in both; 1 is the paper's.
        """
        for name, value in (("chi1", chi1), ("chi2", chi2), ("strength", strength)):
            if not (value > 0 and math.isfinite(value)):
                raise SettingError(name, value, "must be positive and finite")
        chi1 = strength * chi1
        return cls(1 / (2 * math.sqrt(chi1 * chi2)), 0.5, 0.5 * math.sqrt(chi1 / chi2))

    @classmethod
    def baseline(cls) -> Constants:
        """Gossip without momentum: plain averaging; `x_tilde` is never touched."""
        return cls(0.0, 0.5, 0.5)

    @property
    def momentum(self) -> bool:
        """Whether the auxiliary variable has any effect on the parameters."""
        return self.eta != 0.0


def mix_(x: Any, x_tilde: Any, eta: float, elapsed: Any) -> None:
    """Let `elapsed` units of time pass, in place: the exact solution of `d(x, x~) = eta (x~ - x, x - x~) dt`.

    `x += b (x~ - x)`, `x~ -= b (x~ - x)` with `b = (1 - exp(-2 eta elapsed))/2`; `x + x~` does not change.
    `x`, `x_tilde`: same shape. `elapsed`: a number >= 0, or for a stack (k, d) a column (k, 1) of them.
    """
    if isinstance(elapsed, (int, float)) and elapsed < 0:
        raise ValueError(f"time runs forward: elapsed = {elapsed}")
    if eta == 0:
        return
    exponent = -2 * eta * elapsed
    if isinstance(exponent, float):
        weight = math.expm1(exponent) / -2
    else:
        weight = (exponent.expm1() if hasattr(exponent, "expm1") else np.expm1(exponent)) / -2
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


def average_(x: Any, x_tilde: Any, difference: Any, constants: Constants) -> None:
    """One side of an averaging, in place; `difference`: own x minus the peer's x."""
    add_(x, difference, -constants.alpha)
    if constants.momentum:
        add_(x_tilde, difference, -constants.alpha_tilde)


def communicate_(one: Side, other: Side, constants: Constants, dynamics: str = "exact") -> None:
    """A communication between two workers, in place; of each x, x_tilde and the time since its last event.

    `exact`: both are mixed up to now, then averaged: the sums of x and of x~ over workers do not change.
    `released`: each receives the peer's x from *before* the mixing and averages its own mixed x with it, as the code
    released with the paper does; the sums drift. Without momentum the two are the same.
    """
    (x_i, tilde_i, elapsed_i), (x_j, tilde_j, elapsed_j) = one, other
    released = choose("dynamics", dynamics, DYNAMICS) == "released" and constants.momentum
    sent_i, sent_j = (x_i + 0, x_j + 0) if released else (x_i, x_j)
    mix_(x_i, tilde_i, constants.eta, elapsed_i)
    mix_(x_j, tilde_j, constants.eta, elapsed_j)
    from_j, from_i = x_i - sent_j, x_j - sent_i
    average_(x_i, tilde_i, from_j, constants)
    average_(x_j, tilde_j, from_i, constants)


def descend_(x: Any, x_tilde: Any, direction: Any, constants: Constants, rate: Any = 1.0) -> None:
    """A gradient step, in place: the same `rate direction` moves `x` and `x_tilde`. `rate`: a number or a column."""
    add_(x, direction, -rate)
    if constants.momentum:
        add_(x_tilde, direction, -rate)
