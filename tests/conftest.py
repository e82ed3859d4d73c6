"""What the tests share: golden numbers, tiny runs on the digits, their training, and the command line."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported; tests run side by side, on small nets

import pytest
from hypothesis import settings
from omegaconf import DictConfig

from unlocked import config, record

settings.register_profile("steady", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("steady")

TINY = {
    "workers": 4,
    "optim.epochs": 1,
    "evaluation.points": 3,
    "evaluation.train_limit": 100,
    "data.test_limit": 100,
    "runtime.wandb": "disabled",
}
MakeRun = Callable[..., DictConfig]
Train = Callable[[DictConfig], record.Record]


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    """Numbers from the code released with the paper."""
    return json.loads((Path(__file__).parent / "golden" / "gossip.json").read_text())


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Training installs signal handlers: give the test runner its own back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_base() -> DictConfig:
    """Settings of paper A at the quick scale."""
    return config.defaults("acid", config.load_scale("quick"))


@pytest.fixture(scope="session")
def tiny_run(tiny_base: DictConfig) -> MakeRun:
    """A factory of resolved runs: 4 workers, one epoch of the digits; changes as `{"optim.lr": 0.1}` or `workers=8`."""

    def make(changes: dict[str, Any] | None = None, **more: Any) -> DictConfig:
        return config.resolve(tiny_base, TINY | (changes or {}) | more)

    return make


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Folder of the records of one test."""
    return tmp_path / "results"


@pytest.fixture
def trained(results: Path) -> Train:
    """Train a run into `results` and read its record."""
    from unlocked import train

    def go(run: DictConfig) -> record.Record:
        train.train([run], results)
        return record.load(record.folder_of(results, run))

    return go


@pytest.fixture(scope="session")
def data_of() -> Callable[[DictConfig], Any]:
    """The data set of a run, loaded once."""
    from unlocked import train

    load = functools.cache(train.load_data)
    return lambda run: load(train.data_key(run))


@pytest.fixture(scope="session")
def start_command() -> Callable[..., subprocess.Popen]:
    """Start `python -m unlocked ...` in a process of its own."""

    def start(*words: object, **options: Any) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}
        return subprocess.Popen(
            [sys.executable, "-m", "unlocked", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )

    return start


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[DictConfig], Path]:
    """Write a run's config to a file."""
    from omegaconf import OmegaConf

    def write(run: DictConfig) -> Path:
        path = tmp_path / f"{config.run_id(run)}.yaml"
        path.write_text(OmegaConf.to_yaml(run))
        return path

    return write
