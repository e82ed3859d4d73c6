"""The examination of a machine: findings, problems marked with what to do, and costs that follow the measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from unlocked import cli
from unlocked.artifact import doctor, plan
from unlocked.papers import PAPERS


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for every part of the machine, problems marked with what to do, all papers at a scale; exit status 0."""
    monkeypatch.setattr(doctor, "SCALES", ("quick",))
    monkeypatch.setattr(doctor, "gradient_seconds", lambda *net: 1e-3)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    findings = {line[2:34].strip(): line for line in lines[: lines.index("")]}
    assert {"python", "torch", "snakemake", "wandb", "cores", "memory", "gpu", "slurm", "disk"} <= findings.keys()
    assert findings["data digits"].startswith("  ")
    assert findings["data imagenet32"].startswith("! ")
    assert "image-net.org" in findings["data imagenet32"]
    assert all(f"quick {paper}".split() == row.split()[:2] for paper, row in zip(PAPERS, lines[-2:], strict=True))


def test_versions_against_the_lock() -> None:
    """The same, another, none."""
    assert doctor.version("torch", None).startswith("  ")
    assert "the lock has 0.0.1" in doctor.version("torch", "0.0.1")
    assert "pip install no-such-package==1.0" in doctor.version("no-such-package", "1.0")


def test_folders_that_cannot_be_written_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be written" not in doctor.storage(tmp_path)
    monkeypatch.setattr(doctor.os, "access", lambda *arguments: False)
    assert "cannot be written" in doctor.storage(tmp_path / "a" / "b")


@pytest.mark.parametrize(("answer", "words"), [("main up", "main: see"), ("", "does not answer"), (None, "not found")])
def test_slurm(answer: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that answers, one that does not, and none."""
    for name in ("sbatch", "sinfo") if answer is not None else ():
        (tmp_path / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if answer is not None else str(tmp_path))
    assert words in doctor.slurm()


def test_a_slow_machine_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time grows with the measured slowness and shrinks with the cores; never below the longest job."""
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    few = plan.Plan("quick", ["seeds=[0]", "acid.workers=[4]", "acid.largest=4"])
    one, three, gpu = (next(doctor.costs(few, *on)) for on in ((1.0, "cpu"), (3.0, "cpu"), (1.0, "cuda")))
    assert three["computing"] == pytest.approx(3 * one["computing"])
    assert one["computing"] / 4 <= one["in all"] <= one["computing"] == gpu["in all"]


def test_the_measurement_is_a_time() -> None:
    """Repeated, and shorter for the smaller net."""
    seconds = {name: doctor.gradient_seconds(*net, "cpu") for name, net in doctor.CALIBRATION.items()}
    assert 0 < seconds["quick"] < seconds["reduced"]
