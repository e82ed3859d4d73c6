"""The plan: every run once, every run in one job, items whose functions exist, and nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain, product
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlocked import fingerprint
from unlocked.artifact import config, plan
from unlocked.artifact.plan import CLAIMS, Need, Part, Plan
from unlocked.errors import SettingError
from unlocked.papers import PAPERS
from unlocked.papers.run import PaperScale
from unlocked.settings import build, flatten


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {scale: Plan(scale) for scale in config.scale_names()}


@pytest.fixture(scope="module")
def quick(plans: dict[str, Plan]) -> Plan:
    return plans["quick"]


def test_every_scale_has_a_plan(plans: dict[str, Plan]) -> None:
    assert {"quick", "reduced", "gpu", "paper"} <= plans.keys()
    for name, made in plans.items():
        assert made.scale.name == name
        assert {item.paper for item in made.items.values()} == {*PAPERS, CLAIMS}
        assert {run.paper for run in made.runs.values()} == set(PAPERS)


def test_the_scale_for_a_gpu_takes_about_a_day() -> None:
    """On the papers' CIFAR-10 and nothing larger, with three seeds, by the plan's own estimate."""
    made = Plan("gpu", runtime={"device": "cuda"})
    assert {run.data_set.name for run in made.runs.values() if run.data_set} == {"cifar10"}
    assert len(made.scale.seeds) == 3
    assert 18 < sum(run.estimate().seconds for run in made.runs.values()) / 3600 < 30


def test_runs_are_shared_between_items(quick: Plan) -> None:
    """A run that several items want is there once, under its id; every wanted run is there and nothing else."""
    wanted = [name for item in quick.items.values() for name in item.runs]
    assert len(set(wanted)) < len(wanted)
    assert set(wanted) == set(quick.runs)
    assert all(name == run.id for name, run in quick.runs.items())
    assert len({run.hash for run in quick.runs.values()}) == len(quick.runs)
    assert all(len(item.runs) == len(set(item.runs)) for item in quick.items.values())
    for name, items in quick.wanted_by.items():
        assert [item for item in quick.items.values() if name in item.runs] == items


def test_the_grid_by_hand(quick: Plan) -> None:
    """The table's runs: all-reduce, three graphs without and two with momentum, for all n and seeds."""
    workers: Any = quick.scale.papers["acid"]
    assert len(quick.item("acid_table_4").runs) == 6 * len(workers.workers) * len(quick.scale.seeds)
    assert len(quick.item("acid_figure_1").runs) == 3 * len(quick.scale.seeds)
    assert quick.item("acid_table_2").runs == ()


def test_claims_have_their_runs(plans: dict[str, Plan]) -> None:
    """Seventeen claims, each with runs of its own paper and all seeds that claims have at this scale."""
    for made in plans.values():
        assert list(made.claims) == [f"A{k}" for k in range(1, 11)] + [f"B{k}" for k in range(1, 8)]
        for claim in made.claims.values():
            seeds = {*made.scale.head.seeds_of(claim.id)}
            assert {run.paper for run in claim.runs.values()} <= {claim.config.paper}
            assert not claim.runs or {run.seed for run in claim.runs.values()} == seeds
        for item in (made.item("claims_verdicts"), made.item("claims_effects")):
            assert set(item.runs) == {name for claim in made.claims.values() for name in claim.runs}


def test_more_seeds_for_what_is_undecided() -> None:
    """They are read by these claims alone, never chosen a learning rate by, and an unknown claim is refused."""
    more = ["seeds=[0,1]", "more_seeds=[7,8]", "undecided=[A7]"]
    made = Plan("quick", more, only=["claims_verdicts"])
    seeds = {name: {run.seed for run in claim.runs.values()} for name, claim in made.claims.items()}
    assert (seeds["A7"], seeds["A1"], seeds["B1"]) == ({0, 1, 7, 8}, {0, 1}, {0, 1})
    with pytest.raises(SettingError, match=r"undecided.*'A77'.*A7"):
        Plan("quick", [*more, "undecided=[A77]"], only=["claims_verdicts"])
    with pytest.raises(SettingError, match="pilot_seeds"):
        Plan("reduced", ["more_seeds=[100]"])
    for alone, missing in (("more_seeds=[7]", "undecided"), ("undecided=[A7]", "more_seeds")):
        with pytest.raises(SettingError, match=f"has no effect here: it needs.*{missing}"):
            Plan("quick", [alone])


