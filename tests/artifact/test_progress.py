"""What a running workflow says: read from records and logs, with the time that is left from what runs have taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unlocked.artifact import progress
from unlocked.artifact.calls import Call
from unlocked.artifact.folders import folder_of
from unlocked.artifact.plan import Plan
from unlocked.artifact.progress import Progress, what_to_open
from unlocked.units import human_time

SLOWNESS = 3.0  # of this machine, against the plan's estimates


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan("quick", ["seeds=[0]"])


@pytest.fixture
def call(plan: Plan, results: Path) -> Call:
    return Call(plan, results, results / "figures", lambda: ["acid_figure_1"])


def finish(call: Call, name: str) -> None:
    """A new record, and what its run took."""
    run = call.plan.runs[name]
    folder = folder_of(call.results, run)
    folder.mkdir(parents=True)
    summary = {"run_id": name, "durations": {"wall_seconds": SLOWNESS * run.estimate().seconds}}
    (folder / "summary.json").write_text(json.dumps(summary))


def log(call: Call, text: str) -> None:
    """What the job of a call has printed."""
    (batch,) = call.plan.batches_of(call.missing)
    path = call.index(batch).parent.with_name("logs") / f"{batch.id}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_beginning(call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    """How much there is to do, how long it may take, what goes on from a checkpoint and what is there."""
    first, *_ = call.missing.values()
    folder = folder_of(call.results, first)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True)
    (partial / "checkpoint-0.pt").touch()
    seconds = sum(run.estimate().seconds for run in call.missing.values())
    about = f"about {human_time(seconds + progress.DRAWING)} with 1 at a time"
    assert Progress(call, 1).beginning() == f"3 runs to train, {about}; 1 of them from checkpoints on"
    del call.missing[first.id]
    assert Progress(call, 2).beginning().endswith("with 2 at a time; 1 there already")
    call.missing.clear()
    Progress(call, 2).start()
    assert capsys.readouterr().err == ""


def test_runs_are_counted_and_the_rest_is_estimated_from_them(call: Call) -> None:
    """One run done in three times its estimate, one half way, one not begun: one and a half at that speed are left."""
    first, second, third = call.missing
    said = Progress(call, 1)
    finish(call, first)
    log(call, f"{first} 400/400 loss=1\n{second} 0/400 loss=3\nunlocked: a warning\n{second} 200/400 loss=2\n")
    each = call.missing[third].estimate().seconds
    left = SLOWNESS * (0.5 * call.missing[second].estimate().seconds + each) + progress.DRAWING
    assert said.line() == f"1 of 3 runs done; running: {second} (50%); about {human_time(left)} left"
    for name in (second, third):
        finish(call, name)
    assert said.line() == f"3 of 3 runs done; about {human_time(progress.DRAWING)} left"


def test_what_was_there_before_does_not_count(call: Call) -> None:
    """An old record that does not hold, and the log of an earlier call."""
    first, *_ = call.missing
    finish(call, first)
    log(call, f"{first} 200/400 loss=2\n")
    said = Progress(call, 1)
    said.started += 60
    assert said.line().startswith("0 of 3 runs done; about")


def test_many_running_runs_are_shortened(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Progress(call, 8)
    monkeypatch.setattr(said, "running", lambda: {f"run-{k}": 0.25 for k in range(7)})
    assert "run-3 (25%) and 3 more" in said.line()


def test_it_goes_on_by_itself_until_all_is_done(
    call: Call, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that is half written when it is read is read the next time."""
    said, names = Progress(call, 2), list(call.missing)
    line, harm = said.line, [None, ValueError("half a file"), None]

    def fragile() -> str:
        if (error := harm.pop(0)) is not None:
            raise error
        return line()

    monkeypatch.setattr(progress.time, "sleep", lambda _: finish(call, names.pop()))
    monkeypatch.setattr(said, "line", fragile)
    said._go_on()
    lines = capsys.readouterr().err.splitlines()
    assert [text.split(" of ")[0] for text in lines] == ["unlocked: 1", "unlocked: 3"]


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["acid_figure_1"], "open figures/quick/acid/figure_1.pdf"),
        (["acid_table_4", "acid_figure_3"], "open figures/quick/acid/table_4.md figures/quick/acid/figure_3.pdf"),
        (["report"], "open results/quick/report.html"),
        ([], "tables and figures are in figures/quick; `reproduce.py report` makes one page of all"),
    ],
)
def test_the_end_says_what_to_open(plan: Plan, targets: list[str], says: str) -> None:
    assert what_to_open(Call(plan, Path("results"), Path("figures"), lambda: targets)) == says
