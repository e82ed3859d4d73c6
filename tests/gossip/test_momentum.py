"""The update of A²CiD²: golden constants and mixing, its invariants, and its two dynamics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlocked.errors import SettingError
from unlocked.gossip import topology
from unlocked.gossip.momentum import Constants, average_, communicate_, descend_, mix_

etas = st.floats(1e-3, 3)
times = st.floats(0, 20)
seeds = st.integers(0, 2**31)
ACID = Constants(0.3, 0.5, 1.7)


def pair(seed: int, shape: tuple[int, ...] = (6,)) -> tuple[np.ndarray, np.ndarray]:
    """Two random arrays."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=shape), draw.normal(size=shape)


@pytest.mark.parametrize("part", ["acid_constants", "other_graphs"])
def test_constants_are_golden(golden: dict[str, Any], part: str) -> None:
    """eta and alpha~ from golden chi1 and chi2 agree to 1e-9; alpha is one half."""
    for key, case in golden[part].items():
        found = Constants.accelerated(case["chi1"], case["chi2"])
        assert (found.eta, found.alpha, found.alpha_tilde) == pytest.approx(
            (case["eta"], 0.5, case["beta_tilde"]), rel=1e-9
        ), key
        assert found.momentum


def test_constants_of_the_64_ring() -> None:
    """The numbers that the literature's 64-ring has."""
    found = Constants.accelerated(*topology.chi(topology.build("ring", 64)))
    assert (found.eta, found.alpha_tilde) == pytest.approx((0.034970, 7.262385), rel=1e-4)


def test_the_baseline_does_not_use_the_twin() -> None:
    """No mixing, plain averaging, and the twin stays where it is under every operation."""
    constants = Constants.baseline()
    assert (constants.eta, constants.alpha, constants.momentum) == (0.0, 0.5, False)
    x, twin = pair(0)
    kept = twin.copy()
    mix_(x, twin, constants.eta, 3.0)
    average_(x, twin, x - 1, constants)
    descend_(x, twin, np.ones(6), constants)
    np.testing.assert_array_equal(twin, kept)