def test_only_what_is_wanted_is_read() -> None:
    """A job of one item reads no claims, a job of theirs no other item."""
    one, own = (Plan("quick", only=[name]) for name in ("acid_figure_1", "claims_effects"))
    assert (list(one.items), one.claims) == (["acid_figure_1"], {})
    assert list(own.items) == ["claims_effects"]
    assert set(own.runs) == set(own.item("claims_effects").runs)


@pytest.mark.parametrize("minutes", [0.3, 2, 1000])
def test_batches_cover_all_runs_once(minutes: float) -> None:
    """No run is forgotten or trained twice; no job mixes trainers or data sets, or is much longer than asked."""
    made = Plan("quick", [f"job_minutes={minutes}"])
    assert sorted(chain(*(batch.runs for batch in made.batches.values()))) == sorted(made.runs)
    for key, batch in made.batches.items():
        runs = [made.runs[name] for name in batch.runs]
        assert key == batch.id
        assert {run.paper for run in runs} == {batch.paper}
        assert len({(run.trainer, run.data_set and run.data_set.name) for run in runs}) == 1
        costs = [run.estimate().seconds for run in runs]
        assert sum(costs) <= 60 * minutes + max(costs)
    kinds = {(run.trainer, run.data_set and run.data_set.name) for run in made.runs.values()}
    assert len(made.batches) >= len(kinds)
    assert len(made.batches) == len(kinds) or minutes < 1000


def test_an_item_waits_for_the_jobs_of_its_runs(quick: Plan) -> None:
    """For all of them, and for no other; a job per seed does for an item of few runs."""
    for item in quick.items.values():
        waited = quick.batches_of(item.runs)
        assert {name for batch in waited for name in batch.runs} >= set(item.runs)
        assert all(set(batch.runs) & set(item.runs) for batch in waited)
    assert len(quick.batches_of(quick.item("acid_figure_1").runs)) == len(quick.scale.seeds)


def test_the_plan_is_a_function_of_its_input(quick: Plan) -> None:
    """On another device, too, it has the same runs, jobs and order; a runtime setting reaches those that have it."""
    other = Plan("quick", runtime={"device": "cuda", "threads": 3, "timeout": 5})
    assert list(other.runs) == list(quick.runs)
    assert all((run.runtime.device, run.runtime.threads) == ("cuda", 3) for run in other.runs.values())
    assert {getattr(run.runtime, "timeout", None) for run in other.runs.values()} == {None, 5.0}
    assert {k: b.runs for k, b in Plan("quick").batches.items()} == {k: b.runs for k, b in quick.batches.items()}


def test_items_are_named_once_and_can_be_built(quick: Plan) -> None:
    """Names are unique, titles and captions there, and every build function exists."""
    assert [item.name for item in quick.items.values()] == list(quick.items)
    for item in quick.items.values():
        assert item.title
        caption = quick.caption(item)
        assert len(caption) > 40
        assert "${" not in caption
        assert fingerprint.exists(item.config.build)
        assert len(item.suffixes) == (5 if item.config.kind == "figure" else 4)


def test_description_adds_up(quick: Plan) -> None:
    """Totals are the sums of the parts, everything is plain JSON, and a paper can be chosen."""
    described = json.loads(json.dumps(quick.describe()))
    total, runs = described["total"], described["runs"]
    assert total["items"] == len(described["items"]) == len(quick.items)
    assert total["runs"] == len(runs) == len(quick.runs)
    assert total["gradients"] == sum(run["gradients"] for run in runs)
    assert total["seconds"] == pytest.approx(sum(run["seconds"] for run in runs), abs=0.1)
    assert total["memory_mb"] == max(run["memory_mb"] for run in runs)
    assert sum(quick.describe(paper)["total"]["runs"] for paper in PAPERS) == total["runs"]
    assert {run["id"] for run in runs} == {name for item in described["items"] for name in item["runs"]}


