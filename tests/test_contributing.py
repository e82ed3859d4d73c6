"""CONTRIBUTING's table, followed line by line in a copy of the package: one of each is added, and an item built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unlocked.artifact.config import ROOT

ADDED = {
    "src/unlocked/gossip/topology.py": '''

@graph("wheel", least=4)
def wheel(workers: int, _seed: int) -> nx.Graph:
    """A ring whose workers all know worker 0."""
    return nx.wheel_graph(workers)
''',
    "src/unlocked/gossip/clock.py": '''

@law
def uniform(_clock: Clock, draws: np.random.Generator, count: int) -> np.ndarray:
    """Between half of the mean and one and a half."""
    return draws.uniform(0.5, 1.5, count)
''',
    "src/unlocked/forward_gradient/guesses.py": """

register(Guess("sign_local", "sign of local", "#884400", "head", lambda gradient: gradient.sign(), trains_heads=True))
""",
    "src/unlocked/forward_gradient/targets.py": """

mean = lambda whole, own: (whole + own) / 2
register(Target("halfway", "halfway", "#448800", "", mean, uses_net=True, uses_heads=True))
""",
    "src/unlocked/vision/data/stripes.py": '''"""Stripes: upright or lying."""

import numpy as np

from unlocked.vision.data.registry import data_set


@data_set(title="Stripes", classes=2, size=8, train=256, test=64, mean=(0.5,), std=(0.5,), augmentation="none")
def stripes(_root, _download, _verify):
    """Half of the images are transposed."""
    draws = np.random.default_rng(0)
    labels = draws.integers(2, size=320)
    images = np.where(np.arange(8) % 2, 255, 0) * np.ones((320, 1, 8, 1)) * draws.uniform(0.2, 1, (320, 1, 8, 8))
    images[labels == 1] = images[labels == 1].swapaxes(2, 3)
    images = images.astype(np.uint8)
    return (images[:256], labels[:256]), (images[256:], labels[256:]), "made here"
''',
    "src/unlocked/papers/acid/figures.py": '''

def wheels(context: Context) -> Figure:
    """Training loss on the wheel."""
    figure, axis = style.new(1, 1)
    return Figure(figure, draw(context.frames, [(axis, "train_loss", "epoch")], ["method", "rate"], at_rate))
''',
    "src/unlocked/papers/forward_gradient/tables.py": '''

def halves(context: Context) -> Table:
    """Accuracy by target and guess."""
    shown = context.frames.summary(["target", "guess", "data.name"], "test_accuracy")
    return tabulate(shown, "{target}, {guess}", {"accuracy": mean_deviation("test_accuracy")}, corner="method")
''',
    "configs/acid/items.yaml": """
wheels:
  kind: figure
  title: training loss on a wheel
  caption: Gradient times are uniform.
  build: unlocked.papers.acid.figures.wheels
  needs:
    - grid: &wheel
        { method: [acid, baseline], graph: wheel, workers: 6, rate: 1.0, clock.law: uniform, data.name: stripes,
          optim.batch_size: 8, optim.epochs: 4, evaluation.points: 3, patience: 2.5 }
""",
    "configs/forward_gradient/items.yaml": """
halves:
  kind: table
  title: halfway between two targets
  caption: With the sign of the local guess.
  build: unlocked.papers.forward_gradient.tables.halves
  needs:
    - grid:
        { target: [halfway, global], guess: sign_local, auxiliary: linear, data.name: stripes, model.width: 0.0625,
          optim.batch_size: 16, optim.epochs: 1, evaluation.points: 2, measure.batches: 1, measure.batch_size: 16 }
""",
    "configs/claims.yaml": """
