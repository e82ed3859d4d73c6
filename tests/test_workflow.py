"""The workflow as its user runs it: built, built again, edited, killed, misconfigured; and the set-up files."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from unlocked import config, record

TINY = "seeds=[0] acid.workers=[4] acid.largest=4 acid.training.optim.epochs=1 acid.training.evaluation.points=2"
TINY_CLAIMS = TINY + (
    " acid.straggler_workers=4 forward_gradient.widths=[0.03125] forward_gradient.tangents=1"
    " forward_gradient.training.model.width=0.03125 forward_gradient.training.data.train_limit=64"
    " forward_gradient.training.data.test_limit=40 forward_gradient.training.optim.batch_size=32"
    " forward_gradient.training.optim.epochs=1 forward_gradient.training.evaluation.points=2"
    " forward_gradient.training.evaluation.recalibration_batches=1 forward_gradient.training.measure.batch_size=16"
)
TARGETS = ("acid_figure_1", "acid_figure_3", "acid_table_4")
Snakemake = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the workflow needs, to edit and to kill."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "workflow", "configs", "profiles"):
        shutil.copytree(config.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(config.ROOT / name, folder / name)
    return folder


def command(*words: str, settings: tuple[str, ...] = ()) -> list[str]:
    """A call of Snakemake with tiny settings."""
    own = ["--config", "wandb=disabled", f"set={TINY}", *settings]
    return [sys.executable, "-m", "snakemake", "--cores", "2", *words, *own]


def environment(project: Path) -> dict[str, str]:
    """The process environment in which the copied package is the one that is imported."""
    # a W&B service that another test started is not the one of a process of its own
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return inherited | {"PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def snakemake(project: Path) -> Snakemake:
    """Run the copied workflow and return the finished process."""

    def run(*words: str, settings: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        line = command(*words, settings=settings)
        return subprocess.run(line, cwd=project, env=environment(project), capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture(scope="module")
def built(project: Path, snakemake: Snakemake) -> Path:
    """The copy with its targets built."""
    done = snakemake(*TARGETS)
    assert done.returncode == 0, done.stderr
    return project


def waiting(done: subprocess.CompletedProcess) -> set[str]:
    """Rules that a dry run would run."""
    table = done.stdout.partition("Job stats:")[2] or done.stderr.partition("Job stats:")[2]
    return set(re.findall(r"^(\w+)\s+\d+$", table.partition("\n\n")[0], re.MULTILINE)) - {"total"}


def test_targets_are_built(built: Path) -> None:
    """Figures, tables and records are there, and the tables hold numbers."""
    figures = built / "paper_figures" / "quick" / "acid"
    assert {p.name for p in figures.iterdir()} >= {"figure_1.pdf", "figure_1.csv", "figure_3.svg", "table_4.tex"}
    assert "n = 4" in (figures / "table_4.md").read_text()
    rows = record.load_all(built / "results" / "quick")
    assert set(rows["status"]) == {"completed"}
    assert set(rows["method"]) == {"acid", "baseline", "allreduce"}


def test_a_second_call_does_nothing(built: Path, snakemake: Snakemake) -> None:
    """Everything is up to date."""
    assert "Nothing to be done" in (done := snakemake(*TARGETS)).stderr + done.stdout


def edit(path: Path, old: str, new: str) -> Callable[[], None]:
    """Replace text in a file; returns what undoes it."""
    before = path.read_text()
    assert before.count(old) == 1
    path.write_text(before.replace(old, new))
    return lambda: path.write_text(before) and None


def test_editing_a_figure_redraws_that_figure(built: Path, snakemake: Snakemake) -> None:
    """One function changes, one item is out of date."""
    undo = edit(built / "src/unlocked/items/acid.py", '"""The graphs with the two constants', '"""Graphs with the two')
    try:
        assert waiting(snakemake(*TARGETS, "-n")) == {"acid_figure_3"}
    finally:
        undo()


def test_editing_the_update_retrains_the_gossip_runs(built: Path, snakemake: Snakemake) -> None:
    """`momentum.py` is behind every gossip run, and behind no all-reduce run."""
    undo = edit(built / "src/unlocked/gossip/momentum.py", '"""A²CiD²: the constants', '"""The constants')
    try:
        assert waiting(snakemake("acid_figure_1", "-n")) == {"train", "acid_figure_1"}
        assert waiting(snakemake("acid_figure_3", "-n")) <= {"acid_figure_3"}
    finally:
        undo()


def test_a_lost_record_is_trained_again(built: Path, snakemake: Snakemake) -> None:
    """A figure whose record was deleted with it: its job runs again, and only that run is trained."""
    folder = next(p for p in (built / "results/quick/acid").glob("acid-ring-*") if p.is_dir())
    others = {p: p.stat().st_mtime for p in folder.parent.glob("*/summary.json") if p.parent != folder}
    shutil.rmtree(folder)
    (built / "paper_figures/quick/acid/figure_1.pdf").unlink()
    done = snakemake(*TARGETS)
    assert done.returncode == 0, done.stderr
    assert record.load(folder).summary["status"] == "completed"
    assert {p: p.stat().st_mtime for p in others} == others


@pytest.mark.slow
def test_a_killed_workflow_is_completed_by_the_next_call(project: Path, snakemake: Snakemake) -> None:
    """SIGKILL to everything in the middle of training: no broken record, and the next call ends as usual."""
    words = ("acid_figure_1", "--config", "results=killed", "figures=killed_figures", "wandb=offline")
    line = [*command()[:5], *words, f"set={TINY.replace('epochs=1', 'epochs=40')}"]
    process = subprocess.Popen(
        line, cwd=project, env=environment(project), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list((project / "killed").rglob("*.partial")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for folder in (project / "killed" / "quick" / "acid").glob("*-s0-*"):
        assert folder.suffix == ".partial" or record.load(folder).summary["status"] == "completed"
    subprocess.run([*line, "--unlock"], cwd=project, env=environment(project), check=True, capture_output=True)
    done = subprocess.run(line, cwd=project, env=environment(project), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert not list((project / "killed").rglob("*.partial"))
    assert set(record.load_all(project / "killed")["status"]) == {"completed"}


def test_a_published_value_redraws_its_table(built: Path, snakemake: Snakemake) -> None:
    """And one without a source ends everything with one line."""
    path = built / "configs" / "published" / "acid.csv"
    before = path.read_text()
    try:
        path.write_text(f"{before}table_4,AR-SGD,n = 4,94.5,,a source,yes\n")
        assert waiting(snakemake(*TARGETS, "-n")) == {"acid_table_4"}
        path.write_text(f"{before}table_4,AR-SGD,n = 4,94.5,,,yes\n")
        done = snakemake(*TARGETS, "-n")
        assert done.returncode != 0
        assert "acid.csv, line 2: the value 94.5 has no source" in done.stderr.splitlines()[-1]
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_claims_are_judged(project: Path) -> None:
    """From nothing to verdicts of every claim; a second call does nothing; a threshold that is edited redraws both."""

    def run(*words: str) -> subprocess.CompletedProcess:
        own = ["--config", "wandb=disabled", "results=judged", "figures=judged_figures", f"set={TINY_CLAIMS}"]
        line = [*command()[:5], "claims", *words, *own]
        return subprocess.run(line, cwd=project, env=environment(project), capture_output=True, text=True, timeout=600)

    done = run()
    assert done.returncode == 0, done.stderr
    found = pd.read_csv(project / "judged_figures" / "quick" / "claims" / "verdicts.csv")
    assert found["id"].nunique() == 10
    assert "not run" not in set(found["verdict"])
    assert (project / "judged_figures" / "quick" / "claims" / "effects.pdf").read_bytes().startswith(b"%PDF")
    assert "Nothing to be done" in (again := run()).stderr + again.stdout
    undo = edit(project / "configs" / "claims.yaml", "between: [-0.5, 0.5]", "between: [-0.4, 0.4]")
    try:
        assert waiting(run("-n")) == {"claims", "claims_effects", "claims_verdicts"}
    finally:
        undo()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("scale=huge", ["scale = 'huge'", "quick"]),
        ("scael=quick", ["scael"]),
        ("device=3", ["device"]),
        ("set=acid.training.data.name=mnist", ["data.name = 'mnist'", "digits"]),
    ],
)
def test_bad_settings_are_one_line(project: Path, snakemake: Snakemake, setting: str, words: list[str]) -> None:
    """Nothing starts, and one line says what is wrong."""
    done = snakemake("-n", settings=(setting,))
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Using workflow specific profile")]
    assert done.returncode != 0
    assert len(lines) == 1
    assert all(word in lines[0] for word in words)


def test_the_report_is_one_file(built: Path, snakemake: Snakemake) -> None:
    """Snakemake's report of what was built holds figures, tables and captions, and loads nothing from elsewhere."""
    done = snakemake("acid_figure_3", "acid_table_4", "--report", "report.html")
    assert done.returncode == 0, done.stderr
    text = (built / "report.html").read_text()
    assert "Communication graphs and their constants" in text or "communication graphs and their constants" in text
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', text)


# set-up files


def lock_lines() -> list[str]:
    """Requirements of the lock."""
    return [x for x in (config.ROOT / "requirements.lock").read_text().splitlines() if x and not x.startswith("#")]


def test_conda_and_pip_get_the_same_versions() -> None:
    """The pip part of environment.yml is requirements.lock."""
    (pip,) = (
        x["pip"]
        for x in yaml.safe_load((config.ROOT / "environment.yml").read_text())["dependencies"]
        if isinstance(x, dict)
    )
    assert pip == lock_lines()


def test_every_version_is_pinned() -> None:
    """Exact versions, and the pair of torch and torchvision that fit each other."""
    assert all(re.match(r"[\w.-]+==[\w.]+( ;.*)?$", line) for line in lock_lines())
    assert {"torch==2.14.1", "torchvision==0.29.1"} <= set(lock_lines())


def test_the_gate_runs_the_test_command_of_the_readme() -> None:
    """CI runs what the README says."""
    assert "python3 reproduce.py test" in (config.ROOT / "README.md").read_text()
    assert (config.ROOT / ".ci" / "run").read_text().rstrip().endswith("python3 reproduce.py test")
