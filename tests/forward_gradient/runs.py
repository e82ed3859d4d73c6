"""Small runs of paper B for tests: resolved configs, and a training done to its end."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from unlocked import config
from unlocked.forward_gradient.trainer import Training

TINY: dict[str, Any] = {
    "runtime.wandb": "disabled",
    "data.train_limit": 96,
    "data.test_limit": 50,
    "model.width": 0.0625,
    "optim.batch_size": 16,
    "optim.epochs": 1,
    "evaluation.points": 2,
    "measure.batch_size": 16,
}


def tiny(**settings: Any) -> DictConfig:
    """A run of six steps on digits; dots of settings as double underscores."""
    base = config.defaults("forward_gradient", config.load_scale("quick"))
    return config.resolve(base, TINY | {key.replace("__", "."): value for key, value in settings.items()})


def advance(training: Training, steps: int | None = None) -> Training:
    """Do the first `steps` steps, or all, without evaluating."""
    for number in range(training.total if steps is None else steps):
        training.step(number)
    return training


def parameters(training: Training) -> dict[str, Tensor]:
    """Copies of all parameters by name."""
    return {name: p.detach().clone() for name, p in training.net.parts.named_parameters()}
