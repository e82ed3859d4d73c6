"""The plan: every run once, every run in one job, items whose functions exist, and no torch."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from itertools import chain
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlocked import config, plan, workflow
from unlocked.errors import SettingError
from unlocked.plan import Need, Plan


@pytest.fixture(scope="module")
def quick() -> Plan:
    """The whole quick plan."""
    return Plan("quick")


@pytest.mark.parametrize("scale", config.scale_names())
def test_every_scale_has_a_plan(scale: str) -> None:
    """Every item of every scale resolves to valid runs."""
    made = Plan(scale)
    assert {item.paper for item in made.items.values()} == {*config.RUNS, plan.CLAIMS}
    assert made.runs


def test_runs_are_shared_between_items(quick: Plan) -> None:
    """A run that several items want is there once, under its id; every wanted run is there and nothing else."""
    wanted = [name for item in quick.items.values() for name in item.runs]
    assert len(set(wanted)) < len(wanted)
    assert set(wanted) == set(quick.runs)
    assert all(name == config.run_id(run) for name, run in quick.runs.items())
    hashes = {config.config_hash(run) for run in quick.runs.values()}
    assert len(hashes) == len(quick.runs)
    assert all(len(item.runs) == len(set(item.runs)) for item in quick.items.values())


def test_the_grid_by_hand(quick: Plan) -> None:
    """The table's runs: all-reduce, three graphs without and two with momentum, for all n and seeds."""
    settings = quick.scale.acid
    per_seed = 6 * len(settings.workers)
    assert len(quick.item("acid_table_4").runs) == per_seed * len(quick.scale.seeds)
    assert len(quick.item("acid_figure_1").runs) == 3 * len(quick.scale.seeds)
    assert quick.item("acid_table_2").runs == ()


@pytest.mark.parametrize("scale", config.scale_names())
def test_claims_train_nothing_of_their_own(scale: str) -> None:
    """Ten claims; their runs are ones that tables and figures of the papers want, with all the scale's seeds."""
    made = Plan(scale)
    assert list(made.claims) == [f"A{k}" for k in range(1, 7)] + [f"B{k}" for k in range(1, 5)]
    others = {name for item in made.items.values() if item.paper != plan.CLAIMS for name in item.runs}
    for claim in made.claims.values():
        assert set(claim.runs) <= others, claim.id
        assert {run.paper for run in claim.runs.values()} <= {claim.config.paper}
        assert not claim.runs or {run.seed for run in claim.runs.values()} == set(made.scale.seeds)
    for item in (made.item("claims_verdicts"), made.item("claims_effects")):
        assert set(item.runs) == {name for claim in made.claims.values() for name in claim.runs}


def test_claims_are_read_only_when_they_are_wanted() -> None:
    """A job of one item reads no claims, a job of theirs no other item."""
    assert Plan("quick", only=["acid_figure_1"]).claims == {}
    own = Plan("quick", only=["claims_effects"])
    assert list(own.items) == ["claims_effects"]
    assert set(own.runs) == set(own.item("claims_effects").runs)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (plan.PartConfig(unit="furlong", below=1.0), ["unit", "furlong", "ratio"]),
        (plan.PartConfig(), ["exactly one", "above"]),
        (plan.PartConfig(above=0.0, below=1.0), ["above, below", "exactly one"]),
        (plan.PartConfig(between=[1.0, 0.5]), ["between", "lower"]),
    ],
)
def test_parts_that_cannot_be_judged_are_refused(part: plan.PartConfig, words: list[str]) -> None:
    """A unit that exists, and exactly one threshold."""
    with pytest.raises(SettingError) as caught:
        plan.check_part(part, "claims.yaml: A9.parts.x")
    assert all(word in str(caught.value) for word in ["A9", *words])


@pytest.mark.parametrize("most", [1, 3, 16])
def test_batches_cover_all_runs_once(most: int) -> None:
    """No run is forgotten or trained twice, no job is too large, no job mixes engines."""
    made = Plan("quick", [f"runs_per_job={most}"])
    members = [name for batch in made.batches.values() for name in batch.runs]
    assert sorted(members) == sorted(made.runs)
    for key, batch in made.batches.items():
        assert key == batch.id
        assert 1 <= len(batch.runs) <= most
        assert {plan.engine(made.runs[name]) for name in batch.runs} == set(batch.engines)


