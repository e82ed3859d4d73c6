"""The time model: laws of durations, slow and absent workers, and what messages and synchronous steps take."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unlocked import config
from unlocked.errors import SettingError
from unlocked.gossip import clock as clocks
from unlocked.gossip.clock import Clock, Worker


def first(clock: Clock, worker: int = 0, count: int = 20_000, seed: int = 0) -> np.ndarray:
    """A worker's first durations."""
    return np.array(list(itertools.islice(clocks.durations(clock, worker, seed), count)))


def away(clock: Clock, worker: int, until: float, seed: int = 0) -> list[tuple[float, float]]:
    """A worker's absences that begin before `until`."""
    return list(itertools.takewhile(lambda gap: gap[0] < until, clocks.absences(clock, worker, seed)))


# laws


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
    found = first(clock)
    assert found.mean() == pytest.approx(1, abs=max(5 * variation / len(found) ** 0.5, 1e-12))
    assert found.std() == pytest.approx(variation, rel=0.1)
    assert found.min() > 0


def test_a_trace_is_resampled(tmp_path: Path) -> None:
    """Durations are the measured ones over their mean, each about equally often, repeats counted."""
    path = tmp_path / "seconds.txt"
    path.write_text("0.2\n0.2\n0.3\n0.7\n")
    found = first(Clock(law="trace", trace=str(path)))
    values, counts = np.unique(found.round(12), return_counts=True)
    np.testing.assert_allclose(values, np.array([0.2, 0.3, 0.7]) / 0.35)
    np.testing.assert_allclose(counts / len(found), [0.5, 0.25, 0.25], atol=0.02)


def test_a_trace_of_one_line(tmp_path: Path) -> None:
    """One measurement is a constant clock."""
    path = tmp_path / "seconds.txt"
    path.write_text("0.4\n")
    assert set(first(Clock(law="trace", trace=str(path)), count=10)) == {1.0}


def test_slow_workers() -> None:
    """The first so many workers take their factor longer for the very same gradients; the others do not."""
    plain, slowed = Clock(law="gamma"), Clock(law="gamma", slow_workers=2, slow_factor=3.0)
    for worker, factor in ((0, 3.0), (1, 3.0), (2, 1.0)):
        np.testing.assert_allclose(first(slowed, worker, 100), factor * first(plain, worker, 100))


def test_workers_and_seeds_have_their_own_durations() -> None:
    """No two streams are alike, and the same one can be read twice."""
    streams = [first(Clock(), worker, 50, seed) for worker, seed in ((0, 0), (1, 0), (0, 1))]
    assert len({tuple(stream) for stream in streams}) == 3
    np.testing.assert_array_equal(streams[0], first(Clock(), 0, 50))


# absences

ABSENT = Clock(law="constant", away_share=0.25, away_time=5.0)


def test_share_and_length_of_absences() -> None:
    """A worker is away a quarter of the time, 5 gradient times on average, within 5 standard errors."""
    horizon = 200_000.0
    lengths = np.array([back - start for start, back in away(ABSENT, 0, horizon)])
    assert lengths.mean() == pytest.approx(5.0, abs=5 * 5.0 / len(lengths) ** 0.5)
    assert lengths.sum() / horizon == pytest.approx(0.25, rel=0.06)
    assert len(lengths) == pytest.approx(horizon / 20, rel=0.06)


def present(gaps: list[tuple[float, float]], start: float, end: float) -> float:
    """Time between two moments that a worker is there, the obvious way."""
    return end - start - sum(max(0.0, min(end, back) - max(start, leaves)) for leaves, back in gaps)


@pytest.mark.parametrize("law", ["constant", "exponential"])
def test_absences_stretch_gradients(law: str) -> None:
    """A gradient takes its own duration of the time that the worker is there, and ends while it is there."""
    clock = Clock(law=law, away_share=0.25, away_time=5.0)
    worker, gaps, now = Worker(clock, 3, 1), away(clock, 3, 5000.0, 1), 0.0
    for duration in first(clock, 3, 1500, 1):
        end = worker.gradient(now)
        assert present(gaps, now, end) == pytest.approx(duration, abs=1e-8)
        assert not any(leaves < end - 1e-9 and end + 1e-9 < back for leaves, back in gaps)
        now = end
    assert now == pytest.approx(1500 / 0.75, rel=0.15)


def test_back() -> None:
    """A worker that is there is there at once; one that is away at the end of its absence."""
    gaps, worker = away(ABSENT, 0, 500.0), Worker(ABSENT, 0, 0)
    for leaves, back in gaps:
        assert worker.back(leaves - 1e-6) == leaves - 1e-6
        assert worker.back(leaves) == back
        assert worker.back((leaves + back) / 2) == back
        assert worker.back(back) == back
    assert Worker(Clock(), 0, 0).back(7.0) == 7.0


