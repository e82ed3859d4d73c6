"""The training loop with a training that is a random walk: evaluations, checkpoints, stops, divergence."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from comparison import StopAfter, assert_same_record
from unlocked.artifact import loop, record
from unlocked.artifact.record import Record
from unlocked.artifact.tracking import Interrupted, Recorder
from unlocked.papers.base import Measurement
from unlocked.papers.run import Run
from unlocked.seeding import generator


class Walk:
    """A training whose state is a position; `diverges` is the step at which that becomes infinite."""

    def __init__(self, spans: int = 3, steps: int = 40, diverges: int | None = None) -> None:
        self.spans, self.steps, self.diverges = spans, steps, diverges
        self.position, self.done = torch.zeros(2, dtype=torch.float64), 0

    def length(self, span: int) -> int:
        return self.steps

    def advance(self, span: int, skip: int) -> Iterator[None]:
        assert self.done == span * self.steps + skip
        for _ in range(skip, self.steps):
            self.position += torch.from_numpy(generator(0, "walk", self.done).normal(size=2))
            self.done += 1
            if self.done == self.diverges:
                self.position += torch.inf
            yield

    def healthy(self) -> bool:
        return bool(self.position.isfinite().all())

    def measure(self, spans: int) -> Measurement:
        assert self.done == spans * self.steps
        return Measurement({"x": float(self.position[0]), "both": self.position}, self.done, self.done / 10, self.done)

    def counts(self) -> dict[str, Any]:
        return {"gradients": self.done}

    def state(self) -> dict[str, Any]:
        return {"position": self.position, "done": self.done}

    def restore(self, state: dict[str, Any]) -> None:
        self.position.copy_(state["position"])
        self.done = state["done"]


@pytest.fixture
def walk(tiny_run: Callable[..., Run], results: Path) -> Callable[..., Record]:
    """Drive a walk in a folder of results; its recorder is that of some run."""

    def go(training: Any, stop: Any = None, place: str = "", code: str = "c", **runtime: Any) -> Record:
        run = tiny_run({f"runtime.{key}": value for key, value in runtime.items()})
        recorder = Recorder(record.folder_of(results / place, run), run, stop=stop)
        recorder.code = code
        loop.run(training, recorder, None)
        return record.load(recorder.folder)

    return go


def test_every_span_is_evaluated(walk: Callable[..., Record]) -> None:
    """Before the first step and after every span; a run without data says so."""
    one = walk(Walk())
    assert one.series("x")["step"].tolist() == one.series("both", 1)["step"].tolist() == [0, 40, 80, 120]
    assert one.summary["status"] == "completed"
    assert one.summary["counts"] == {"gradients": 120}
    assert one.summary["provenance"]["data"]["name"] == "none"


@pytest.mark.parametrize("reads", range(9))
def test_a_stopped_run_ends_bit_identical(walk: Callable[..., Record], results: Path, reads: int) -> None:
    """Whenever the stop comes, in a span or between two, there is a checkpoint, and the next call continues from it."""
    with pytest.raises(Interrupted):
        walk(Walk(), StopAfter(reads), "stopped")
    (path,) = results.rglob("checkpoint*")
    state = torch.load(path, weights_only=True)
    assert state["training"]["done"] == 40 * state["span"] + state["done"]
    assert record.load_all(results).empty
    loop.save(state | {"seconds": 100.0}, path.parent)
    continued = walk(Walk(), place="stopped")
    assert continued.summary["provenance"]["resumed"] == 1
    assert continued.history["wall_time"].iloc[-1] > 100
    assert_same_record(continued, walk(Walk(), place="whole"))
    assert sorted(path.name for path in continued.folder.parent.iterdir()) == [continued.run.id]


def flipped(content: bytes) -> bytes:
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize(
    "harm", [lambda content: content[:100], lambda content: b"", lambda content: b"foreign" * 99, flipped]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_run_starts_anew(
    walk: Callable[..., Record], results: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(Interrupted):
        walk(Walk(), StopAfter(4), "stopped")
    (path,) = results.rglob("checkpoint-*.pt")
    path.write_bytes(harm(path.read_bytes()))
    anew = walk(Walk(), place="stopped")
    assert anew.summary["provenance"]["resumed"] == 0
    assert_same_record(anew, walk(Walk(), place="whole"))
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [kept.name for kept in anew.folder.glob("*checkpoint*")] == [f"damaged-{path.name}"]


@pytest.mark.parametrize(
    "changes",
    [
        {"span": 3}, {"span": -1}, {"span": 0.5}, {"done": 41}, {"done": -1}, {"done": "1"},
        {"training": {"position": torch.zeros(3), "done": 0}}, {"training": {}}, {"identity": None, "training": 1},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_set_aside(
    walk: Callable[..., Record], results: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    """Whole, and of the same settings and code, but of a place that there is not or for another net: a new training
    starts from the beginning."""
    with pytest.raises(Interrupted):
        walk(Walk(), StopAfter(4), "stopped")
    (path,) = results.rglob("checkpoint-*.pt")
    if changes.get("identity", True) is None:
        path = path.rename(path.with_name("foreign"))
        torch.save([1, 2], path)
        path = path.rename(path.with_name(loop.name_of(path)))
    else:
        loop.save(torch.load(path, weights_only=True) | changes, path.parent)
    (path,) = results.rglob("checkpoint-*.pt")
    with pytest.raises(loop.Unusable):
        walk(Walk(), place="stopped")
    anew = walk(Walk(), place="stopped")
    assert anew.summary["provenance"]["resumed"] == 0
    assert_same_record(anew, walk(Walk(), place="whole"))
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert [kept.name for kept in anew.folder.glob("*checkpoint*")] == [f"damaged-{path.name}"]


class Malicious:
    """Touches a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def test_a_checkpoint_runs_no_code(walk: Callable[..., Record], results: Path, tmp_path: Path) -> None:
    """Not even one whose name holds its digest."""
    with pytest.raises(Interrupted):
        walk(Walk(), StopAfter(4), "stopped")
    (path,) = results.rglob("checkpoint-*.pt")
    loop.save({"identity": Malicious(tmp_path / "owned")}, path.parent)
    with pytest.raises(loop.Unusable):
        walk(Walk(), place="stopped")
    assert not (tmp_path / "owned").exists()