def test_estimates_grow_with_the_work(tiny_run: Any) -> None:
    """Gradients are exact; seconds and memory grow with epochs, width and workers."""
    run = tiny_run({"optim.epochs": 20})
    one = run.estimate()
    assert one.gradients == run.total_gradients
    assert tiny_run({"optim.epochs": 60}).estimate().seconds == pytest.approx(3 * one.seconds, rel=0.1)
    wide = {"model.name": "resnet18", "optim.epochs": 20}
    assert tiny_run(wide).estimate().seconds > one.seconds
    assert tiny_run(wide, workers=64).estimate().memory_mb > tiny_run(wide).estimate().memory_mb


def test_runs_without_a_rate_have_that_of_their_method(plans: dict[str, Plan]) -> None:
    """Named by no grid, or null in it; by SGD momentum and partition too. An item has the pilot's cells it asks for."""
    reduced = plans["reduced"]
    cells = {cell.name: cell for cell in reduced.scale.cells["acid"]}
    for partition, momentum, name in [
        ("label_sorted", 0.0, "mlp_plain_label_sorted"),
        ("dirichlet", 0.9, "mlp_dirichlet"),
    ]:
        own = [
            run
            for run in map(reduced.runs.get, reduced.item("acid_conditions").runs)
            if (run.method, run.data.partition, run.optim.momentum) == ("acid", partition, momentum)
        ]
        assert own
        assert {run.optim.lr for run in own} == {cells[f"{name}/acid"].choice.lr}
    shown = set(reduced.item("acid_learning_rate_conditions").runs)
    assert shown == {one for name in cells if name.startswith("mlp") for one in reduced.pilot["acid"][name]}


def test_points_cross() -> None:
    """Lists are crossed, seeds innermost."""
    grid = {"graph": ["ring", "star"], "workers": [4, 8], "rate": 1.0}
    points = list(Need(grid).points([0, 1], PaperScale()))
    crossed = list(product(("ring", "star"), (4, 8), (0, 1)))
    assert [(p["graph"], p["workers"], p["seed"]) for p in points] == crossed
    assert [p["seed"] for p in Need({"seed": 7}).points([0, 1], PaperScale())] == [7]


@given(costs=st.lists(st.floats(0, 1e3), min_size=1, max_size=40), most=st.floats(1, 1e4))
def test_cutting(costs: list[float], most: float) -> None:
    """Every name once and in order, and no part much longer than asked."""
    names = [f"run-{k}" for k in range(len(costs))]
    parts = plan.cut(names, costs, most)
    assert list(chain(*parts)) == names
    assert all(parts)
    for part in parts:
        own = [costs[names.index(name)] for name in part]
        assert sum(own) <= max(most, sum(costs) / len(costs)) + max(own) + 1e-6


def test_cutting_makes_parts_alike() -> None:
    assert plan.cut(["a", "b", "c", "d"], [1.0, 2.0, 1.5, 1.5], 3.1) == [["a", "b"], ["c", "d"]]
    assert plan.cut(["a", "b"], [0.0, 0.0], 1.0) == [["a", "b"]]


REFUSED = {
    "nonsense": ["nonsense", "key=value"],
    "=3": ["setting = ''"],
    "unheard=1": ["unheard", "seeds"],
    "seeds=[0": ["seeds"],
    "seeds=[]": ["seeds", "empty"],
    "seeds=0": ["seeds", "list"],
    "seeds=[a]": ["seeds", "'a'"],
    "seeds=[0.5]": ["seeds", "0.5"],
    "seeds=[-1]": ["seeds = -1"],
    "job_minutes=0": ["job_minutes = 0"],
    "acid.unheard=1": ["acid", "unheard"],
    "acid.workers=[x]": ["acid.workers = 'x'"],
    "acid.workers=[]": ["acid.workers", "empty"],
    "acid.workers=[4,12]": ["workers = 12", "power of two"],
    "acid.largest=2": ["workers = 2"],
    "acid.largest=${nowhere}": ["acid.largest", "nowhere"],
    "acid.large.epochs=-1": ["acid.large.epochs = -1"],
    "forward_gradient.widths=[0]": ["forward_gradient.widths = 0"],
    "acid.trainnig.optim.lr=1": ["acid", "trainnig"],
    "acid.training.workrs=4": ["workrs"],
    "acid.training.optim.batch_size=2000": ["optim.batch_size = 2000"],
    "acid.training.optim.learning=1": ["learning"],
    "acid.training.optim.lr=fast": ["acid.training.optim.lr = 'fast'"],
    "acid.training.optim.lr=${nowhere}": ["nowhere"],
    "acid.training.data.name=mnist": ["data.name = 'mnist'", "digits"],
    "acid.items.figure_99.title=x": ["acid.items = 'figure_99'", "figure_1"],
    "acid.items.figure_1.kind=movie": ["figure_1.kind = 'movie'", "table"],
    "acid.items.figure_1.colour=red": ["figure_1", "colour"],
    "acid.items.figure_1.build=unlocked.nowhere.draw": ["figure_1.build", "unlocked.nowhere.draw"],
    "acid.items.figure_1.panels={sideways: [x]}": ["panels = 'sideways'", "over_epochs"],
    "acid.items.figure_1.needs=[{grid: {workrs: 4}}]": ["workrs", "Acid"],
    "acid.items.figure_1.needs=[{grid: {method: allreduce, graph: ring}}]": ["graph = 'ring'", "AllReduce"],
}


