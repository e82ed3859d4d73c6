"""The loop that every training runs in: spans of steps, evaluation, checkpoints, the stop flag, divergence.

Third on the road. A trainer brings the steps and the measurements; what a run survives (a stop, a kill, a loss that is
no longer a number) is decided here, once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from omegaconf import DictConfig

from unlocked import config, tracking
from unlocked.errors import SettingError
from unlocked.tracking import Interrupted, Recorder

# Steps between two looks at the loss, the clock and the stop flag: often enough for a prompt stop, rarely enough not
# to stall a GPU.
STEPS_PER_LOOK = 16


@dataclass(frozen=True)
class Measurement:
    """What an evaluation found, and when: numbers, or one number per worker or block."""

    metrics: dict[str, Any]
    step: int  # gradients so far, over all workers
    epoch: float
    virtual_time: float


class Training(Protocol):
    """What a trainer offers the loop."""

    spans: int  # parts of the run, each followed by an evaluation

    def advance(self, span: int, skip: int) -> Iterator[None]:
        """Do the steps of a span from the `skip`-th on, one per `next`."""

    def healthy(self) -> bool:
        """Whether the loss is still a finite number."""

    def measure(self, spans: int) -> Measurement:
        """Evaluate after that many spans."""

    def counts(self) -> dict[str, Any]:
        """The `counts` of the record."""

    def state(self) -> dict[str, Any]:
        """Everything a checkpoint needs: tensors and plain values."""

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""


def evaluation_points(total: int, points: int) -> list[int]:
    """Steps at which a run is evaluated, besides the start; the last is `total`."""
    return sorted({max(1, round(total * k / points)) for k in range(1, points + 1)})


def run(training: Training, recorder: Recorder, data: tracking.Data) -> dict[str, Any]:
    """Train to the end and write the record; returns its summary.

    Continues from the run's checkpoint if there is one, as if it had not been interrupted. Raises `Interrupted` after
    writing a checkpoint when the process is asked to stop.
    """
    first, skip = resume(training, recorder)
    watch = Watch(training, recorder)
    if not recorder.rows:
        record(training, recorder, 0)
    for span in range(first, training.spans):
        start = skip if span == first else 0
        for done, _ in enumerate(training.advance(span, start), start + 1):
            if not watch.step(span, done):
                break
        if not training.healthy():
            return recorder.finish("diverged", training.counts(), data, "the training loss is not finite")
        record(training, recorder, span + 1)
        if span + 1 < training.spans:
            watch.look(span + 1, 0)
    return recorder.finish("completed", training.counts(), data)


def record(training: Training, recorder: Recorder, spans: int) -> None:
    """Evaluate and log."""
    found = training.measure(spans)
    recorder.log(found.metrics, step=found.step, epoch=found.epoch, virtual_time=found.virtual_time)


class Watch:
    """Looks at the loss, the clock and the stop flag every few steps, over all spans, and after every evaluation."""

    def __init__(self, training: Training, recorder: Recorder) -> None:
        self.training, self.recorder = training, recorder
        self.steps, self.saved = 0, time.monotonic()

    def step(self, span: int, done: int) -> bool:
        """A step of a span is done: False if the loss is no longer finite."""
        self.steps += 1
        if self.steps % STEPS_PER_LOOK:
            return True
        if not self.training.healthy():
            return False
        self.look(span, done)
        return True

    def look(self, span: int, done: int) -> None:
        """Checkpoint if it is time or if a stop was requested; then raise `Interrupted`."""
        stop = self.recorder.stop_requested
        late = time.monotonic() - self.saved > 60 * self.recorder.run.runtime.checkpoint_minutes
        if stop or late:
            save(self.training, self.recorder, span, done)
            self.saved = time.monotonic()
        if stop:
            raise Interrupted(stop)


def identity(recorder: Recorder) -> str:
    """What a checkpoint must agree with to be continued."""
    return f"{config.config_hash(recorder.run)} {recorder.code}"


def save(training: Training, recorder: Recorder, span: int, done: int) -> None:
    """Write a checkpoint: a new file that replaces the old one when complete."""
    state = {
        "identity": identity(recorder),
        "training": training.state(),
        "recorder": recorder.state(),
        "span": span,
        "done": done,
    }
    path = recorder.checkpoint_path
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def resume(training: Training, recorder: Recorder) -> tuple[int, int]:
    """Restore a checkpoint of the same config and code: (span, steps done in it), (0, 0) if there is none."""
    path = recorder.checkpoint_path
    if not path.is_file():
        return 0, 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["identity"] != identity(recorder):
        return 0, 0
    training.restore(state["training"])
    recorder.restore(state["recorder"])
    return state["span"], state["done"]


def check_device(settings: DictConfig) -> None:
    """Refuse a device that this machine does not have, before anything is trained."""
    device = settings.runtime.device
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise SettingError("runtime.device", device, "must be cpu, cuda, or cuda:<number>")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise SettingError("runtime.device", device, "this machine has no usable GPU: use cpu")
    if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise SettingError("runtime.device", device, f"this machine has {torch.cuda.device_count()} GPU(s)")