def test_absences_do_not_change_durations() -> None:
    """Common random numbers: whether workers leave changes when they compute, not how long."""
    times, workers = clocks.gradient_events(Clock(), 3, 60, 5)
    for worker in range(3):
        own = times[workers == worker]
        np.testing.assert_allclose(own, np.cumsum(first(Clock(), worker, len(own), 5)))
    slower, _ = clocks.gradient_events(Clock(away_share=0.5), 3, 60, 5)
    assert slower[-1] > times[-1]
    assert (np.diff(times) >= 0).all()


# costs


def test_message_time() -> None:
    """Latency plus size over bandwidth, in gradient times; nothing for a perfect link."""
    clock = Clock(gradient_seconds=0.5, latency=0.1, bandwidth=1e6)
    assert clocks.message_time(clock, 200_000) == pytest.approx((0.1 + 0.2) / 0.5)
    assert clocks.message_time(Clock(latency=0.1), 10**9) == pytest.approx(1.0)
    assert clocks.message_time(Clock(), 10**9) == 0


def test_allreduce_time() -> None:
    """2(n-1) messages, each of an n-th of the size; one worker needs none."""
    clock = Clock(gradient_seconds=0.5, latency=0.1, bandwidth=1e6)
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
    size, now = 123_456, 0.0
    each = np.stack([first(clock, worker, 200, 9) for worker in range(5)])
    for step, end in enumerate(itertools.islice(clocks.synchronous_steps(clock, 5, 9, size), 200)):
        now += max(each[:, step]) + clocks.allreduce_time(clock, 5, size)
        assert end == pytest.approx(now)


def test_synchronous_steps_wait_for_the_absent() -> None:
    """Every worker is there for its own duration of every step, counted from the step's start."""
    steps = list(itertools.islice(clocks.synchronous_steps(ABSENT, 3, 2, 0), 100))
    gaps = [away(ABSENT, worker, steps[-1], 2) for worker in range(3)]
    for start, end in itertools.pairwise([0.0, *steps]):
        there = [present(own, start, end) for own in gaps]
        assert min(there) == pytest.approx(1.0, abs=1e-8)  # the last to finish was there for one gradient exactly
    # with three workers of whom each is away a quarter of the time, little is left
    assert steps[-1] > 100 * 1.5


def test_allreduce_runs_by_the_clock(tiny_run: Any, data_of: Any) -> None:
    """The training's virtual time is that of the synchronous steps with the network's size in bytes."""
    from unlocked.gossip import allreduce
    from unlocked.gossip.workers import message_bytes

    run = tiny_run({"method": "allreduce", "clock.latency": 0.01, "clock.bandwidth": 1e7, "clock.law": "gamma"})
    training = allreduce.Training(run, data_of(run))
    clock = Clock(law="gamma", latency=0.01, bandwidth=1e7)
    wanted = itertools.islice(clocks.synchronous_steps(clock, 4, 0, message_bytes(run, data_of(run))), training.steps)
    assert training.ends == pytest.approx([0.0, *wanted])


# refusals


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("law", "uniform"),
        ("law", "trace"),
        ("trace", "/nowhere/durations.txt"),
        ("variation", 0.0),
        ("variation", float("nan")),
        ("slow_workers", -1),
        ("slow_workers", 5),
        ("slow_factor", -2.0),
        ("gradient_seconds", 0.0),
        ("latency", -0.1),
        ("latency", float("inf")),
        ("bandwidth", 0.0),
        ("bandwidth", float("nan")),
        ("away_share", 1.0),
        ("away_share", -0.1),
        ("away_time", 0.0),
    ],
)
def test_wrong_clocks_are_refused_in_one_line(setting: str, value: object) -> None:
    """The error names the setting, and what would be right."""
    clock = Clock(**{setting: value}) if setting != "trace" else Clock(law="trace", trace=str(value))
    with pytest.raises(SettingError) as error:
        clocks.check(clock, 4)
    assert error.value.setting == f"clock.{setting if value != 'trace' else 'trace'}"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["", "fast\n", "1.0\n-2.0\n", "0\n0\n", "nan\n"])
def test_a_trace_that_cannot_be_used_is_refused(tmp_path: Path, content: str) -> None:
    """Empty files, words, and durations that are not positive numbers."""
    path = tmp_path / "seconds.txt"
    path.write_text(content)
    with pytest.raises(SettingError, match="trace") as error:
        clocks.check(Clock(law="trace", trace=str(path)), 4)
    assert "\n" not in str(error.value)


def test_a_run_with_a_wrong_clock_is_refused(tiny_run: Any) -> None:
    """The config asks the clock, and refuses links that take time where averagings take none."""
    for changes in ({"clock.slow_workers": 5}, {"clock.latency": 0.1}, {"clock.bandwidth": 1e6}):
        with pytest.raises(SettingError, match=next(iter(changes))) as error:
            tiny_run(changes)
        assert "\n" not in str(error.value)
    assert config.run_id(tiny_run({"clock.latency": 0.1, "pairing": "availability"}))