def test_an_item_trains_what_it_needs_and_no_more(quick: Plan) -> None:
    """The jobs of an item hold its runs, all of them and only them; those of the claims may hold more."""
    for item in quick.items.values():
        trained = {name for key in quick.batches_of(item) for name in quick.batches[key].runs}
        assert trained >= set(item.runs), item.name
        assert trained == set(item.runs) or item.paper == plan.CLAIMS, item.name


def test_the_plan_is_a_function_of_its_input(quick: Plan) -> None:
    """Made anew, it has the same runs, jobs and order."""
    again = Plan("quick")
    assert list(again.runs) == list(quick.runs)
    assert {k: b.runs for k, b in again.batches.items()} == {k: b.runs for k, b in quick.batches.items()}


def test_the_runtime_changes_no_id(quick: Plan) -> None:
    """On another device the plan has the same runs and jobs."""
    other = Plan("quick", runtime={"device": "cuda", "threads": 3})
    assert list(other.runs) == list(quick.runs)
    assert list(other.batches) == list(quick.batches)
    assert all(run.runtime.device == "cuda" and run.runtime.threads == 3 for run in other.runs.values())


def test_items_are_named_once_and_can_be_built(quick: Plan) -> None:
    """Names are unique, kinds known, titles and captions there, and every build function exists."""
    names = [item.name for item in quick.items.values()]
    assert len(names) == len(set(names))
    assert names == list(quick.items)
    for item in quick.items.values():
        assert item.config.kind in ("figure", "table")
        assert item.config.title
        assert len(item.config.caption) > 40
        assert "${" not in item.config.caption
        module, name = item.config.build.rsplit(".", 1)
        assert callable(getattr(importlib.import_module(module), name))
        assert len(item.suffixes) == (4 if item.config.kind == "figure" else 3)


def test_description_adds_up(quick: Plan) -> None:
    """Totals are the sums of the parts, everything is plain JSON, and a paper can be chosen."""
    described = json.loads(json.dumps(quick.describe()))
    total = described["total"]
    assert total["items"] == len(described["items"]) == len(quick.items)
    assert total["runs"] == len(described["runs"]) == len(quick.runs)
    assert total["gradients"] == sum(run["gradients"] for run in described["runs"])
    assert total["seconds"] == pytest.approx(sum(run["seconds"] for run in described["runs"]), abs=0.1)
    assert total["memory_mb"] == max(run["memory_mb"] for run in described["runs"])
    papers = [quick.describe(paper)["total"]["runs"] for paper in config.RUNS]
    assert sum(papers) == total["runs"]
    assert {run["id"] for run in described["runs"]} == {name for item in described["items"] for name in item["runs"]}


def test_estimates_grow_with_the_work(tiny_run: Any) -> None:
    """Gradients are exact; seconds and memory grow with epochs, width and workers."""
    one = plan.estimate(tiny_run({"optim.epochs": 20}))
    assert one.gradients == config.total_gradients(tiny_run({"optim.epochs": 20}))
    assert plan.estimate(tiny_run({"optim.epochs": 60})).seconds == pytest.approx(3 * one.seconds, rel=0.1)
    wide = {"model.name": "resnet18", "optim.epochs": 20}
    assert plan.estimate(tiny_run(wide)).seconds > one.seconds
    assert plan.estimate(tiny_run(wide, workers=64)).memory_mb > plan.estimate(tiny_run(wide)).memory_mb


def test_points_cross_and_exclude() -> None:
    """Lists are crossed, seeds innermost, points that agree with a whole exclusion are left out."""
    need = Need({"graph": ["ring", "star"], "workers": [4, 8], "rate": 1.0}, [{"graph": "star", "workers": 8}])
    found = list(plan.points(need, [0, 1]))
    assert [(p["graph"], p["workers"], p["seed"]) for p in found] == [
        (graph, workers, seed) for graph, workers in (("ring", 4), ("ring", 8), ("star", 4)) for seed in (0, 1)
    ]
    assert [p["seed"] for p in plan.points(Need({"seed": 7}), [0, 1])] == [7]


