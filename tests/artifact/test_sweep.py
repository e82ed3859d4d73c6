"""The sweep for W&B's agents: its command, as an agent would expand it, names runs that can be trained."""

from __future__ import annotations

import argparse
import itertools
import shlex

import pytest
import yaml

from unlocked import cli
from unlocked.artifact.config import ROOT, run_from_file

SWEEP = yaml.safe_load((ROOT / "workflow" / "sweeps" / "learning_rate.yaml").read_text())


def commands() -> list[list[str]]:
    """Of all points of the grid, `${args_no_hyphens}` replaced as W&B's agent does."""
    keys, values = zip(*((key, own["values"]) for key, own in SWEEP["parameters"].items()), strict=True)
    points = [
        [f"{key}={value}" for key, value in zip(keys, point, strict=True)] for point in itertools.product(*values)
    ]
    start = [word for word in SWEEP["command"] if word not in ("${env}", "${args_no_hyphens}")]
    return [start + point for point in points]


def test_every_point_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line takes it, the settings can stand, and no two points are the same run."""
    assert SWEEP["method"] == "grid"
    monkeypatch.chdir(ROOT)
    ids = set()
    for line in commands():
        assert line[:3] == ["python", "-m", "unlocked"], shlex.join(line)
        parsed: argparse.Namespace = cli.parser().parse_args(line[3:])
        (config,) = parsed.configs
        run = run_from_file(config, parsed.change)
        assert run.runtime.wandb == "online"
        ids.add(run.id)
    assert len(ids) == len(commands()) == 36
