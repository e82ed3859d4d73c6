"""`unlocked bench`: its numbers come, in the promised form, from contestants that do the same work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unlocked import bench, cli
from unlocked.bench import forward_gradient, gossip, processes
from unlocked.forward_gradient import per_sample
from unlocked.forward_gradient.memory import peak_bytes

KEYS = {"engine_overhead", "batched_speedup_mlp_64", "batched_speedup_conv_64"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few workers and gradients."""
    plain = bench.Options
    monkeypatch.setattr(gossip, "WORKERS", 4)
    monkeypatch.setattr(bench, "Options", lambda turns, width: plain(turns=turns, gradients=16))


@pytest.mark.usefixtures("small")
def test_json_is_flat(capsys: pytest.CaptureFixture) -> None:
    """One object of positive numbers."""
    assert cli.main(["bench", "gossip", "--json", "--turns", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key.replace("_64", "_4") for key in KEYS} <= set(found)
    assert all(isinstance(value, float) and value > 0 for value in found.values())


@pytest.mark.usefixtures("small")
def test_the_table_explains_itself(capsys: pytest.CaptureFixture) -> None:
    """A line per number; every number that is promised has an explanation."""
    assert cli.main(["bench", "gossip", "--turns", "1"]) == 0
    assert "bare gradients" in capsys.readouterr().out
    assert set(gossip.MEANINGS) >= KEYS


def test_an_unknown_bench_is_refused(capsys: pytest.CaptureFixture) -> None:
    """In one line that lists what there is."""
    assert cli.main(["bench", "nothing"]) == 2
    assert "unlocked: bench = 'nothing': must be one of gossip, " in capsys.readouterr().err


def test_contestants_do_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """After all turns both engines have done as many gradients as the floor, and none is left."""
    monkeypatch.setattr(gossip, "WORKERS", 4)
    options, made = bench.Options(turns=2, gradients=8), []
    original = gossip.virtual.Training

    def training(*arguments: Any) -> Any:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(gossip.virtual, "Training", training)
    bench.race(gossip.contestants("mlp", options), options.turns)
    assert [int(t.engine.steps.sum()) for t in made] == [24, 24]
    assert (made[0].engine.x - made[1].engine.x).abs().max() < 1e-4


FORWARD_GRADIENT_KEYS = {f"{what}_{space}" for what in ("cpu", "memory") for space in forward_gradient.SPACES}
FORWARD_GRADIENT_KEYS.add("forward_mode_memory_block0")


def test_forward_gradient_keys(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promised numbers, each explained, on a smaller net."""
    fresh = forward_gradient.fresh
    monkeypatch.setattr(forward_gradient, "fresh", lambda width: fresh(width, 4, 8))
    assert cli.main(["bench", "forward_gradient", "--json", "--turns", "1", "--width", ".0625"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= FORWARD_GRADIENT_KEYS
    assert set(found) == set(forward_gradient.MEANINGS)
    assert all(isinstance(value, float) and value > 0 for value in found.values())


def test_peak_memory_of_a_step_stays_near_backpropagation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in tensors, so that it is the same number everywhere: at most 1.5 times, in every space."""
    monkeypatch.setattr(per_sample, "CHUNK_BYTES", {"cpu": 2**20})  # as small beside the net's as it is at width 1
    batch = forward_gradient.fresh(0.25, batch=32, size=16)
    peer = peak_bytes(lambda: forward_gradient.backpropagation(*batch))
    for settings in forward_gradient.SPACES.values():
        assert peak_bytes(lambda s=settings: forward_gradient.step(*batch, guess="local", **s)) < 1.5 * peer


PROCESSES_KEYS = {
    "gossip_on_off_mlp_2",
    "gossip_on_off_conv_2",
    "async_vs_ddp_straggler",
    "averaging_vs_raw",
    "idle_cpu",
}


def test_processes_keys(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promised numbers, each explained, from runs that are too short to mean anything."""
    plain = bench.Options
    monkeypatch.setattr(bench, "Options", lambda turns, width: plain(turns=turns, gradients=32))
    assert cli.main(["bench", "processes", "--json", "--turns", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) >= PROCESSES_KEYS
    assert set(found) == set(processes.MEANINGS)
    assert all(isinstance(value, float) and value > 0 for value in found.values())


def test_processes_do_what_they_are_timed_for() -> None:
    """With gossip and without it a run has the same gradients; only one of them averages."""
    options = bench.Options(turns=1, gradients=16)
    on, off = (processes.outcome(processes.run_of("mlp", options, rate=rate)) for rate in (1.0, processes.NEVER))
    assert on.gradients == off.gradients == 16 * processes.LENGTH["mlp"]
    assert on.averagings > 0 == off.averagings


def test_ratio_is_the_median_of_turns() -> None:
    """One disturbed turn does not count."""
    assert bench.ratio([2.0, 2.0, 90.0], [1.0, 1.0, 1.0]) == 2.0