@pytest.mark.parametrize("chi", [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0), (1.0, float("inf"))])
def test_impossible_constants_are_refused(chi: tuple[float, float]) -> None:
    """chi1 or chi2 that is not positive and finite is named."""
    with pytest.raises(SettingError, match=r"^chi[12] = "):
        Constants.accelerated(*chi)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_mixing_is_golden(golden: dict[str, Any], kind: Any) -> None:
    """The closed form agrees with the released code's integrator to 1e-9, for NumPy and torch."""
    part = golden["continuous_mixing"]
    for case in part["cases"]:
        double = {"dtype": np.float64 if kind is np.array else torch.float64}
        x, twin = kind(part["x0"], **double), kind(part["x_tilde0"], **double)
        mix_(x, twin, case["eta"], (case["t_new"] - case["t_old"]) / case["delta_t_grad"])
        np.testing.assert_allclose(np.asarray(x), case["x"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(np.asarray(twin), case["x_tilde"], rtol=1e-9, atol=1e-9)


@given(eta=etas, first=times, second=times, seed=seeds)
def test_mixing_is_a_semigroup(eta: float, first: float, second: float, seed: int) -> None:
    """Mixing for s and then for t is mixing for s + t."""
    (x, twin), (x_once, twin_once) = pair(seed), pair(seed)
    mix_(x, twin, eta, first)
    mix_(x, twin, eta, second)
    mix_(x_once, twin_once, eta, first + second)
    np.testing.assert_allclose([x, twin], [x_once, twin_once], rtol=0, atol=1e-13)


@given(eta=etas, elapsed=times, seed=seeds)
def test_mixing_conserves_the_sum_and_shrinks_the_difference(eta: float, elapsed: float, seed: int) -> None:
    """x + x~ stays; x~ - x decays as exp(-2 eta t)."""
    x, twin = pair(seed)
    total, difference = x + twin, twin - x
    mix_(x, twin, eta, elapsed)
    np.testing.assert_allclose(x + twin, total, rtol=0, atol=1e-13)
    np.testing.assert_allclose(twin - x, difference * np.exp(-2 * eta * elapsed), rtol=0, atol=1e-13)


def test_no_time_no_change() -> None:
    """Elapsed zero leaves every bit."""
    x, twin = pair(4)
    before = x.copy(), twin.copy()
    mix_(x, twin, 0.7, 0.0)
    np.testing.assert_array_equal((x, twin), before)


@pytest.mark.parametrize("elapsed", [-1e-9, -1, np.float64(-2)])
def test_time_does_not_run_backward(elapsed: float) -> None:
    """A negative elapsed time is refused, and nothing has been changed by then."""
    x, twin = pair(5)
    kept = x.copy()
    with pytest.raises(ValueError, match="elapsed"):
        mix_(x, twin, 0.5, elapsed)
    np.testing.assert_array_equal(x, kept)


@given(seed=seeds, rows=st.integers(1, 5), use_torch=st.booleans())
def test_a_stack_is_its_rows(seed: int, rows: int, use_torch: bool) -> None:
    """Mixing and communicating stacked workers with a column of times equals one row after the other."""
    draw = np.random.default_rng(seed)
    own, peer, own_twin, peer_twin = (draw.normal(size=(rows, 4)) for _ in range(4))
    elapsed = draw.uniform(0, 3, (2, rows, 1))
    expected = []
    for k in range(rows):
        one = [a[k].copy() for a in (own, own_twin, peer, peer_twin)]
        communicate_(one[0], one[1], float(elapsed[0, k, 0]), one[2], one[3], float(elapsed[1, k, 0]), ACID)
        expected.append(one)
    if use_torch:
        own, peer, own_twin, peer_twin, elapsed = map(torch.from_numpy, (own, peer, own_twin, peer_twin, elapsed))
    communicate_(own, own_twin, elapsed[0], peer, peer_twin, elapsed[1], ACID)
    found = np.stack([np.asarray(a) for a in (own, own_twin, peer, peer_twin)], 1)
    np.testing.assert_allclose(found, np.array(expected), rtol=1e-12, atol=1e-13)


@given(seed=seeds, dynamics=st.sampled_from(["exact", "released"]))
def test_numpy_and_torch_agree(seed: int, dynamics: str) -> None:
    """A communication of two vectors is the same in both libraries."""
    (a, a_twin), (b, b_twin) = pair(seed), pair(seed + 1)
    as_torch = [torch.from_numpy(v.copy()) for v in (a, a_twin, b, b_twin)]
    communicate_(a, a_twin, 0.4, b, b_twin, 1.3, ACID, dynamics)
    communicate_(*as_torch[:2], 0.4, *as_torch[2:], 1.3, ACID, dynamics)
    np.testing.assert_allclose([a, a_twin, b, b_twin], [v.numpy() for v in as_torch], rtol=1e-13, atol=1e-14)


def test_a_communication_is_what_the_paper_writes() -> None:
    """Mix both, then x -= alpha d, x~ -= alpha~ d with d = own - peer, both sides from the same difference."""
    (a, a_twin), (b, b_twin) = pair(1), pair(2)
    expected = [v.copy() for v in (a, a_twin, b, b_twin)]
    mix_(expected[0], expected[1], ACID.eta, 0.4)
    mix_(expected[2], expected[3], ACID.eta, 1.3)
    d = expected[0] - expected[2]
    expected = [expected[0] - 0.5 * d, expected[1] - 1.7 * d, expected[2] + 0.5 * d, expected[3] + 1.7 * d]
    communicate_(a, a_twin, 0.4, b, b_twin, 1.3, ACID)
    np.testing.assert_allclose([a, a_twin, b, b_twin], expected, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(a, b)  # alpha one half: both hold the mean


def gossip(seed: int, dynamics: str, events: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums over workers of x and x~ after random communications on a random graph, before and after.

    All workers are looked at together: mixed to the end, from equal sums at the start.
    """
    draw = np.random.default_rng(seed)
    graph = topology.build(draw.choice(["ring", "star", "complete", "path"]), int(draw.integers(3, 9)))
    edges, workers = list(graph.edges), len(graph)
    x = draw.normal(size=(workers, 3))
    twin = x[draw.permutation(workers)].copy()  # the same sum, other values
    constants = Constants.accelerated(*topology.chi(graph))
    before, last, now = x.sum(0), np.zeros(workers), 0.0
    for _ in range(events):
        now += draw.exponential(2 / workers)
        i, j = edges[draw.integers(len(edges))]
        communicate_(x[i], twin[i], float(now - last[i]), x[j], twin[j], float(now - last[j]), constants, dynamics)
        last[[i, j]] = now
    for i in range(workers):
        mix_(x[i], twin[i], constants.eta, float(now - last[i]))
    return np.stack([before, before]), np.stack([x.sum(0), twin.sum(0)])


@given(seed=seeds, events=st.integers(1, 60))
def test_exact_communication_conserves_the_sums(seed: int, events: int) -> None:
    """The sums over workers of x and of x~ do not move on any graph under any order of events."""
    before, after = gossip(seed, "exact", events)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-11)


def test_released_communication_drifts() -> None:
    """The same events under the released dynamics move the sums by more than rounding."""
    drifts = [np.abs(np.subtract(*gossip(seed, "released", 20))).max() for seed in range(5)]
    assert np.median(drifts) > 1e-4


def test_released_uses_the_peer_from_before_the_mixing() -> None:
    """Own x is mixed, the peer's is not, and both sides still write to their mixed state."""
    (a, a_twin), (b, b_twin) = pair(1), pair(2)
    sent_a, sent_b = a.copy(), b.copy()
    expected = [v.copy() for v in (a, a_twin, b, b_twin)]
    mix_(expected[0], expected[1], ACID.eta, 0.4)
    mix_(expected[2], expected[3], ACID.eta, 1.3)
    at_a, at_b = expected[0] - sent_b, expected[2] - sent_a
    expected = [
        expected[0] - 0.5 * at_a,
        expected[1] - 1.7 * at_a,
        expected[2] - 0.5 * at_b,
        expected[3] - 1.7 * at_b,
    ]
    communicate_(a, a_twin, 0.4, b, b_twin, 1.3, ACID, "released")
    np.testing.assert_allclose([a, a_twin, b, b_twin], expected, rtol=1e-13, atol=1e-14)


@given(seed=seeds)
def test_without_momentum_the_two_dynamics_are_one(seed: int) -> None:
    """The baseline's bits do not depend on the dynamics."""
    results = []
    for dynamics in ("exact", "released"):
        (a, a_twin), (b, b_twin) = pair(seed), pair(seed + 1)
        communicate_(a, a_twin, 0.4, b, b_twin, 1.3, Constants.baseline(), dynamics)
        results.append((a, b))
    np.testing.assert_array_equal(*results)


def test_unknown_dynamics_are_refused() -> None:
    """The message lists the known ones."""
    with pytest.raises(SettingError, match="dynamics = 'fast': must be one of exact, released"):
        communicate_(*pair(0), 0.0, *pair(1), 0.0, ACID, "fast")


def test_a_gradient_step_moves_both() -> None:
    """x and x~ get the same step."""
    x, twin = pair(0)
    expected = x - 2, twin - 2
    descend_(x, twin, np.full(6, 2.0), ACID)
    np.testing.assert_allclose((x, twin), expected)
