"""How runs of processes are set up: torchrun and srun, GPUs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from driving import Short, Started, check_accounts, drive

from unlocked import places
from unlocked.artifact import record, train
from unlocked.errors import SettingError
from unlocked.papers.acid.processes.training import ProcessTraining


def test_place_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torchrun, of srun, or of nobody."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert places.place() is None
    slurm = {"STEP_NUM_TASKS": "8", "PROCID": "5", "JOB_ID": "77", "STEP_ID": "2", "STEP_NODELIST": "cn[003-007],gpu1"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that what `place` sets is undone
        monkeypatch.delenv(name)
    assert places.place() == places.Place(5, 8)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("cn003", str(20000 + 77 + 2 * 1009))
    assert [places.first_node(nodes) for nodes in ("one", "a1,a2", "b[4,6]-ib,c")] == ["one", "a1", "b4-ib"]
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert places.place() == places.Place(2, 4)


def test_processes_must_be_as_many_as_workers(
    monkeypatch: pytest.MonkeyPatch, short: Short, tiny_run: Any, data_of: Any, results: Path
) -> None:
    """Under torchrun a run needs one process per worker, and this engine."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    run = short(40)
    with pytest.raises(SettingError, match="3 processes were started"):
        ProcessTraining(run, data_of(run))
    with pytest.raises(SettingError, match="computes in one process"):
        train.train([tiny_run()], results)


def test_two_agents_of_torchrun(short: Short, config_file: Any, results: Path) -> None:
    """Two nodes of two processes each, on loopback, one run after the other: records as from a local start."""
    runs = [short(80), short(80, {"method": "allreduce"})]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "2"]
    words += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "-m", "unlocked", "train"]
    words += [*map(str, map(config_file, runs)), "--results", str(results)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    agents = [subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) for _ in range(2)]
    for agent in agents:
        errors = agent.communicate(timeout=300)[1]
        assert agent.returncode == 0, errors
    for run in runs:
        summary = json.loads((record.folder_of(results, run) / "summary.json").read_text())
        assert summary["counts"]["gradients"] == 80
        assert summary["counts"]["deaths"] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_four_workers_share_a_gpu(short: Short, started: Started) -> None:
    """Gossip through page-locked memory: all is accounted for, and the workers agree in the end."""
    training = started(short(400, {"runtime.device": "cuda", "model.name": "conv", "rate": 2.0}))
    metrics = drive(training)[-1].metrics
    assert check_accounts(training)["communications"] > 100
    assert metrics["consensus_distance"] < 1.0
