"""The workflow as its user runs it: built, built again, edited, killed, misconfigured; and the set-up files."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml

import flow
from unlocked import cli
from unlocked.artifact import config, record, workflow
from unlocked.artifact.plan import CLAIMS
from unlocked.papers import PAPERS

TINY = "seeds=[0] acid.workers=[4] acid.largest=4 acid.training.optim.epochs=1 acid.training.evaluation.points=2"
TINY_CLAIMS = TINY + (
    " acid.straggler_workers=4 forward_gradient.widths=[0.03125] forward_gradient.tangents=1"
    " forward_gradient.training.model.width=0.03125 forward_gradient.training.data.train_limit=64"
    " forward_gradient.training.data.test_limit=40 forward_gradient.training.optim.batch_size=32"
    " forward_gradient.training.optim.epochs=1 forward_gradient.training.evaluation.points=2"
    " forward_gradient.training.evaluation.recalibration_batches=1 forward_gradient.training.measure.batch_size=16"
)
USUAL = ("wandb=disabled", "wandb_project=a{b}")  # braces mean nothing to Snakemake here
TOP = "from __future__ import annotations"
TARGETS = ("acid_figure_1", "acid_figure_3", "acid_table_4")
Done = subprocess.CompletedProcess[str]
Snakemake = Callable[..., Done]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the workflow needs, to edit and to kill."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "workflow", "configs", "profiles"):
        shutil.copytree(config.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(config.ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def snakemake(project: Path) -> Snakemake:
    """Run the copied workflow and return the finished process, which must succeed unless `fails`."""

    def run(*words: str, fails: bool = False, changes: str = TINY, settings: tuple[str, ...] = USUAL) -> Done:
        line = flow.snakemake(*words, settings=(f"set={changes}", *settings), root=project)
        own = flow.environment(project)
        done = subprocess.run(line, cwd=project, env=own, capture_output=True, text=True, timeout=600)
        assert bool(done.returncode) == fails, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def built(project: Path, snakemake: Snakemake) -> Path:
    """The copy with its targets built."""
    snakemake(*TARGETS)
    return project


def waiting(done: Done) -> set[str]:
    """Rules that a dry run would run."""
    table = done.stdout.partition("Job stats:")[2] or done.stderr.partition("Job stats:")[2]
    return set(re.findall(r"^(\w+)\s+\d+$", table.partition("\n\n")[0], re.MULTILINE)) - {"total"}


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """A file with some text replaced, for a while."""
    before = path.read_text()
    assert before.count(old) == 1
    path.write_text(before.replace(old, new))
    try:
        yield
    finally:
        path.write_text(before)


def test_targets_are_built(built: Path, snakemake: Snakemake) -> None:
    """Figures, tables and records are there, the tables hold numbers, and a second call does nothing."""
    figures = built / "paper_figures" / "quick" / "acid"
    assert {p.name for p in figures.iterdir()} >= {"figure_1.pdf", "figure_1.csv", "figure_3.svg", "table_4.tex"}
    assert "n = 4" in (figures / "table_4.md").read_text()
    rows = record.load_all(built / "results" / "quick")
    assert set(rows["status"]) == {"completed"}
    assert set(rows["method"]) == {"acid", "baseline", "allreduce"}
    assert "Nothing to be done" in (done := snakemake(*TARGETS)).stderr + done.stdout


def test_editing_a_figure_redraws_that_figure(built: Path, snakemake: Snakemake) -> None:
    place = built / "src/unlocked/papers/acid/figures.py"
    with edited(place, "def figure_3(", "def figure_3(  # edited\n    "):
        assert waiting(snakemake(*TARGETS, "-n")) == {"acid_figure_3"}


def test_a_failing_item_says_its_name_and_takes_no_other_with_it(built: Path, snakemake: Snakemake) -> None:
    with edited(built / "src/unlocked/papers/acid/figures.py", "def figure_2(", "def figure_2(more, "):
        said = snakemake("acid_figure_2", "acid_table_1", fails=True).stderr
    assert "\nunlocked: acid_figure_2 was not drawn: TypeError" in said
    assert (built / "paper_figures/quick/acid/table_1.md").is_file()
    assert not list((built / "paper_figures/quick/acid").glob("figure_2.*"))


def test_a_dry_run_writes_nothing(built: Path, snakemake: Snakemake) -> None:
    """Neither where there is nothing nor where there is something to train again."""
    assert "train" in waiting(snakemake("acid_figure_1", "-n", settings=("results=nowhere",)))
    assert not (built / "nowhere").exists()
    before = {path: path.stat().st_mtime_ns for path in (built / "results").rglob("*")}
    with edited(built / "src/unlocked/gossip/momentum.py", TOP, f"{TOP}  # edited"):
        assert "train" in waiting(snakemake("acid_figure_1", "-n"))
    assert {path: path.stat().st_mtime_ns for path in (built / "results").rglob("*")} == before


def test_editing_the_update_retrains_the_gossip_runs(built: Path, snakemake: Snakemake) -> None:
    """`momentum.py` is behind every gossip run, and behind no all-reduce run."""
    with edited(built / "src/unlocked/gossip/momentum.py", TOP, f"{TOP}  # edited"):
        assert waiting(snakemake("acid_figure_1", "-n")) == {"train", "acid_figure_1"}
        assert waiting(snakemake("acid_figure_3", "-n")) <= {"acid_figure_3"}


def empty_history(folder: Path) -> None:
    (folder / "history.parquet").write_bytes(b"")


def lose(folder: Path) -> None:
    shutil.rmtree(folder)
    (folder.parents[3] / "paper_figures/quick/acid/figure_1.pdf").unlink()


@pytest.mark.parametrize("harm", [lose, empty_history])
def test_a_lost_record_is_trained_again(built: Path, snakemake: Snakemake, harm: Callable[[Path], None]) -> None:
    """A record that was deleted with a figure of it, or altered: its job runs again, only that run is trained."""
    folder = next(p for p in (built / "results/quick/acid").glob("acid-ring-*") if p.is_dir())
    others = {p: p.stat().st_mtime for p in folder.parent.glob("*/summary.json") if p.parent != folder}
    harm(folder)
    assert waiting(snakemake(*TARGETS, "-n")) >= {"train", "acid_figure_1"}
    snakemake(*TARGETS)
    assert "Nothing to be done" in (again := snakemake(*TARGETS)).stderr + again.stdout
    assert record.load(folder).summary["status"] == "completed"
    assert {p: p.stat().st_mtime for p in others} == others


def test_a_published_value_redraws_its_table(built: Path, snakemake: Snakemake) -> None:
    """And one without a source ends everything with one line."""
    path = built / "configs" / "published" / "acid.csv"
    before = path.read_text()
    with edited(path, before, f"{before}table_4,AR-SGD,n = 4,94.5,,a source,yes\n"):
        assert waiting(snakemake(*TARGETS, "-n")) == {"acid_table_4"}
    with edited(path, before, f"{before}table_4,AR-SGD,n = 4,94.5,,,yes\n"):
        last = snakemake(*TARGETS, "-n", fails=True).stderr.splitlines()[-1]
        assert "acid.csv, line 2: the value 94.5 has no source" in last


def test_the_report_is_one_file(built: Path, snakemake: Snakemake) -> None:
    """Snakemake's report of what was built holds figures, tables and captions, and loads nothing from elsewhere."""
    snakemake("acid_figure_3", "acid_table_4", "--report", "report.html")
    text = (built / "report.html").read_text()
    assert "communication graphs and their constants" in text.lower()
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', text)


