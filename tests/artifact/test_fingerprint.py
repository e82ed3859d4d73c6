"""Fingerprints of code: what changes when which file is edited."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from unlocked import fingerprint
from unlocked.artifact.config import ROOT
from unlocked.papers.acid.settings import Acid, AllReduce
from unlocked.papers.forward_gradient.settings import HeadGuess

TRAINERS = {"gossip": Acid.trainer, "allreduce": AllReduce.trainer, "blocks": HeadGuess.trainer}
PLACES = {"figures": ("figure_1", "figure_2", "figure_3", "figure_5"), "tables": ("table_2", "table_4")}
ITEMS = {name: f"unlocked.papers.acid.{place}.{name}" for place, names in PLACES.items() for name in names}
FIGURES = {name for name in ITEMS if name.startswith("figure")}
TOP = "import annotations"


def all_of_them() -> dict[str, str]:
    """Fingerprints of trainers and items."""
    for known in vars(fingerprint).values():
        if hasattr(known, "cache_clear"):
            known.cache_clear()
    trainers = {name: fingerprint.training(path) for name, path in TRAINERS.items()}
    return trainers | {name: fingerprint.function(path) for name, path in ITEMS.items()}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package, which fingerprints are taken of."""
    copy = shutil.copytree(ROOT / "src/unlocked", tmp_path / "unlocked", ignore=shutil.ignore_patterns("__pycache__"))
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "__file__", str(copy / "fingerprint.py"))
        yield copy
    all_of_them()


def affected(package: Path, module: str, old: str) -> set[str]:
    """What changes when a comment is put after some code of a file."""
    before, path = all_of_them(), package / module
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, f"{old}  # edited", 1))
    after = all_of_them()
    return {name for name in before if before[name] != after[name]}


def test_fingerprints_are_stable_and_distinct(package: Path) -> None:
    values = list(all_of_them().values())
    assert values == list(all_of_them().values())
    assert len(set(values)) == len(values)
    assert all(len(value) == 16 for value in values)
    assert package.is_dir()


NOTHING: set[str] = set()
EDITS = [
    # a figure, a constant that two use
    ("papers/acid/figures.py", "def figure_2(context: Context) -> Figure:", {"figure_2"}),
    ("papers/acid/figures.py", 'EPOCHS = "epochs (all workers)"', {"figure_1", "figure_5"}),
    ("forward_gradient/projection.py", TOP, {"blocks"}),
    # what computes nothing
    ("cli.py", TOP, NOTHING),
    ("artifact/plan.py", TOP, NOTHING),
    ("artifact/workflow.py", TOP, NOTHING),
    ("artifact/record.py", TOP, NOTHING),
    ("artifact/tracking.py", TOP, NOTHING),
    ("settings.py", TOP, NOTHING),
    ("papers/run.py", TOP, NOTHING),
    ("papers/acid/settings.py", TOP, NOTHING),
    ("fingerprint.py", TOP, NOTHING),
]


@pytest.mark.parametrize(("module", "old", "expected"), EDITS, ids=[f"{module}-{old[:20]}" for module, old, _ in EDITS])
def test_what_an_edit_changes(package: Path, module: str, old: str, expected: set[str]) -> None:
    """Exactly that is trained or drawn again which uses the edited code, directly or not."""
    assert affected(package, module, old) == expected


SHARED = [
    # the update of gossip is no part of all-reduce, nor all-reduce of gossip
    ("gossip/momentum.py", {"gossip"}, NOTHING),
    ("gossip/schedule.py", {"gossip"}, {"figure_2"}),
    # theory: used by the simulator and by items that show it
    ("gossip/topology.py", {"gossip"}, {"figure_2", "figure_3", "table_2"}),
    ("vision/partition.py", {"gossip", "allreduce"}, NOTHING),
    # what is part of every training: networks, the optimiser, seeds, the budget, data, their packages
    ("vision/models.py", set(TRAINERS), NOTHING),
    ("optim.py", set(TRAINERS), NOTHING),
    ("seeding.py", set(TRAINERS), NOTHING),
    ("papers/base.py", set(TRAINERS), NOTHING),
    ("vision/__init__.py", set(TRAINERS), NOTHING),
    ("vision/data/__init__.py", set(TRAINERS), NOTHING),
    ("vision/data/digits.py", set(TRAINERS), NOTHING),
    ("vision/data/splits.py", set(TRAINERS), NOTHING),
    ("vision/evaluate.py", set(TRAINERS), NOTHING),
    # colours concern items only, and all figures
    ("items/style.py", NOTHING, FIGURES),
]


@pytest.mark.parametrize(("module", "trainers", "items"), SHARED, ids=[module for module, *_ in SHARED])
def test_what_several_use(package: Path, module: str, trainers: set[str], items: set[str]) -> None:
    """Exactly these trainings, and at least these items."""
    text = (package / module).read_text()
    changed = affected(package, module, TOP if TOP in text else text)
    assert changed & set(TRAINERS) == trainers
    assert changed >= items


def test_which_imports_count(package: Path) -> None:
    """Those inside functions, the packages above, whatever a package imports from its folder; not those for types."""
    (package / "whole").mkdir()
    (package / "whole" / "__init__.py").write_text("for module in iter_modules(__path__):\n    import_module(module)\n")
    for name in ("part.py", "_private.py"):
        (package / "whole" / name).write_text("")
    (package / "user.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from unlocked import cli\n"
        "def use():\n    from unlocked.whole import part\n"
    )
    all_of_them()
    assert set(fingerprint.modules("unlocked.user")) == {"unlocked.user", "unlocked.whole", "unlocked.whole.part"}
    (package / "user.py").write_text("import unlocked.whole\n")
    all_of_them()
    assert set(fingerprint.modules("unlocked.user")) == {"unlocked.user", "unlocked.whole", "unlocked.whole.part"}


@pytest.mark.parametrize("trainer", TRAINERS.values())
def test_modules_of_a_trainer(trainer: str) -> None:
    """No training reaches the other paper, the items, the artifact or the reports."""
    module = trainer.rpartition(".")[0]
    reached = [name.split(".") for name in fingerprint.modules(module)]
    assert module.split(".") in reached
    assert not {parts[1] for parts in reached if parts[1:]} & {"items", "artifact", "report", "cli"}
    others = {"acid", "forward_gradient"} - {module.split(".")[2]}
    assert not {parts[2] for parts in reached if parts[1:2] == ["papers"] and parts[2:]} & others


def test_digest_separates_its_parts() -> None:
    assert fingerprint.digest("ab", "c") != fingerprint.digest("a", "bc")
