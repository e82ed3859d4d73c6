"""The examination of a machine: findings, problems marked with what to do, and costs that follow the measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unlocked import cli, doctor, plan
from unlocked.doctor import Finding


def by_topic(findings: list[Finding]) -> dict[str, Finding]:
    """Findings by what they are about."""
    return {finding.topic: finding for finding in findings}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finding]:
    """What is found here, with an empty folder of data sets."""
    folder = tmp_path_factory.mktemp("here")
    return by_topic(doctor.examine(folder / "data", folder / "results"))


def test_every_part_of_the_machine_has_a_line(found: dict[str, Finding]) -> None:
    """Also where there is nothing to find."""
    assert {"python", "torch", "snakemake", "wandb", "cores", "memory", "gpu", "slurm", "disk"} <= found.keys()
    assert all("\n" not in finding.text + finding.advice for finding in found.values())


def test_missing_data_sets_say_how_to_get_them(found: dict[str, Finding]) -> None:
    """The digits are always there; what is not says where it belongs."""
    assert not found["data digits"].advice
    assert "image-net.org" in found["data imagenet32"].advice


def test_versions_against_the_lock() -> None:
    """The same, another, none."""
    assert doctor.version("torch", None).advice == ""
    assert "the lock has 0.0.1" in doctor.version("torch", "0.0.1").advice
    assert "pip install no-such-package==1.0" in doctor.version("no-such-package", "1.0").advice


def test_folders_that_cannot_be_written_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do."""
    assert not by_topic(list(doctor.storage(tmp_path)))["results"].advice
    monkeypatch.setattr(doctor.os, "access", lambda *arguments: False)
    assert "cannot be written" in by_topic(list(doctor.storage(tmp_path / "a" / "b")))["results"].advice


def test_a_slow_machine_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time grows with the measured slowness and shrinks with the cores; never below the longest job."""
    monkeypatch.setattr(doctor, "usable_cores", lambda: 4)
    few = plan.Plan("quick", ["seeds=[0]", "acid.workers=[4]", "acid.largest=4"])
    one, three = (doctor.cost_of(few, "acid", factor, "cpu") for factor in (1.0, 3.0))
    assert three["hours"] == pytest.approx(3 * one["hours"])
    assert one["hours"] / 4 <= one["wall_hours"] <= one["hours"]
    assert doctor.cost_of(few, "acid", 1.0, "cuda")["wall_hours"] >= one["wall_hours"]


def test_the_measurement_is_a_time() -> None:
    """Repeated, and shorter for the smaller net."""
    seconds = {name: doctor.gradient_seconds(*net, "cpu") for name, net in doctor.CALIBRATION.items()}
    assert 0 < seconds["quick"] < seconds["reduced"]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 0 with problems; both papers at a scale; problems are marked."""
    monkeypatch.setattr(doctor, "SCALES", ("quick",))
    monkeypatch.setattr(doctor, "measured_slowness", lambda device: {"quick": 1.0, "reduced": 2.0})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {(row["scale"], row["paper"]) for row in found["costs"]} == {
        ("quick", paper) for paper in doctor.config.PAPERS
    }
    lines = doctor.as_text(found).splitlines()
    marked = [line for line in lines if line.startswith("! ")]
    assert len(marked) == sum(bool(finding["advice"]) for finding in found["findings"])
    assert any("imagenet" in line for line in marked)