@given(costs=st.lists(st.floats(0, 1e3), min_size=1, max_size=40), most=st.integers(1, 9))
def test_dealing(costs: list[float], most: int) -> None:
    """Every name once, no group too large, as few groups as possible, order kept inside."""
    names = [f"run-{k}" for k in range(len(costs))]
    groups = plan.deal(names, most, costs)
    assert sorted(chain(*groups)) == sorted(names)
    assert all(1 <= len(group) <= most for group in groups)
    assert len(groups) == -(-len(names) // most)
    assert all(group == sorted(group, key=names.index) for group in groups)


def test_dealing_spreads_the_expensive() -> None:
    """Two heavy runs do not share a job with room elsewhere."""
    assert sorted(map(sorted, plan.deal(["a", "b", "c", "d"], 2, [9.0, 9.0, 1.0, 1.0]))) == [["a", "c"], ["b", "d"]]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["acid.items.figure_99.title=x"], ["figure_99"]),
        (["acid.items.figure_1.kind=movie"], ["kind", "movie"]),
        (["acid.items.figure_1.colour=red"], ["colour"]),
        (["acid.workers=[4,12]"], ["workers = 12", "power of two"]),
        (["acid.largest=2"], ["workers = 2"]),
        (["acid.training.optim.batch_size=2000"], ["batch_size = 2000"]),
        (["seeds=[-1]"], ["seed = -1"]),
        (["acid.training.optim.lr=${nowhere}"], ["nowhere"]),
    ],
)
def test_plans_that_cannot_work_are_refused(overrides: list[str], words: list[str]) -> None:
    """One line that names the setting."""
    with pytest.raises(SettingError) as caught:
        Plan("quick", overrides)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_unknown_runtime_and_item_are_refused(quick: Plan) -> None:
    """A runtime key and an item that do not exist are named."""
    with pytest.raises(SettingError, match="devise"):
        Plan("quick", runtime={"devise": "cpu"})
    with pytest.raises(SettingError, match="acid_figure_1"):
        quick.item("acid_figure_77")


def test_overrides_reach_runs_and_items() -> None:
    """The scale's values are what the items' grids refer to."""
    made = Plan("quick", ["seeds=[5]", "acid.workers=[8]", "acid.largest=16", "acid.items.figure_1.title=mine"])
    assert {run.seed for run in made.runs.values()} == {5}
    table, figure = ({made.runs[name].workers for name in made.item(f"acid_{i}").runs} for i in ("table_4", "figure_1"))
    assert (table, figure) == ({8}, {16})
    assert made.item("acid_figure_1").config.title == "mine"
    assert "16 workers" in made.item("acid_figure_1").config.caption


def test_the_plan_needs_no_torch() -> None:
    """What Snakemake imports at every start stays light."""
    code = (
        "import sys; from unlocked import workflow; setup = workflow.Setup.read({}); setup.plan.batches;"
        "[b.code for b in setup.plan.batches.values()]; workflow.files_of_items(setup);"
        "[workflow.item_code(i) for i in setup.plan.items.values()];"
        "heavy = {'torch', 'torchvision', 'wandb', 'sklearn'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_workflow_files(quick: Plan, tmp_path: Any) -> None:
    """Every item has its files, every batch its index; an index goes when one of its records is gone."""
    setup = workflow.Setup.read({"results": str(tmp_path), "set": "seeds=[0]", "device": "cpu"})
    files = workflow.files_of_items(setup)
    assert len(files) == len(set(files)) == sum(len(i.suffixes) for i in setup.plan.items.values())
    for group in (*config.RUNS, plan.CLAIMS):
        assert workflow.files_of_items(setup, group) == [f for f in files if f"/{group}/" in f]
    batch = next(iter(setup.plan.batches.values()))
    index = workflow.index_of(setup, batch)
    index.parent.mkdir(parents=True)
    index.write_text("")
    folders = [workflow.folder_of(setup.results, setup.plan.runs[name]) for name in batch.runs]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text("{}")
    assert workflow.drop_stale_indexes(setup) == []
    (folders[0] / "summary.json").unlink()
    assert workflow.drop_stale_indexes(setup) == [index]
    assert not index.exists()


def test_workflow_options_round_trip() -> None:
    """The options of a job lead back to the same plan."""
    import shlex

    from unlocked import cli

    setup = workflow.Setup.read({"set": "seeds=[3] acid.workers=[4,8]", "threads": 2, "wandb": "disabled"})
    parsed = cli.parser().parse_args(["train", *shlex.split(setup.options)])
    again = cli.read_plan(parsed)
    assert list(again.runs) == list(setup.plan.runs)
    assert next(iter(again.runs.values())).runtime.threads == 2
