"""`unlocked bench`: its numbers come, in the promised form, from contestants that do the same work."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import torch

from unlocked import bench, cli
from unlocked.bench import forward_gradient, gossip, processes
from unlocked.forward_gradient import per_sample
from unlocked.forward_gradient.memory import peak_bytes
from unlocked.papers.acid.training import GossipTraining

PROMISED = {
    "gossip": {"engine_overhead", "batched_speedup_mlp_64", "batched_speedup_conv_64"},
    "forward_gradient": {f"{what}_{space}" for what in ("cpu", "memory") for space in forward_gradient.SPACES}
    | {"forward_mode_memory_block0"},
    "processes": {
        *(f"gossip_on_off_{network}_2" for network in ("mlp", "conv")),
        *("gossip_on_off_waiting_4", "core_milliseconds_per_averaging", "core_milliseconds_floor"),
        *("async_vs_ddp_straggler", "averaging_vs_raw", "idle_cpu"),
    },
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little to mean anything."""
    plain, fresh = bench.Options, forward_gradient.fresh
    monkeypatch.setattr(bench, "Options", lambda turns, width: plain(turns=turns, gradients=64, width=width))
    monkeypatch.setattr(forward_gradient, "fresh", lambda width: fresh(width, 4, 8))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", PROMISED)
def test_the_numbers(name: str, capsys: pytest.CaptureFixture) -> None:
    """One JSON object of positive numbers: those that are promised, each explained in the text for people."""
    assert cli.main(["bench", name, "--json", "--turns", "1", "--width", ".0625"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(isinstance(value, float) and value > 0 for value in found.values())
    assert PROMISED[name] <= set(found) == set(bench.module(name).MEANINGS)
    assert all(meaning in bench.table(name, found) for meaning in bench.module(name).MEANINGS.values())


def test_contestants_do_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """After all turns the three ways have done as many gradients as the floor, and none is left."""
    made = []

    class Training(GossipTraining):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(gossip, "WORKERS", 4)
    monkeypatch.setattr(gossip, "GossipTraining", Training)
    contestants = gossip.contestants("mlp", bench.Options(turns=2, gradients=8))
    bench.race(contestants, turns=2)
    assert [int(training.engine.steps.sum()) for training in made] == [24, 24, 24]
    assert (made[0].engine.x - made[1].engine.x).abs().max() < 1e-4
    assert torch.equal(made[0].engine.x, made[2].engine.x)  # with autograd and without it
    for go in contestants.values():
        with pytest.raises(StopIteration):
            go()


def test_peak_memory_of_a_step_stays_near_backpropagation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in tensors, so that it is the same number everywhere: at most 1.5 times, in every space."""
    monkeypatch.setattr(per_sample, "CHUNK_BYTES", {"cpu": 2**20})  # as small beside the net's as it is at width 1
    batch = forward_gradient.fresh(0.25, batch=32, size=16)
    peer = peak_bytes(lambda: forward_gradient.backpropagation(*batch))
    for method in forward_gradient.SPACES.values():
        assert peak_bytes(partial(forward_gradient.step, *batch, method)) < 1.5 * peer


def test_processes_do_what_they_are_timed_for() -> None:
    """With gossip and without it a run has the same gradients; only one of them averages."""
    options = bench.Options(turns=1, gradients=16)
    on, off = (processes.outcome(processes.run_of("mlp", options, rate=rate)) for rate in (1.0, processes.NEVER))
    assert on.gradients == off.gradients == 16 * processes.LENGTH["mlp"]
    assert on.averagings > 0 == off.averagings


def test_ratio_is_the_median_of_turns() -> None:
    """One disturbed turn does not count."""
    assert bench.ratio([2.0, 2.0, 90.0], [1.0, 1.0, 1.0]) == 2.0
