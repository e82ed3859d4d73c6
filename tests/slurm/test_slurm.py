"""The workflow through a real Slurm of one node: same results as on this machine, and what it asks the scheduler for.

Skipped where Slurm is not installed or cannot be started; `tests/slurm/one_node.sh check` says why.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import flow
from comparison import assert_same_items, assert_same_records
from unlocked.artifact import record
from unlocked.artifact.calls import Call
from unlocked.artifact.workflow import Setup, resources_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("one_node.sh")
ITEMS = ("acid_figure_1", "forward_gradient_learning_curves")
LITTLE = (
    "seeds=[0] acid.workers=[4] acid.largest=4 acid.training.optim.epochs=2 acid.training.evaluation.points=2 "
    "forward_gradient.training.optim.epochs=0.5 forward_gradient.training.evaluation.points=1"
)
SHORT_WAITS = ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "10")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Slurm of one node; its daemons end with the tests, whatever happens."""
    if find_spec("snakemake_executor_plugin_slurm") is None:
        pytest.skip("snakemake-executor-plugin-slurm is not installed")
    checked = subprocess.run([SCRIPT, "check"], capture_output=True, text=True)
    if checked.returncode:
        pytest.skip(checked.stdout.strip())
    state = tmp_path_factory.mktemp("slurm")
    try:
        started = subprocess.run([SCRIPT, "start", state], stdout=(state / "out").open("w"), stderr=subprocess.STDOUT)
        if started.returncode:
            pytest.skip(f"Slurm does not start: {(state / 'out').read_text().strip()[-300:]}")
        yield
    finally:
        subprocess.run([SCRIPT, "stop", state], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def snakemake(folder: Path, profile: str, *words: str, settings: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run the workflow in `folder` with a profile of the repository."""
    words = (*words, *(SHORT_WAITS if profile == "slurm" else ()))
    line = flow.snakemake(*words, settings=("wandb=disabled", f"set={LITTLE}", *settings), profile=profile)
    return subprocess.run(line, cwd=folder, env=flow.environment(), capture_output=True, text=True, timeout=800)


@pytest.fixture(scope="module")
def through_slurm(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:  # noqa: ARG001 - started for it
    """The folder in which the scheduler built the items, and what Snakemake said."""
    folder = tmp_path_factory.mktemp("through_slurm")
    done = snakemake(folder, "slurm", *ITEMS)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_results_are_those_of_this_machine(through_slurm: tuple[Path, str], tmp_path: Path) -> None:
    """Every record and every item's numbers, bit by bit."""
    done = snakemake(tmp_path, "default", *ITEMS)
    assert done.returncode == 0, done.stderr
    assert_same_records(through_slurm[0] / "results", tmp_path / "results")
    assert_same_items(through_slurm[0] / "paper_figures", tmp_path / "paper_figures")


def test_training_is_submitted_and_items_are_not(through_slurm: tuple[Path, str]) -> None:
    """One Slurm job per batch of runs, with the time and memory of the plan; tables and figures are made here."""
    said = through_slurm[1]
    setup = Setup.read_or_exit({"set": LITTLE})
    batches = {batch.id for name in ITEMS for batch in setup.plan.batches_of(setup.plan.item(name).runs)}
    jobs = dict(re.findall(r"SLURM jobid (\d+) \(log: \S*/rule_train/\w+_([0-9a-f]{8})/", said))
    assert set(jobs.values()) == batches
    assert all(f"localrule {name}" in said for name in ITEMS)
    assert not re.search(r"SLURM jobid \d+ \(log: \S*/rule_(acid|forward_gradient)", said)
    for number, key in jobs.items():
        asked = resources_of(setup, setup.plan.batches[key])
        found = described(number)
        assert found["MinMemoryNode"] in (f"{asked.mem_mb}M", f"{asked.mem_mb / 1024:g}G")
        assert found["TimeLimit"] == f"{asked.runtime // 60:02d}:{asked.runtime % 60:02d}:00"
        assert found["NumCPUs"] == str(asked.threads)
    call = Call(setup.plan, through_slurm[0] / setup.results, setup.figures)
    assert all(call.index(setup.plan.batches[key]).is_file() for key in batches)


@pytest.mark.usefixtures("slurm")
def test_processes_are_tasks_of_the_scheduler(tmp_path: Path) -> None:
    """A run with one process per worker asks for as many tasks, which srun starts; the record is a normal one."""
    settings = (f"set={LITTLE} acid.engine_epochs=1 acid.engine_stretch=2",)
    done = snakemake(tmp_path, "slurm", "acid_engines", settings=settings)
    assert done.returncode == 0, done.stderr
    numbers = re.findall(r"SLURM jobid (\d+) \(log: \S*/rule_train_processes/", done.stderr)
    assert numbers
    assert all((described(n)["NumTasks"], described(n)["CPUs/Task"]) == ("4", "1") for n in numbers)
    found = record.load_all(tmp_path / "results").query("engine == 'processes'")
    assert set(found["status"]) == {"completed"}
    assert set(found["method"]) == {"acid", "baseline"}


def described(number: str) -> dict[str, str]:
    """A job as the scheduler knows it."""
    done = subprocess.run(["scontrol", "show", "job", number], capture_output=True, text=True, check=True)
    return dict(word.split("=", 1) for word in done.stdout.split() if "=" in word)


@pytest.mark.usefixtures("slurm")
def test_a_gpu_is_asked_for_and_its_absence_is_one_line(tmp_path: Path) -> None:
    """With `device=cuda` a job gets a GPU. The one here is on paper: the job says so, and Snakemake repeats it."""
    done = snakemake(tmp_path, "slurm", "acid_figure_1", "--retries", "0", settings=("device=cuda",))
    assert done.returncode != 0
    numbers = re.findall(r"SLURM jobid (\d+) \(log: \S*/rule_train/", done.stderr)
    assert numbers
    assert all("gpu" in described(number)["TresPerJob"] for number in numbers)
    lines = {line for line in done.stderr.splitlines() if line.startswith("unlocked: runtime.device = 'cuda'")}
    assert len(lines) == 1, done.stderr
