"""Small runs of forward gradients for tests: their settings, their data, and a training done to its end."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from torch import Tensor

from comparison import train_here
from unlocked.artifact import config, record
from unlocked.papers import PAPERS
from unlocked.papers.forward_gradient.training import ForwardTraining
from unlocked.vision import data as vision_data
from unlocked.vision.data import Dataset

TINY: dict[str, Any] = {
    "data.train_limit": 96,
    "data.test_limit": 50,
    "model.width": 0.0625,
    "optim.batch_size": 16,
    "optim.epochs": 1,
    "evaluation.points": 2,
    "measure.batch_size": 16,
}


@functools.cache
def bases() -> config.Bases:
    overrides = [f"forward_gradient.training.{key}={value}" for key, value in TINY.items()]
    return config.Bases(PAPERS["forward_gradient"], config.load_scale("quick", overrides), {"wandb": "disabled"})


def tiny(**settings: Any) -> Any:
    """A run of six steps on digits; dots of settings as double underscores."""
    return bases().run({key.replace("__", "."): value for key, value in settings.items()})


@functools.cache
def digits(device: str = "cpu") -> Dataset:
    return vision_data.load("digits", train_limit=96, test_limit=50, device=device)


def fresh(**settings: Any) -> ForwardTraining:
    """A training that has not begun."""
    return ForwardTraining(tiny(**settings), digits(settings.get("runtime__device", "cpu")))


def advance(training: ForwardTraining, steps: int | None = None) -> ForwardTraining:
    """Do the first `steps` steps, or all, without evaluating."""
    for number in range(training.total if steps is None else steps):
        training.step(number)
    return training


def recorded(run: Any, folder: Path, data: Dataset | None = None) -> record.Record:
    """Train to the end and read the record."""
    return train_here(run, folder, data or digits())


def parameters(training: ForwardTraining) -> dict[str, Tensor]:
    """Copies of all parameters by name."""
    return {name: p.detach().clone() for name, p in training.net.named_parameters()}