def test_looks_are_rare(walk: Callable[..., Record], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may wait for a GPU: every 16th step, and once after every span."""
    asked = []
    monkeypatch.setattr(Walk, "healthy", lambda self: not asked.append(self.done))
    walk(Walk(spans=3, steps=40))
    assert asked == [16, 32, 40, 48, 64, 80, 80, 96, 112, 120]


def test_a_stop_after_the_last_step_is_too_late(walk: Callable[..., Record]) -> None:
    """The run is finished; nothing is read from the flag after the ninth time, and there is no further checkpoint."""
    assert walk(Walk(), StopAfter(9)).summary["status"] == "completed"


def test_a_failure_of_the_machine_costs_no_checkpoint(
    walk: Callable[..., Record], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little memory to restore one, say on a GPU that others use, is not the file's fault."""
    with pytest.raises(Interrupted):
        walk(Walk(), StopAfter(4), "stopped")
    (path,) = results.rglob("checkpoint-*.pt")

    def restore(*_: object) -> None:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Walk, "restore", restore)
        with pytest.raises(torch.OutOfMemoryError):
            walk(Walk(), place="stopped")
    assert path.exists()
    assert walk(Walk(), place="stopped").summary["provenance"]["resumed"] == 1


def test_a_checkpoint_is_on_disk_before_the_older_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.save({"step": 1}, tmp_path)
    (older,) = tmp_path.iterdir()
    flushed = []

    def flush(path: Path) -> None:
        assert older.exists()
        flushed.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(loop.folders, "flush", flush)
        loop.save({"step": 2}, tmp_path)
    assert flushed == ["checkpoint.new", tmp_path.name]
    (newer,) = tmp_path.iterdir()
    assert torch.load(newer, weights_only=True) == {"step": 2}
    loop.save({"step": 2}, tmp_path)
    assert list(tmp_path.iterdir()) == [newer]


def test_a_stop_is_noticed_in_short_spans(walk: Callable[..., Record]) -> None:
    """Fewer steps between two evaluations than between two looks."""
    with pytest.raises(Interrupted):
        walk(Walk(spans=9, steps=2), StopAfter(0))


def test_a_checkpoint_of_other_code_is_not_continued(walk: Callable[..., Record]) -> None:
    with pytest.raises(Interrupted):
        walk(Walk(), StopAfter(4), "stopped", code="a")
    anew = walk(Walk(), place="stopped", code="b")
    assert anew.summary["provenance"]["resumed"] == 0
    assert_same_record(anew, walk(Walk(), place="whole"))


@pytest.mark.parametrize(("minutes", "steps"), [(0, 40), (5, 2)])
def test_checkpoints_come_in_time(
    walk: Callable[..., Record], monkeypatch: pytest.MonkeyPatch, minutes: float, steps: int
) -> None:
    """At every look if asked for; the clock runs on over the evaluations of short spans."""
    ticks, saved, save = iter(range(10_000)), [], torch.save  # every look at the clock is two minutes later
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 120.0 * next(ticks)))
    monkeypatch.setattr(torch, "save", lambda state, path: saved.append(save(state, path)))
    walk(Walk(spans=12, steps=steps), checkpoint_minutes=minutes)
    assert saved


@pytest.mark.parametrize("diverges", [1, 17, 40, 41, 120])
def test_divergence_is_a_result(walk: Callable[..., Record], diverges: int) -> None:
    """It is noticed within a few steps, and the record has the evaluations before it."""
    one = walk(Walk(diverges=diverges))
    assert one.summary["status"] == "diverged"
    assert one.summary["reason"] == "the training loss is not finite"
    assert diverges <= one.summary["counts"]["gradients"] < diverges + loop.STEPS_PER_LOOK
    assert one.series("x")["step"].tolist() == list(range(0, diverges, 40))
