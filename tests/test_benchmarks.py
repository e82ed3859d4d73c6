"""The scripts in `benchmarks/`: tried out with too little to mean anything, from contestants that do the same work."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from unlocked import cli
from unlocked.artifact.config import ROOT
from unlocked.forward_gradient import per_sample
from unlocked.forward_gradient.memory import peak_bytes
from unlocked.papers.acid.training import GossipTraining

SPACES = ("activity", "averaged", "per_sample")
PROMISED = {
    "gossip": {"engine_overhead", "batched_speedup_mlp_64", "batched_speedup_conv_64"},
    "forward_gradient": {f"{what}_{space}" for what in ("cpu", "memory") for space in SPACES}
    | {"cpu_bare_activity", "cpu_bare_averaged", "forward_mode_memory_block0"},
    "processes": {
        *(f"gossip_on_off_{network}_2" for network in ("mlp", "conv")),
        *("gossip_on_off_waiting_4", "core_milliseconds_per_averaging", "core_milliseconds_floor"),
        *("async_vs_ddp_straggler", "averaging_vs_raw", "idle_cpu"),
    },
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """A script as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for path in (ROOT / "benchmarks").glob("*.py"):
        sys.modules.pop(path.stem, None)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", PROMISED)
def test_the_ratios(name: str, script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Positive numbers: those that are promised, each with what it means."""
    own, pages = script(name), script("pages")
    if name == "forward_gradient":
        monkeypatch.setattr(own, "fresh", lambda width, whole=own.fresh: whole(width, 4, 8))
    found = own.ratios(pages.Options(turns=1, gradients=64, width=0.0625))
    assert all(isinstance(value, float) and value > 0 for value in found.values())
    assert PROMISED[name] <= set(found) == set(own.MEANINGS)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`unlocked bench` passes its options on."""
    called: list[list[str]] = []
    monkeypatch.setattr(subprocess, "call", lambda line: called.append(line) or 3)
    assert cli.main(["bench", "gossip", "--json", "--turns", "2"]) == 3
    assert called == [
        [sys.executable, str(ROOT / "benchmarks/ratios.py"), "gossip", "--turns", "2", "--width", "1.0", "--json"]
    ]


def test_contestants_do_the_same_gradients(script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """After all turns the three ways have done as many gradients as the floor, and none is left."""
    made = []

    class Training(GossipTraining):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self)

    gossip, pages = script("gossip"), script("pages")
    monkeypatch.setattr(gossip, "RING", 4)
    monkeypatch.setattr(gossip, "GossipTraining", Training)
    contestants = gossip.contestants("mlp", pages.Options(turns=2, gradients=8))
    pages.race(contestants, turns=2)
    assert [int(training.engine.steps.sum()) for training in made] == [24, 24, 24]
    assert (made[0].engine.x - made[1].engine.x).abs().max() < 1e-4
    assert torch.equal(made[0].engine.x, made[2].engine.x)  # with autograd and without it
    for go in contestants.values():
        with pytest.raises(StopIteration):
            go()


def test_peak_memory_of_a_step_stays_near_backpropagation(
    script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in tensors, so that it is the same number everywhere: at most 1.5 times, in every space."""
    monkeypatch.setattr(per_sample, "CHUNK_BYTES", {"cpu": 2**20})  # as small beside the net's as it is at width 1
    forward_gradient = script("forward_gradient")
    batch = forward_gradient.fresh(0.25, batch=32, size=16)
    peer = peak_bytes(lambda: forward_gradient.backpropagation(*batch))
    for method in forward_gradient.SPACES.values():
        assert peak_bytes(partial(forward_gradient.step, *batch, method)) < 1.5 * peer


def test_processes_do_what_they_are_timed_for(script: Callable[[str], Any]) -> None:
    """With gossip and without it a run has the same gradients; only one of them averages."""
    processes, options = script("processes"), script("pages").Options(turns=1, gradients=16)
    on, off = (processes.outcome(processes.run_of("mlp", options, rate=rate)) for rate in (1.0, processes.NEVER))
    assert on.gradients == off.gradients == 16 * processes.LENGTH["mlp"]
    assert on.averagings > 0 == off.averagings


def test_ratio_is_the_median_of_turns(script: Callable[[str], Any]) -> None:
    """One disturbed turn does not count."""
    assert script("pages").ratio([2.0, 2.0, 90.0], [1.0, 1.0, 1.0]) == 2.0


# On a GPU


@pytest.fixture
def gpu(script: Callable[[str], Any]) -> Any:
    return script("gpu")


def written(gpu: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> dict[str, Any]:
    """The tables that a call of the script leaves."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--results", str(folder), *arguments])
    gpu.pages.write("gpu", gpu.TEXT, gpu.measure, size="papers", device="cuda")
    return json.loads((folder / "gpu.json").read_text())


def test_every_table_is_measured(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All cells, ways and methods have a time; the hours cover every run of both scales and follow from the times."""
    monkeypatch.setitem(gpu.SIZES, "tiny", gpu.Size(3, 2, (2,), 16, 8, 8, 1 / 16, 2))
    found = written(gpu, monkeypatch, tmp_path, "--size", "tiny", "--device", "cpu")
    assert [row["cell"] for row in found["cells"]] == 2 * ["bare gradient", "allreduce", "baseline", "acid"]
    ways = {(row["network"], row["way"]) for row in found["executions"]}
    assert ways >= {(network, way) for network in ("mlp", "conv") for way in ("bare gradient", "loop", "batched")}
    assert [row["step"] for row in found["forward"]] == list(gpu.METHODS)
    for table in ("cells", "executions", "large", "forward"):
        assert all(0 < row["ms per gradient"] < math.inf for row in found[table])
    whole = {scale: [row for row in found["hours"] if row["scale"] == scale] for scale in ("gpu", "paper")}
    for scale, rows in whole.items():
        assert sum(row["runs"] for row in rows) == len(gpu.Plan(scale).runs)
        assert all((row["measured hours"] != row["estimated hours"]) == (row["data"] != "none") for row in rows)
    page = (tmp_path / "gpu.md").read_text()
    assert "no GPU: a trial of the script" in page
    assert "{" not in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no usable GPU") as stopped:
        written(gpu, monkeypatch, tmp_path)
    assert "\n" not in str(stopped.value)
    with pytest.raises(SystemExit, match="must be one of papers, tiny"):
        written(gpu, monkeypatch, tmp_path, "--size", "huge", "--device", "cpu")
    assert not list(tmp_path.iterdir())
