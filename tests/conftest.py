"""What the tests share: golden numbers, tiny runs on the digits, their training, and the command line."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; tests run side by side, on small nets

import pytest
import yaml
from hypothesis import settings

from unlocked.artifact import config, record
from unlocked.papers import PAPERS
from unlocked.papers.run import Run

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=40)
settings.register_profile("many", settings.get_profile("steady"), max_examples=2000)  # --hypothesis-profile=many
settings.load_profile("steady")

TINY = {"workers": 4, "optim.epochs": 1, "evaluation.points": 3, "evaluation.train_limit": 100, "data.test_limit": 100}
MakeRun = Callable[..., Run]
Train = Callable[[Run], record.Record]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests first, so that in the end no process is left alone with them."""
    long = {item.path for item in items if {"slow", "faults"} & {mark.name for mark in item.iter_markers()}}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Numbers from the code released with the paper."""
    return json.loads((Path(__file__).parent / "golden" / "gossip.json").read_text())


@pytest.fixture(scope="session")
def tiny_run() -> MakeRun:
    """A factory of runs of paper A: 4 workers, one epoch of the digits; changed by `{"optim.lr": 1}` or `workers=8`."""
    scale = config.load_scale("quick", [f"acid.training.{key}={value}" for key, value in TINY.items()])
    bases = config.Bases(PAPERS["acid"], scale, {"wandb": "disabled"})
    return lambda changes=None, **more: bases.run((changes or {}) | more)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Folder of the records of one test."""
    return tmp_path / "results"


@pytest.fixture
def trained(results: Path) -> Train:
    """Train a run into `results` and read its record."""
    from unlocked.artifact import train

    def go(run: Run) -> record.Record:
        train.train([run], results)
        return record.load(record.folder_of(results, run))

    return go


@pytest.fixture(scope="session")
def data_of() -> Callable[[Run], Any]:
    """The data set of a run, loaded once."""
    from unlocked.artifact import train

    load = functools.cache(train.load_data)
    return lambda run: load(train.data_key(run))


@pytest.fixture(scope="session")
def start_command() -> Callable[..., subprocess.Popen]:
    """Start `python -m unlocked ...` in a process of its own."""

    def start(*words: object, **options: Any) -> subprocess.Popen:
        line = [sys.executable, "-m", "unlocked", *map(str, words)]
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, env=os.environ | {"PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}, **options)

    return start


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[Run], Path]:
    """Write a run's settings to a file."""

    def write(run: Run) -> Path:
        path = tmp_path / f"{run.id}.yaml"
        path.write_text(yaml.safe_dump(run.settings()))
        return path

    return write
