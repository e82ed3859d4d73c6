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
from unlocked.gossip.momentum import Constants, communicate_, mix_

etas = st.floats(1e-3, 3)
times = st.floats(0, 20)
seeds = st.integers(0, 2**31)
either = st.sampled_from(["exact", "released"])
ACID = Constants(0.3, 0.5, 1.7)


def pair(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two random vectors."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=6), draw.normal(size=6)


@pytest.mark.parametrize("part", ["acid_constants", "other_graphs"])
def test_constants_are_golden(golden: dict[str, Any], part: str) -> None:
    for key, case in golden[part].items():
        mine = Constants.accelerated(case["chi1"], case["chi2"])
        golden_ones = case["eta"], 0.5, case["beta_tilde"]
        assert (mine.eta, mine.alpha, mine.alpha_tilde) == pytest.approx(golden_ones, rel=1e-9), key
        assert mine.momentum


@pytest.mark.parametrize("strength", [0.25, 1.0, 3.0])
def test_strength_is_a_factor_on_chi1(strength: float) -> None:
    """In both constants; 1 leaves every bit of the paper's."""
    mine, papers = Constants.accelerated(7.3, 1.1, strength), Constants.accelerated(7.3, 1.1)
    assert mine == Constants.accelerated(strength * 7.3, 1.1)
    assert (mine == papers) == (strength == 1)
    assert (mine.eta < papers.eta) == (strength > 1)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("position", range(3))
def test_impossible_constants_are_refused(wrong: float, position: int) -> None:
    values = [2.0, 1.0, 1.0]
    values[position] = wrong
    with pytest.raises(SettingError, match=f"^{('chi1', 'chi2', 'strength')[position]} = {wrong!r}: "):
        Constants.accelerated(*values)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_mixing_is_golden(golden: dict[str, Any], kind: Any) -> None:
    """The closed form agrees with the released code's integrator, for NumPy and torch."""
    part, double = golden["continuous_mixing"], np.float64 if kind is np.array else torch.float64
    for case in part["cases"]:
        x, tilde = kind(part["x0"], dtype=double), kind(part["x_tilde0"], dtype=double)
        mix_(x, tilde, case["eta"], (case["t_new"] - case["t_old"]) / case["delta_t_grad"])
        np.testing.assert_allclose(np.asarray(x), case["x"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(np.asarray(tilde), case["x_tilde"], rtol=1e-9, atol=1e-9)


@given(eta=etas, first=times, second=times, seed=seeds)
def test_mixing_is_a_semigroup(eta: float, first: float, second: float, seed: int) -> None:
    (x, tilde), (x_once, tilde_once) = pair(seed), pair(seed)
    mix_(x, tilde, eta, first)
    mix_(x, tilde, eta, second)
    mix_(x_once, tilde_once, eta, first + second)
    np.testing.assert_allclose([x, tilde], [x_once, tilde_once], rtol=0, atol=1e-13)


@given(eta=etas, elapsed=times, seed=seeds)
def test_mixing_conserves_the_sum_and_shrinks_the_difference(eta: float, elapsed: float, seed: int) -> None:
    x, tilde = pair(seed)
    total, difference = x + tilde, tilde - x
    mix_(x, tilde, eta, elapsed)
    np.testing.assert_allclose(x + tilde, total, rtol=0, atol=1e-13)
    np.testing.assert_allclose(tilde - x, difference * np.exp(-2 * eta * elapsed), rtol=0, atol=1e-13)


@pytest.mark.parametrize("elapsed", [-1e-9, -1, np.float64(-2), 0.0])
def test_time_does_not_run_backward(elapsed: float) -> None:
    """A negative elapsed time is refused; nothing changes by then, nor in no time."""
    x, tilde = pair(5)
    before = x.copy(), tilde.copy()
    if elapsed:
        with pytest.raises(ValueError, match="elapsed"):
            mix_(x, tilde, 0.5, elapsed)
    else:
        mix_(x, tilde, 0.5, elapsed)
    np.testing.assert_array_equal((x, tilde), before)


@given(seed=seeds, rows=st.integers(1, 5), use_torch=st.booleans(), dynamics=either)
def test_a_stack_is_its_rows(seed: int, rows: int, use_torch: bool, dynamics: str) -> None:
    """Communicating stacked workers with columns of times equals one row after the other, in both libraries."""
    draw = np.random.default_rng(seed)
    vectors, elapsed = draw.normal(size=(4, rows, 4)), draw.uniform(0, 3, (2, rows, 1))
    expected = vectors.copy()
    for k in range(rows):
        x_i, tilde_i, x_j, tilde_j = expected[:, k]
        one, two = (float(e) for e in elapsed[:, k, 0])
        communicate_((x_i, tilde_i, one), (x_j, tilde_j, two), ACID, dynamics)
    stacks, columns = (map(torch.from_numpy, v) if use_torch else v for v in (vectors, elapsed))
    x_i, tilde_i, x_j, tilde_j = stacks
    one, two = columns
    communicate_((x_i, tilde_i, one), (x_j, tilde_j, two), ACID, dynamics)
    np.testing.assert_allclose(vectors, expected, rtol=1e-12, atol=1e-13)


@given(seed=seeds, events=st.integers(1, 60))
def test_exact_communication_conserves_the_sums(seed: int, events: int) -> None:
    """Of x and of x~, equal at the start, over the workers of a random graph, all mixed to the end."""
    draw = np.random.default_rng(seed)
    graph = topology.build(draw.choice(["ring", "star", "complete", "path"]), int(draw.integers(3, 9)))
    edges, workers = list(graph.edges), len(graph)
    x = draw.normal(size=(workers, 3))
    tilde = x[draw.permutation(workers)].copy()  # the same sum, other values
    constants = Constants.accelerated(*topology.chi(graph))
    before, last, now = x.sum(0), np.zeros(workers), 0.0
    for _ in range(events):
        now += draw.exponential(2 / workers)
        i, j = edges[draw.integers(len(edges))]
        communicate_(*((x[k], tilde[k], float(now - last[k])) for k in (i, j)), constants)
        last[[i, j]] = now
    for i in range(workers):
        mix_(x[i], tilde[i], constants.eta, float(now - last[i]))
    assert max(np.abs(own.sum(0) - before).max() for own in (x, tilde)) < 1e-11


def test_unknown_dynamics_are_refused() -> None:
    with pytest.raises(SettingError, match="dynamics = 'fast': must be one of exact, released"):
        communicate_((*pair(0), 0.0), (*pair(1), 0.0), ACID, "fast")
