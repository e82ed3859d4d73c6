"""What a call of the workflow trains: what its targets want and no more, and what has no record that holds."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from snakemake.io import is_flagged

from unlocked import fingerprint
from unlocked.artifact import calls
from unlocked.artifact.calls import Call
from unlocked.artifact.folders import folder_of
from unlocked.artifact.plan import CLAIMS, Batch, Plan
from unlocked.papers.run import Run

MakeCall = Callable[..., Call]


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan("quick", ["seeds=[0]"], {"wandb_project": "a{b}"})


@pytest.fixture
def call(plan: Plan, results: Path) -> MakeCall:
    """A call for some targets."""
    return lambda *targets: Call(plan, results, results / "figures", lambda: targets)


def finish(run: Run, results: Path, code: str | None = None) -> None:
    """What is asked of a finished run: the summary of its record."""
    folder = folder_of(results, run)
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"run_id": run.id, "config_hash": run.hash, "status": "completed"}
    summary |= {"provenance": {"code": code or fingerprint.training(run.trainer)}}
    (folder / "summary.json").write_text(json.dumps(summary))


def jobs(plan: Plan, call: Call) -> list[Batch]:
    """The jobs of a call that have something to train."""
    return [batch for batch in plan.batches.values() if call.runs_of(batch)]


def test_targets_are_items_groups_or_files(plan: Plan, call: MakeCall, results: Path) -> None:
    """Whatever else is asked for, e.g. a report, needs the runs of all items."""
    one, everything = plan.item("acid_figure_1"), {name for item in plan.items.values() for name in item.runs}
    for target in (one.name, f"{one.stem(results / 'figures', 'quick')}.pdf"):
        assert list(call(target).wanted) == list(call(target, target).wanted) == list(one.runs)
    papers = {run.paper for run in call("acid").wanted.values()}
    assert papers == {"acid"}
    assert set(call(CLAIMS).wanted) == set(plan.item("claims_verdicts").runs)
    for targets in ((), ("all",), ("acid_figure_1", "report"), ("elsewhere/figure_1.pdf",)):
        assert call(*targets).wanted.keys() == everything


def test_an_item_trains_what_it_needs_and_no_more(plan: Plan, call: MakeCall) -> None:
    """Whatever else the runs of its jobs are wanted for."""
    for item in plan.items.values():
        own = call(item.name)
        trained = [run.id for batch in plan.batches.values() for run in own.runs_of(batch)]
        assert sorted(trained) == sorted(item.runs)


def test_the_pilot_trains_its_own_runs(results: Path) -> None:
    """Which no item does, unless it is about them."""
    plan = Plan("reduced")
    own = {name for cells in plan.pilot.values() for runs in cells.values() for name in runs}
    assert Call(plan, results, results, lambda: ["pilot"]).wanted.keys() == own


def test_what_has_a_record_is_not_trained_again(plan: Plan, call: MakeCall, results: Path) -> None:
    """One of other code, other settings or none does not count: the job's list is newer than its index."""
    first, second, third = (plan.runs[name] for name in plan.item("acid_figure_1").runs)
    finish(first, results)
    finish(second, results, code="older")
    asked = call("acid_figure_1")
    (batch,) = plan.batches_of(plan.item("acid_figure_1").runs)
    asked.index(batch).parent.mkdir(parents=True)
    asked.index(batch).touch()
    assert asked.indexes_of([first.id]) == [str(asked.index(batch))]
    assert list(asked.missing) == [second.id, third.id]
    (path,) = asked.lists_of(batch)
    assert not is_flagged(path, "ancient")
    assert Path(path).stat().st_mtime > asked.index(batch).stat().st_mtime
    assert [run for run, _ in calls.read_list(asked.list_of(batch))] == [second, third]