@pytest.mark.slow
def test_claims_are_judged(project: Path, snakemake: Snakemake) -> None:
    """From nothing to verdicts of every claim; a second call does nothing; a threshold that is edited redraws both."""
    own = {"changes": TINY_CLAIMS, "settings": ("wandb=disabled", "results=judged", "figures=judged_figures")}
    snakemake("claims", **own)
    found = pd.read_csv(project / "judged_figures" / "quick" / "claims" / "verdicts.csv")
    assert set(found["id"]) == set(config.read_yaml(config.CONFIGS / "claims.yaml"))
    assert "not run" not in set(found["verdict"])
    assert (project / "judged_figures" / "quick" / "claims" / "effects.pdf").read_bytes().startswith(b"%PDF")
    assert "Nothing to be done" in (again := snakemake("claims", **own)).stderr + again.stdout
    with edited(project / "configs" / "claims.yaml", "between: [-0.5, 0.5]", "between: [-0.4, 0.4]"):
        assert waiting(snakemake("claims", "-n", **own)) == {"claims", "claims_effects", "claims_verdicts"}


def test_bad_settings_are_one_line(snakemake: Snakemake) -> None:
    """Nothing starts, and one line says what is wrong."""
    done = snakemake("-n", settings=("scale=huge",), fails=True)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert len(lines) == 1
    assert lines[0].startswith("unlocked: scale = 'huge'")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"scael": "quick"}, ["scael", "scale"]),
        ({"device": 3}, ["runtime.device = 3", "text"]),
        ({"threads": 0}, ["runtime.threads = 0"]),
        ({"channels_last": "maybe"}, ["runtime.channels_last = 'maybe'"]),
        ({"wandb_upload": "maybe"}, ["wandb_upload = 'maybe'", "true or false"]),
        ({"results": 3}, ["results = 3", "text"]),
        ({"set": 3}, ["set = 3", "list of texts"]),
        ({"scale": "huge"}, ["scale = 'huge'", "quick"]),
        ({"results": "a{b}"}, ["results = 'a{b}'"]),
        ({"figures": "{b"}, ["figures = '{b'"]),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, object], words: list[str]) -> None:
    """One line that names the setting, its value and what is right."""
    with pytest.raises(SystemExit) as caught:
        workflow.Setup.read_or_exit(values)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_options_round_trip() -> None:
    """The options of a job lead back to the same plan; `true` is passed on as text."""
    values = {"set": "seeds=[3] acid.workers=[4,8]", "threads": 2, "channels_last": "true", "wandb_upload": "true"}
    setup = workflow.Setup.read_or_exit(values)
    assert setup.wandb_upload is True
    again = cli.read_plan(cli.parser().parse_args(["train", *shlex.split(setup.options())]))
    assert "--runtime" not in setup.options(runtime=False)
    assert list(again.runs) == list(setup.plan.runs)
    assert {run.runtime.threads for run in again.runs.values()} == {2}
    assert {getattr(run.runtime, "channels_last", None) for run in again.runs.values()} == {None, True}