@pytest.mark.parametrize("override", REFUSED)
def test_plans_that_cannot_work_are_refused(override: str) -> None:
    """One line that names the setting."""
    with pytest.raises(SettingError) as caught:
        Plan("quick", [override])
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in REFUSED[override]), str(caught.value)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"unit": "furlong", "below": 1.0}, ["unit = 'furlong'", "ratio"]),
        ({}, ["threshold", "exactly one", "above"]),
        ({"above": 0.0, "below": 1.0}, ["above, below", "exactly one"]),
        ({"between": [1.0, 0.5]}, ["between", "lower"]),
        ({"between": [1.0]}, ["between", "two numbers"]),
        ({"below": "low"}, ["below = 'low'", "number"]),
    ],
)
def test_parts_that_cannot_be_judged_are_refused(part: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        build(Part, part)
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": "huge"}, "scale = 'huge': must be one of gpu, paper, quick, reduced"),
        ({"runtime": {"devise": "cpu"}}, "devise"),
        ({"runtime": {"device": "gpu"}, "only": ["acid_table_2"]}, "runtime.device = 'gpu'"),
        ({"only": ["acid_figure_77"]}, "acid_figure_77"),
    ],
)
def test_unknown_names_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Plan(**{"scale": "quick", **options})


def test_overrides_reach_runs_and_items() -> None:
    """The scale's values are what the items' grids refer to."""
    made = Plan("quick", ["seeds=[5]", "acid.workers=[8]", "acid.largest=16", "acid.items.figure_1.title=mine"])
    assert {run.seed for run in made.runs.values()} == {5}
    for name, workers in (("acid_table_4", 8), ("acid_figure_1", 16)):
        assert {flatten(made.runs[run].identity())["workers"] for run in made.item(name).runs} == {workers}
    assert made.item("acid_figure_1").config.title == "mine"
    assert "16 workers" in made.item("acid_figure_1").config.caption


SNAKEMAKE = """
import sys
from unlocked.artifact import calls, workflow
setup = workflow.Setup.read_or_exit({})
for batch in setup.plan.batches.values():
    workflow.resources_of(setup, batch)
for item in setup.plan.items.values():
    workflow.item_code(item), setup.plan.caption(item)
    workflow.outputs(setup, item, lambda path, **_: path)
calls.Call(setup.plan, setup.results, setup.figures).missing
heavy = {'torch', 'torchvision', 'pandas', 'scipy', 'matplotlib', 'wandb', 'sklearn'} & set(sys.modules)
assert not heavy, heavy
"""


def seconds(code: str) -> float:
    """CPU time of a program, without that of Python's own start."""
    code = f"import time; start = time.process_time(); {code}; print(time.process_time() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_snakemake_needs_nothing_heavy() -> None:
    """What the Snakefile asks at every start stays light."""
    done = subprocess.run([sys.executable, "-c", SNAKEMAKE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_planning_is_quick() -> None:
    """At most .8 of the CPU time of importing torch, in turns, so that a slow machine is slow for both."""
    planning = "from unlocked.artifact.plan import Plan; Plan('quick').batches"
    turns = [(seconds(planning), seconds("import torch")) for _ in range(5)]
    assert median(own / torch for own, torch in turns) <= 0.8, turns
