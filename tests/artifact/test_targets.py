"""Names of targets: all that there are, found without importing anything, and one line for those that there are not."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from unlocked.artifact import targets
from unlocked.artifact.config import ROOT
from unlocked.artifact.plan import CLAIMS, Plan
from unlocked.papers import PAPERS


def test_all_names_are_known() -> None:
    """Those of the plan's items and groups, and rules that a person asks for."""
    known = targets.known(ROOT)
    items = list(Plan("quick").items)
    assert {*items, *PAPERS, CLAIMS, "all", "report", "wandb_report", "snakemake_report", "pilot"} == set(known)
    assert len(known) == len(set(known))


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("acid_figur_5", "acid_figure_5"),
        ("figure_5", "acid_figure_5"),
        ("acid reprot", "report"),
        ("--cores 2 acid_figure_55", "acid_figure_5"),
        ("-n forward_gradient_widht --config scale=paper", "forward_gradient_width"),
        ("-n acid --config scale=paper -q forward_gradient_widht", None),
        ("claim", "claims"),
    ],
)
def test_a_wrong_name_is_one_line(line: str, nearest: str | None) -> None:
    """With the nearest names and all others; after an option a word may be the option's value, and is left alone."""
    said = targets.unknown(line.split(), ROOT)
    if nearest is None:
        assert said is None
        return
    assert said is not None
    assert "\n" not in said
    assert nearest in said.partition("?")[0]
    assert said.endswith(", ".join(targets.known(ROOT)))


@pytest.mark.parametrize(
    "line",
    ["", "all", "acid_figure_5 claims report", "--cores 2 acid", "results/quick/report.html", "--profile acid_cluster",
     "-n", "train --config results=acid_results", "acid --config scale=reduced set=seeds=[0]"],
)  # fmt: skip
def test_right_names_are_left_alone(line: str) -> None:
    assert targets.unknown(line.split(), ROOT) is None


@pytest.mark.parametrize(("word", "code"), [("--help", 0), ("-h", 0), ("acid_figur_5", 1)])
def test_reproduce_answers_before_it_installs(word: str, code: int) -> None:
    """Its own help, or the line on a name, by any Python, without packages and without making an environment."""
    line = [sys.executable, "-I", "-S", str(ROOT / "reproduce.py"), word]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert "making .venv" not in done.stdout
    if code:
        assert len(done.stderr.splitlines()) == 1
        assert "acid_figure_5" in done.stderr
    else:
        assert "reproduce.py acid_figure_5" in done.stdout
        assert "forward_gradient_width" in done.stdout


def test_an_old_environment_makes_its_successor(tmp_path: Path) -> None:
    """`.venv/bin/python reproduce.py` when the lock has changed: the Python that runs is the one that is removed."""
    shutil.copy(ROOT / "reproduce.py", tmp_path)
    (tmp_path / "requirements.lock").touch()
    (tmp_path / "pyproject.toml").touch()
    venv.create(tmp_path / ".venv", with_pip=False)
    python = tmp_path / ".venv" / "bin" / "python"
    done = subprocess.run([python, tmp_path / "reproduce.py", "test"], capture_output=True, text=True, timeout=300)
    assert "-e .' failed" in done.stderr  # there is no package here
    assert python.exists()
    assert (python.parent / "pip").exists()
