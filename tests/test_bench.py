"""`unlocked bench`: its numbers come, in the promised form, from contestants that do the same work."""

from __future__ import annotations

import json
from typing import Any

import pytest

from unlocked import bench, cli
from unlocked.bench import gossip

KEYS = {"engine_overhead", "batched_speedup_mlp_64", "batched_speedup_conv_64"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few workers and gradients."""
    plain = bench.Options
    monkeypatch.setattr(gossip, "WORKERS", 4)
    monkeypatch.setattr(bench, "Options", lambda turns: plain(turns=turns, gradients=16))


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
    assert capsys.readouterr().err == "unlocked: bench = 'nothing': must be one of gossip\n"


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


def test_ratio_is_the_median_of_turns() -> None:
    """One disturbed turn does not count."""
    assert bench.ratio([2.0, 2.0, 90.0], [1.0, 1.0, 1.0]) == 2.0