def test_every_item_has_its_files() -> None:
    setup = workflow.Setup.read_or_exit({"set": "seeds=[0]", "device": "cpu"})
    files = workflow.files_of_items(setup)
    assert len(files) == len(set(files)) == sum(len(item.suffixes) for item in setup.plan.items.values())
    for group in (*PAPERS, CLAIMS):
        assert workflow.files_of_items(setup, group) == [f for f in files if f"/{group}/" in f]


def test_jobs_of_processes() -> None:
    """Exactly the jobs whose runs have a process per worker match their pattern."""
    setup = workflow.Setup.read_or_exit({"set": "seeds=[0]"})
    pattern = workflow.batches_of_processes(setup)
    tasks = {key: workflow.resources_of(setup, batch).tasks for key, batch in setup.plan.batches.items()}
    assert {key for key in tasks if re.fullmatch(pattern, key)} == {key for key in tasks if tasks[key] > 1} != set()


def test_versions_are_pinned() -> None:
    """Exactly, the same for conda and pip, and torch and torchvision are a pair that fits."""
    lines = (config.ROOT / "requirements.lock").read_text().splitlines()
    lock = [line for line in lines if line and not line.startswith("#")]
    assert all(re.match(r"[\w.-]+==[\w.]+( ;.*)?$", line) for line in lock)
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(lock)
    conda = yaml.safe_load((config.ROOT / "environment.yml").read_text())["dependencies"]
    assert [part["pip"] for part in conda if isinstance(part, dict)] == [lock]


def test_the_gate_runs_the_test_command_of_the_readme() -> None:
    assert "python3 reproduce.py test" in (config.ROOT / "README.md").read_text()
    assert (config.ROOT / ".ci" / "run").read_text().rstrip().endswith("python3 reproduce.py test")
