"""Extreme settings: a plan, a training or one line, whatever is asked; never a traceback, a hang or another folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from unlocked import cli
from unlocked.artifact import config, record, resources, train
from unlocked.artifact.config import ScaleHead
from unlocked.artifact.plan import Plan
from unlocked.errors import SettingError
from unlocked.papers import PAPERS
from unlocked.papers.run import Run
from unlocked.settings import Settings, Spec, dotted, names, specs

KINDS = [kind for paper in PAPERS.values() for kind in paper.kinds]
FORWARD = {"paper": "forward_gradient"}
QUADRATIC = {"study": "quadratic"}


def numbers(cls: type[Settings]) -> Iterator[tuple[str, Spec]]:
    """All settings that are numbers, those in lists of settings included."""
    for spec in specs(cls):
        if spec.nested:
            yield from numbers(spec.kind)
        elif spec.kind in (int, float):
            yield f"{cls.__name__}.{spec.name}", spec


@pytest.mark.parametrize("cls", [*KINDS, *(paper.scale for paper in PAPERS.values()), ScaleHead])
def test_every_number_has_a_range(cls: type[Settings]) -> None:
    for name, spec in numbers(cls):
        low, high = (spec.rule.above, spec.rule.least), (spec.rule.below, spec.rule.most)
        assert any(bound is not None for bound in low), name
        assert any(bound is not None for bound in high), name


REFUSED: list[dict[str, Any]] = [  # beyond a range, of no kind, more than there is
    {"optim.lr": 1e300},
    {"runtime.threads": 2**40},
    {"runtime.threads": 4096},
    {"rate": 1e6, "optim.epochs": 300},
    {"workers": 1_000_000, "optim.epochs": 6000, "engine": "processes"},
    {"optim.milestones": [math.nan]},
    {"runtime.checkpoint_minutes": math.inf},
    {"scale": "../../x"},
    {"scale": "x" * 300},
    QUADRATIC | {"quadratic.horizon": 1e9},
    FORWARD | {"model.width": 64, "optim.batch_size": 1024},
]
LISTS = ["forward_gradient.widths=[]", "forward_gradient.auxiliaries=[]", "acid.workers=[]", "seeds=[]"]


@pytest.mark.parametrize("asked", REFUSED, ids=str)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    """From a run's file, by the command: exit code 2, a line that names a setting or the run, nothing is written."""
    monkeypatch.setattr(resources, "memory_of_machine", lambda: 8 * 10**9)
    small = {"workers": 4, "data.name": "digits", "model.name": "mlp", "optim.batch_size": 8}
    start = {} if "study" in asked else small
    values = asked if "paper" in asked else start | {"paper": "acid"} | asked
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    assert cli.main(["train", str(path), "--results", str(tmp_path / "results")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(("unlocked: run = ", *(f"unlocked: {name.rpartition('.')[0] or name}" for name in asked)))
    assert [one.name for one in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize("change", LISTS)
def test_lists_that_items_need_are_not_empty(change: str) -> None:
    with pytest.raises(SettingError, match="must not be empty"):
        config.load_scale("quick", [change])


ACCEPTED: list[dict[str, Any]] = [
    {"optim.lr": 1e6},
    {"optim.momentum": 1.0, "optim.clip": 1e-300},
    {"evaluation.points": 100_000},
    {"rate": 1e-300},
    {"pairing": "availability", "clock.latency": 1e6, "clock.gradient_seconds": 1e-8},
    {"clock.law": "gamma", "clock.variation": 100, "clock.slow_workers": 4, "clock.slow_factor": 1e6},
    {"data.partition": "dirichlet", "data.concentration": 1e6, "seed": 2**63 - 1},
]


@pytest.mark.parametrize("asked", ACCEPTED, ids=str)
def test_what_is_allowed_is_trained(
    tiny_run: Callable[..., Run], results: Path, data_of: Callable[[Run], Any], asked: dict[str, Any]
) -> None:
    """At the end of a range: a record, of a run that was completed or diverged."""
    run = tiny_run(asked | {"optim.epochs": 0.1})
    train.check_machine(run)
    train.train_one(run, results, data_of(run), (), None)
    made = record.load(record.folder_of(results, run))
    assert made.summary["status"] in ("completed", "diverged")
    assert made.summary["counts"]["gradients"] > 0


def one_line(error: SettingError) -> str:
    """The kind of a refusal, of which there is one line."""
    assert "\n" not in str(error)
    assert len(str(error)) < 2000
    return error.setting.rpartition(".")[2][:40]


EDGES = [math.nan, math.inf, -math.inf, 1e300, 1e-300, -1, 0, 1, 2**31, 2**63, -(2**70), True, None]
ODD = ["", "magic", "a{b}", "../up", "${nowhere}", "\n", "ü" * 300, [], [1], {}, {"deep": 1}, [[1]]]


def value(spec: Spec) -> st.SearchStrategy[Any]:
    """What somebody could write for a setting: what it may be, the ends of its range, and anything else."""
    rule, inside = spec.rule, [spec.default] if isinstance(spec.default, (int, float, str)) else []
    inside += [bound for bound in (rule.above, rule.least, rule.below, rule.most) if bound is not None]
    if (allowed := rule.allowed()) is not None:
        inside += allowed
    several = [st.sampled_from(inside)] if inside else []
    if spec.kind in (int, float):
        several += [st.integers(1, 100), st.integers(), st.floats(0, 2), st.floats()]
    one = st.one_of(*several, *([] if several else [st.text()]))
    usual = st.lists(one, max_size=4) if spec.many else one
    return st.one_of(usual, usual, usual, st.sampled_from(EDGES), st.sampled_from(ODD))


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a run: a kind, and some of its settings at will."""
    kind = draw(st.sampled_from(KINDS))
    known = dict(names(kind))
    own = {name: spec.default for name, spec in known.items() if name in ("study", "engine", "method")}
    own |= {
        name: known[name].default for name in ("target", "guess") if kind.paper == "forward_gradient" and name in known
    }
    chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=8, unique=True))
    return {"paper": kind.paper, **own, **{name: draw(value(known[name])) for name in chosen}}


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(runs())
def test_any_settings_are_a_run_with_its_cost_or_one_line(asked: dict[str, Any]) -> None:
    try:
        run = config.run_from(asked)
        assert run.id.endswith(run.hash[:8])
        assert Path(run.id).name == run.id
        assert len(run.id) < 200
        assert config.run_from(yaml.safe_load(yaml.safe_dump(run.settings()))).hash == run.hash
        cost, job = run.estimate(), resources.of_job([run])
        assert 0 <= cost.seconds < math.inf
        assert job.mem_mb > cost.memory_mb > 0
        resources.refuse_excess(run, run.processes)
    except SettingError as error:
        event(one_line(error))
    else:
        event("a run")


OVERRIDES = [f"acid.training.{name}" for kind in PAPERS["acid"].kinds[:3] for name in sorted(dotted(kind))]
OVERRIDES += [f"acid.{name}" for name in sorted(dotted(PAPERS["acid"].scale))] + ["seeds", "job_minutes", "about"]


@settings(max_examples=5)
@given(st.lists(st.tuples(st.sampled_from(OVERRIDES), st.sampled_from([*EDGES, *ODD, [2, 4], 3, 0.5])), max_size=3))
def test_any_overrides_are_a_plan_or_one_line(asked: list[tuple[str, Any]]) -> None:
    """As `--set` has them."""
    try:
        plan = Plan("quick", [f"{name}={one}" for name, one in asked])
        assert plan.describe()["total"]["runs"] == len(plan.runs)
    except SettingError as error:
        event(one_line(error))
    else:
        event("a plan")