def test_a_job_with_nothing_to_train_runs_for_other_reasons_only(plan: Plan, results: Path) -> None:
    """Its list counts for nothing, however new it is; where the job runs all the same, this call's settings hold."""
    item, other = plan.item("acid_figure_1"), Plan("quick", ["seeds=[0]"], {"reuse": "same_config"})
    (batch,) = plan.batches_of(item.runs)
    for name in item.runs:
        finish(plan.runs[name], results, code="older")
    for made, missing in ((plan, 3), (other, 0)):
        asked = Call(made, results, results / "figures", lambda: [item.name])
        (path,) = asked.lists_of(batch)
        assert (len(asked.missing), is_flagged(path, "ancient")) == (missing, missing == 0)
        assert [run for run, _ in calls.read_list(Path(path))] == [made.runs[name] for name in item.runs]
        assert asked.lists is not None
        asked.lists.close()


def test_a_dry_run_writes_nothing(plan: Plan, call: MakeCall, results: Path) -> None:
    """What would be trained waits for a file that is newer than the index, and goes with the call."""
    item = plan.item("acid_figure_1")
    (batch,), asked = plan.batches_of(item.runs), call(item.name)
    asked.dry = lambda: True
    (newer,) = asked.lists_of(batch)
    assert asked.indexes_of(item.runs) == [str(asked.index(batch))]
    assert not results.exists()
    assert Path(newer).stat().st_mtime > time.time() - 10
    for name in item.runs:
        finish(plan.runs[name], results)
    again = call(item.name)
    again.dry = lambda: True
    assert again.lists_of(batch) == []
    del asked
    assert not Path(newer).exists()


def test_lists_lead_back_to_the_runs(plan: Plan, call: MakeCall) -> None:
    """With their runtime settings and the items that want them; jobs that no target waits for have no list."""
    asked = call("acid_figure_1")
    assert asked.lists is not None
    written = [batch for batch in plan.batches.values() if asked.list_of(batch).exists()]
    assert written == jobs(plan, asked)
    for batch in written:
        listed = list(calls.read_list(asked.list_of(batch)))
        assert [run for run, _ in listed] == asked.runs_of(batch)
        assert [items for _, items in listed] == [[i.name for i in plan.wanted_by[run.id]] for run, _ in listed]
    elsewhere = Call(plan, asked.results, asked.figures, None)
    assert [elsewhere.runs_of(batch) for batch in written] == [asked.runs_of(batch) for batch in written]
    assert elsewhere.missing == {}


def test_a_second_call_at_the_same_time_takes_nothing_from_the_first(plan: Plan, call: MakeCall) -> None:
    """The lists hold what both want; after the first has ended, only what the next one wants."""
    targets = "acid_figure_4", "acid_figure_1", "acid_figure_1"
    first, second, third = map(call, targets)
    held = [first.lists, second.lists]
    both = {run.id for batch in plan.batches.values() for run in (*first.runs_of(batch), *second.runs_of(batch))}
    paths = list((first.results / "quick" / "acid" / "batches").glob("*.json"))
    assert {run.id for path in paths for run, _ in calls.read_list(path)} == both
    for file in held:
        file.close()
    assert third.lists
    for batch in jobs(plan, third):
        assert [run for run, _ in calls.read_list(third.list_of(batch))] == third.runs_of(batch)


def test_an_index_changes_with_the_records(plan: Plan, results: Path) -> None:
    """Snakemake compares contents, not only times."""
    run = plan.runs[plan.item("acid_figure_1").runs[0]]
    finish(run, results)
    before = calls.index_text([run], results)
    assert run.id in before
    path = folder_of(results, run) / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "0" * 64}))
    assert calls.index_text([run], results) != before


def test_a_file_system_without_locks(plan: Plan, call: MakeCall, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    asked = call("acid_figure_1")
    assert asked.lists
    assert all(asked.list_of(batch).exists() for batch in jobs(plan, asked))


def test_a_job_says_what_it_trains(plan: Plan, call: MakeCall) -> None:
    """How many runs, of what, and how long; `call` is formatted by Snakemake."""
    asked = call("acid_figure_1")
    (batch,) = jobs(plan, asked)
    text = f"{asked:{batch.id}}"
    assert text.startswith("3 runs of acid, seed 0: ring n64; ")
    assert {"baseline", "acid", "r1", "r2"} <= set(text.replace(",", " ").replace(";", " ").split())
    assert "; about " in text
    (other,) = (b for b in plan.batches.values() if b.paper == "acid" and "quadratic" in b.runs[0])
    assert f"{asked:{other.id}}".startswith("nothing to train")
