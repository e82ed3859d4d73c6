"""The time model: laws of durations, slow workers, and what messages and synchronous steps take."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from unlocked.errors import SettingError
from unlocked.gossip import clock as clocks
from unlocked.gossip.clock import Clock


def first(clock: Clock, worker: int = 0, count: int = 20_000, seed: int = 0) -> np.ndarray:
    """A worker's first durations."""
    return np.array(list(itertools.islice(clocks.durations(clock, worker, seed), count)))


@pytest.mark.parametrize(
    ("clock", "variation"),
    [
        (Clock(), 1.0),
        (Clock(law="constant"), 0.0),
        (Clock(law="gamma"), 0.3),
        (Clock(law="gamma", variation=0.05), 0.05),
        (Clock(law="gamma", variation=2.0), 2.0),
    ],
)
def test_mean_and_variation(clock: Clock, variation: float) -> None:
    """Every law has mean 1 and its own deviation, within 5 standard errors."""
    drawn = first(clock)
    assert drawn.mean() == pytest.approx(1, abs=max(5 * variation / len(drawn) ** 0.5, 1e-12))
    assert drawn.std() == pytest.approx(variation, rel=0.1)
    assert drawn.min() > 0


def test_slow_workers() -> None:
    """The first so many workers take their factor longer for the very same gradients; the others do not."""
    plain, slowed = Clock(law="gamma"), Clock(law="gamma", slow_workers=2, slow_factor=3.0)
    for worker, factor in ((0, 3.0), (1, 3.0), (2, 1.0)):
        np.testing.assert_allclose(first(slowed, worker, 100), factor * first(plain, worker, 100))


def test_workers_and_seeds_have_their_own_durations() -> None:
    streams = [first(Clock(), worker, 50, seed) for worker, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(stream) for stream in streams}) == 3
    np.testing.assert_array_equal(streams[0], first(Clock(), 0, 50))


def test_gradients_are_sums_of_durations() -> None:
    """Nobody waits: a worker's k-th gradient ends after its first k durations."""
    times, workers = clocks.gradient_events(Clock(), 3, 60, 5)
    assert (np.diff(times) >= 0).all()
    for worker in range(3):
        own = times[workers == worker]
        np.testing.assert_allclose(own, np.cumsum(first(Clock(), worker, len(own), 5)))


def test_costs() -> None:
    """A message takes latency plus size over bandwidth; an all-reduce 2(n-1) messages of an n-th of the size each."""
    clock = Clock(gradient_seconds=0.5, latency=0.1, bandwidth=1e6)
    assert clocks.message_time(clock, 200_000) == pytest.approx((0.1 + 0.2) / 0.5)
    assert clocks.message_time(Clock(latency=0.1), 10**9) == pytest.approx(1.0)
    assert clocks.message_time(Clock(), 10**9) == 0
    assert clocks.allreduce_time(clock, 4, 200_000) == pytest.approx(6 * (0.1 + 0.05) / 0.5)
    assert clocks.allreduce_time(Clock(latency=0.1), 4, 10**9) == pytest.approx(6.0)
    assert clocks.allreduce_time(clock, 1, 200_000) == 0
    assert clocks.allreduce_time(Clock(), 64, 10**9) == 0


@pytest.mark.parametrize(
    "clock",
    [
        Clock(),
        Clock(law="gamma", slow_workers=1, latency=0.01, bandwidth=1e6),
        Clock(law="constant", slow_workers=2, slow_factor=4.0),
    ],
)
def test_synchronous_steps_by_hand(clock: Clock) -> None:
    """Step k ends the longest k-th duration of all workers after step k-1 does, and an all-reduce later."""
    each = np.stack([first(clock, worker, 200, 9) for worker in range(5)])
    ends = list(itertools.islice(clocks.synchronous_steps(clock, 5, 9, 123_456), 200))
    np.testing.assert_allclose(ends, np.cumsum(each.max(0) + clocks.allreduce_time(clock, 5, 123_456)))


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"law": "uniform"}, "law"),
        ({"law": "gamma", "variation": 0.0}, "variation"),
        ({"variation": 0.5}, "variation"),  # without effect
        ({"slow_workers": 1, "slow_factor": 0.5}, "slow_factor"),
        ({"slow_factor": 4.0}, "slow_factor"),  # without effect
        ({"latency": float("inf")}, "latency"),
    ],
)
def test_wrong_clocks_are_refused_in_one_line(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(SettingError) as error:
        Clock(**settings)
    assert error.value.setting == wrong
    assert "\n" not in str(error.value)


def test_no_more_slow_workers_than_workers() -> None:
    Clock(slow_workers=4).check_workers(4)
    with pytest.raises(SettingError, match="slow_workers = 5: must be between 0 and the 4 workers"):
        Clock(slow_workers=5).check_workers(4)


def test_a_new_law_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decorated, it is a law that clocks can name; a name is given once."""
    monkeypatch.setattr(clocks, "LAWS", dict(clocks.LAWS))

    def uniform(_clock: Clock, draws: np.random.Generator, count: int) -> np.ndarray:
        """Between 0 and 2."""
        return draws.uniform(0, 2, count)

    clocks.law(uniform)
    assert first(Clock(law="uniform")).max() == pytest.approx(2, abs=0.01)
    with pytest.raises(SettingError, match="another law"):
        clocks.law(uniform)


def test_an_overlapped_all_reduce_hides_behind_the_gradient() -> None:
    """A step is as long as its slowest gradient and what of the all-reduce does not fit into its share of that."""
    clock = Clock(law="gamma", latency=1e-3, bandwidth=1e9)
    cost, size, workers = clocks.allreduce_time(clock, 4, 10**8), 10**8, 4
    plain, hidden, all_hidden = (
        np.diff([0.0, *itertools.islice(clocks.synchronous_steps(clock, workers, 0, size, share), 200)])
        for share in (0.0, 0.5, 1e9)
    )
    slowest = plain - cost
    np.testing.assert_allclose(hidden, slowest + np.maximum(0, cost - slowest / 2))
    np.testing.assert_allclose(all_hidden, slowest)
    assert (hidden > slowest).any()
    assert (hidden < plain).all()
