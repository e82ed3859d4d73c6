"""SIGKILL to the workflow and its jobs, at random moments: nothing that was computed is lost, nothing else changes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from comparison import assert_same_items, assert_same_records
from flow import environment, finish, workflow
from unlocked import seeding
from unlocked.artifact import record

pytestmark = pytest.mark.faults

ITEMS = ("acid_figure_1", "acid_quadratic")
KILLS = int(os.environ.get("UNLOCKED_TEST_KILLS", "10"))


@pytest.fixture
def start() -> Iterator[Callable]:
    """Start a workflow in a folder; in the end, what outlived it is killed."""
    groups: list[int] = []

    def go(line: list[str], folder: Path) -> subprocess.Popen:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(line, cwd=folder, env=environment(), start_new_session=True, **quiet)
        groups.append(process.pid)
        return process

    yield go
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def trainers(process: subprocess.Popen) -> list[psutil.Process]:
    """The training processes of a workflow."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            found += [child] if {"unlocked", "train"} <= {*child.cmdline()} else []
    return found


def strike(process: subprocess.Popen, kind: str) -> None:
    """SIGKILL to everything, to Snakemake alone, or to one training job, after which Snakemake ends by itself."""
    if kind == "a job" and (jobs := trainers(process)):
        with suppress(psutil.NoSuchProcess):
            jobs[0].kill()
        process.wait(timeout=300)
        return
    (os.kill if kind == "Snakemake" else os.killpg)(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_kills_change_nothing(tmp_path: Path, start: Callable) -> None:
    """SIGKILL at random moments, to everything, to Snakemake alone or to a job; the last call ends as an undisturbed
    one does."""
    calm, stormy, line = tmp_path / "calm", tmp_path / "stormy", workflow(*ITEMS)
    calm.mkdir()
    stormy.mkdir()
    assert finish(line, calm).returncode == 0
    draws, kills = seeding.generator(0, "kills"), 0
    while kills < KILLS:
        process, kind = start(line, stormy), str(draws.choice(["everything", "Snakemake", "a job"]))
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=float(draws.uniform(1, 9)))
        if process.returncode is None:
            strike(process, kind)
            kills += 1
        else:  # finished before its kill: once more from the start
            assert process.returncode == 0
            assert_same_records(stormy / "results", calm / "results")
            shutil.rmtree(stormy / "results")
    done = finish(line, stormy)
    assert done.returncode == 0, done.stderr
    assert not list((stormy / "results").rglob("*.partial"))
    assert_same_records(stormy / "results", calm / "results")
    assert_same_items(stormy / "paper_figures", calm / "paper_figures")


def test_a_call_after_snakemake_alone_was_killed(tmp_path: Path, start: Callable) -> None:
    """It works at once: the job that lives on finishes its runs, the new call waits for them and trains none twice."""
    line = workflow("acid_figure_1")
    process, deadline = start(line, tmp_path), time.monotonic() + 120
    while not list(tmp_path.glob("results/quick/acid/*.partial/checkpoint-*.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (orphan,) = trainers(process)
    strike(process, "Snakemake")
    assert orphan.is_running()
    done = finish(line, tmp_path)
    assert done.returncode == 0, done.stderr
    orphan.wait(timeout=60)  # its runs are done; it may take a moment to end
    records = [record.load(folder) for folder in record.load_all(tmp_path / "results")["folder"]]
    assert [one.summary["provenance"]["resumed"] for one in records] == [0, 0, 0]
    logs = "".join(path.read_text(errors="replace") for path in tmp_path.glob("results/quick/acid/logs/*.log"))
    assert f"is being trained by process {orphan.pid}" in logs
