"""The loop that every training runs in: spans of steps, evaluation, checkpoints, the stop flag, divergence.

A trainer brings the steps and the measurements; what a run survives (a stop, a kill, a loss that is no longer a number)
is decided here, once.
"""

from __future__ import annotations

import time
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from unlocked.artifact import folders, record
from unlocked.artifact.tracking import Interrupted, Recorder
from unlocked.console import say
from unlocked.errors import named
from unlocked.papers.base import Training
from unlocked.units import human_time

if TYPE_CHECKING:
    from unlocked.vision.data import Dataset

STEPS_PER_LOOK = 16  # at the loss, the clock and the stop flag: a prompt stop that does not stall a GPU


def run(training: Training, recorder: Recorder, data: Dataset | None) -> None:
    """Train to the end, from the run's checkpoint on if there is one, and write the record.

    Raises `Interrupted` after writing a checkpoint when the process is asked to stop, and `Unusable` where a new
    training is to be tried.
    """
    checkpoint, steps = Checkpoint(training, recorder), 0
    first, skip = checkpoint.resume()
    if not recorder.rows:
        recorder.log(training.measure(0))
    for span in range(first, training.spans):
        for done, _ in enumerate(training.advance(span, skip), skip + 1):
            steps += 1
            if steps % STEPS_PER_LOOK == 0:
                if not training.healthy():
                    break
                checkpoint.look(span, done)
        if not training.healthy():
            recorder.finish("diverged", training.counts(), data, "the training loss is not finite")
            return
        skip = 0
        recorder.log(training.measure(span + 1))
        if span + 1 < training.spans:
            checkpoint.look(span + 1, 0)
    recorder.finish("completed", training.counts(), data)


class Unusable(Exception):
    """A checkpoint that is whole does not fit the training: it is set aside, and a new training goes on without it."""


class Checkpoint:
    """The state of a training and of its recorder between two steps, in one file whose name holds its digest."""

    def __init__(self, training: Training, recorder: Recorder) -> None:
        self.training, self.recorder = training, recorder
        self.folder = record.partial(recorder.folder)
        self.identity = f"{recorder.run.hash} {recorder.code}"
        self.saved = time.monotonic()

    def resume(self) -> tuple[int, int]:
        """Restore what the same settings and code left: (span, steps done in it), (0, 0) if there is nothing.

        A file that is not what was written is set aside, with one line; it is never read. So is one that cannot be
        restored; as it may have been in part, this raises `Unusable`.
        """
        for path in sorted(self.folder.glob("checkpoint-*.pt"), key=lambda path: path.stat().st_mtime, reverse=True):
            if path.name != name_of(path):
                folders.set_aside(path, "its content is not what was written")
                continue
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                if state["identity"] == self.identity:
                    return self.restore(state)
            except (MemoryError, OSError, torch.OutOfMemoryError):  # the machine's fault
                raise
            except Exception as error:
                folders.set_aside(path, named(error))
                raise Unusable from error
        return 0, 0

    def restore(self, state: dict[str, Any]) -> tuple[int, int]:
        """Put training and recorder where a checkpoint was written; `ValueError` if there is no such place."""
        recorder, span, done = self.recorder, index(state["span"]), index(state["done"])
        if span not in range(self.training.spans) or done not in range(self.training.length(span) + 1):
            raise ValueError(f"there are no {done} steps of span {span}")
        self.training.restore(state["training"])
        recorder.rows, recorder.resumed = state["rows"], state["resumed"] + 1
        recorder.started -= state["seconds"]
        where = f"after {human_time(recorder.seconds)} of training, in part {span + 1} of {self.training.spans}"
        say(f"{recorder.folder.name} goes on from its checkpoint, {where}")
        return span, done

    def look(self, span: int, done: int) -> None:
        """Save after `done` steps of a span if it is time or if a stop was requested; then raise `Interrupted`."""
        recorder, stop = self.recorder, self.recorder.stop and self.recorder.stop.requested
        if stop or time.monotonic() - self.saved > 60 * recorder.run.runtime.checkpoint_minutes:
            state = {"identity": self.identity, "training": self.training.state(), "span": span, "done": done}
            state |= {"rows": recorder.rows, "seconds": recorder.seconds, "resumed": recorder.resumed}
            save(state, self.folder)
            self.saved = time.monotonic()
        if stop:
            raise Interrupted(stop)


def save(state: dict[str, Any], folder: Path) -> None:
    """Write a checkpoint whole, on disk before it takes the place of older ones."""
    new, older = folder / "checkpoint.new", list(folder.glob("checkpoint-*.pt"))
    new.open("wb").close()  # what is in the way is named; torch would report any failure in the same words
    torch.save(state, new)
    folders.flush(new)
    whole = new.replace(folder / name_of(new))
    folders.flush(folder)
    for path in older:
        if path != whole:
            path.unlink(missing_ok=True)


def name_of(path: Path) -> str:
    """The name of a checkpoint with the content of a file."""
    return f"checkpoint-{folders.digest(path)[:32]}.pt"