C1:
  paper: acid
  claim: On a wheel the momentum changes little.
  source: nobody
  conditions: A wheel of six workers.
  settings: [graph, clock.law, patience]
  needs:
    - grid:
        { method: [acid, baseline], graph: wheel, workers: 6, rate: 1.0, clock.law: uniform, data.name: stripes,
          optim.batch_size: 8, optim.epochs: 4, evaluation.points: 3, patience: 2.5 }
  parts:
    total:
      says: sum of the accuracies
      unit: percentage points
      statistic: total
      arguments: { measure: test_accuracy, of: { method: acid }, to: { method: baseline } }
      above: 0.0
""",
    "src/unlocked/report/statistics.py": '''

@statistic()
def total(evidence: Evidence, *, measure: str, of: Settings, to: Settings) -> float:
    """A measure of the run `of` plus that of the run `to`."""
    return evidence.value(measure, of) + evidence.value(measure, to)
''',
}
SETTING = '    patience: float = setting(1.0, "what nobody needs", above=0)\n'
AFTER = '    evaluation: Evaluation = setting(Evaluation(), "what is measured")\n'


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package and its configs with one of each added."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("src", "configs", "workflow"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name, text in ADDED.items():
        path = root / name
        path.write_text((path.read_text() if path.exists() else "") + text)
    path = root / "src/unlocked/papers/acid/settings.py"
    assert AFTER in path.read_text()
    path.write_text(path.read_text().replace(AFTER, AFTER + SETTING, 1))
    return root


def unlocked(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the copy."""
    environment = os.environ | {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "unlocked", *words]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)


def output(root: Path, *words: str) -> str:
    """What a command of the copy prints; it must succeed."""
    done = unlocked(root, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_of_each_is_planned_trained_drawn_and_judged(copy: Path) -> None:
    plan = json.loads(output(copy, "plan", "--json"))
    for item in ("acid_wheels", "forward_gradient_halves"):
        names = next(one["runs"] for one in plan["items"] if one["name"] == item)
        assert len(names) == 4
        output(copy, "train", "--runs", *names, "--runtime", "wandb=disabled")
        output(copy, "item", item)
    figure = copy / "paper_figures/quick/acid/wheels.png"
    assert figure.stat().st_size > 10_000
    table = (copy / "paper_figures/quick/forward_gradient/halves.md").read_text()
    assert "halfway, sign_local" in table
    assert "Stripes" in table
    claims = {row["id"]: row for row in json.loads(output(copy, "claims", "--json"))}
    assert claims["C1"]["n"] == 2
    assert claims["C1"]["effect"] > 100
    assert "patience 2.5" in claims["C1"]["conditions"]


def test_the_new_setting_is_documented_and_refused_like_any_other(copy: Path) -> None:
    assert "patience" in output(copy, "settings")
    done = unlocked(copy, "plan", "--set", "acid.training.patience=-1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "patience = -1.0: must be a finite number above 0" in done.stderr


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("gossip/topology.py", '\n@graph("ring again")\ndef ring(workers, seed):\n    """Taken."""\n', "another graph"),
        ("gossip/clock.py", "\n@law\ndef silent(clock, draws, count):\n    return draws\n", "docstring"),
        ("forward_gradient/guesses.py", '\nregister(Guess("local", "again", "#000000", "head"))\n', "another guess"),
        ("forward_gradient/guesses.py", '\nregister(Guess("hue", "hue", "red", "head"))\n', "colour"),
        ("forward_gradient/targets.py", '\nregister(Target("Far", "far", "#000000", ""))\n', "lower-case"),
        ("report/statistics.py", '\n@statistic()\ndef mute(evidence):\n    return 1.0\n', "docstring"),
    ],
)  # fmt: skip
def test_what_is_registered_wrongly_is_refused_when_it_is_registered(
    copy: Path, tmp_path: Path, name: str, text: str, says: str
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(copy, root, ignore=shutil.ignore_patterns("results", "paper_figures"))
    path = root / "src/unlocked" / name
    path.write_text(path.read_text() + text)
    done = unlocked(root, "claims" if "report" in name else "plan")
    assert done.returncode != 0
    assert says in done.stderr.strip().splitlines()[-1]
