"""Fingerprints of code: what changes when which file is edited."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unlocked import config, fingerprint

GOSSIP, TOGETHER = "unlocked.gossip.virtual", "unlocked.gossip.allreduce"
ITEMS = [
    f"unlocked.items.acid.{name}" for name in ("figure_1", "figure_2", "figure_3", "figure_5", "table_2", "table_4")
]
Edit = Callable[[str, str, str], None]


@pytest.fixture
def edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """`edit(module, old, new)` replaces text in a copy of the package that the fingerprints are taken of."""
    copy = tmp_path / "src" / "unlocked"
    source, original = config.ROOT / "src" / "unlocked", fingerprint.source_path
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def source_path(module: str) -> Path | None:
        path = original(module)
        return None if path is None else copy / path.relative_to(source)

    def forget() -> None:
        for function in (fingerprint.imports, fingerprint.modules, fingerprint.training):
            function.cache_clear()

    def change(module: str, old: str, new: str) -> None:
        path = source_path(module)
        assert path is not None
        text = path.read_text()
        assert old in text, (module, old)
        path.write_text(text.replace(old, new, 1))
        forget()

    monkeypatch.setattr(fingerprint, "source_path", source_path)
    forget()
    yield change
    forget()


def all_of_them() -> dict[str, str]:
    """Fingerprints of both engines and of all items."""
    return {e: fingerprint.training(e) for e in (GOSSIP, TOGETHER)} | {i: fingerprint.function(i) for i in ITEMS}


def affected(edit: Edit, module: str, old: str, new: str) -> set[str]:
    """What changes when a file is edited, by the last part of its name."""
    before = all_of_them()
    edit(module, old, new)
    after = all_of_them()
    return {name.rsplit(".", 1)[1] for name in before if before[name] != after[name]}


def test_fingerprints_are_stable_and_distinct(edit: Edit) -> None:
    """Twice the same, and no two alike."""
    first = all_of_them()
    edit("unlocked.cli", "", "")
    assert all_of_them() == first
    assert len(set(first.values())) == len(first)
    assert all(len(value) == 16 for value in first.values())


def test_editing_one_figure_changes_that_figure(edit: Edit) -> None:
    """A comment inside figure_2 changes figure_2 alone: nothing is trained again, nothing else is drawn again."""
    old = "workers, horizon, round_trip = 6, 6.0, 0.25"
    assert affected(edit, "unlocked.items.acid", old, f"{old}  # edited") == {"figure_2"}


def test_editing_a_helper_changes_its_users(edit: Edit) -> None:
    """draw_metric is used by the two figures with curves."""
    old = 'data = data[data["step"] > 0]'
    assert affected(edit, "unlocked.items.acid", old, f"{old}  # edited") == {"figure_1", "figure_5"}


def test_editing_a_constant_changes_its_users(edit: Edit) -> None:
    """The rows of table 4 concern table 4."""
    assert affected(edit, "unlocked.items.acid", '("acid", "ring"),\n)', '("acid", "star"),\n)') == {"table_4"}


def test_editing_the_style_changes_no_training(edit: Edit) -> None:
    """Colours concern items only."""
    found = affected(edit, "unlocked.items.style", '"font.size": 8', '"font.size": 9')
    assert {"figure_1", "figure_2", "figure_3", "figure_5", "table_4"} <= found
    assert not {"virtual", "allreduce"} & found


def test_editing_the_momentum_retrains_gossip_only(edit: Edit) -> None:
    """The update of A²CiD² is no part of all-reduce, nor of any item."""
    assert affected(edit, "unlocked.gossip.momentum", "math.expm1(-2", "math.expm1(-3") == {"virtual"}


def test_editing_all_reduce_retrains_all_reduce_only(edit: Edit) -> None:
    """Nor is all-reduce a part of gossip."""
    assert affected(edit, TOGETHER, "POOLED_IMAGES = 4096", "POOLED_IMAGES = 2048") == {"allreduce"}


@pytest.mark.parametrize(
    "module",
    [
        "unlocked.optim",
        "unlocked.seeding",
        "unlocked.loop",
        "unlocked.gossip.workers",
        "unlocked.vision.models",
        "unlocked.vision.data",
        "unlocked.vision.partition",
        "unlocked.vision.evaluate",
    ],
)
def test_editing_what_both_use_retrains_both(edit: Edit, module: str) -> None:
    """Optimiser, seeds, loop, data and models are part of every training."""
    assert {"virtual", "allreduce"} <= affected(edit, module, "import annotations", "import annotations  # edited")


@pytest.mark.parametrize("module", ["unlocked.gossip.topology", "unlocked.gossip.schedule"])
def test_editing_theory_retrains_gossip_and_redraws_its_figures(edit: Edit, module: str) -> None:
    """Graphs and schedules are used by the engine and by the figures that show them."""
    found = affected(edit, module, "import annotations", "import annotations  # edited")
    assert "virtual" in found
    assert "figure_2" in found
    assert not {"allreduce", "table_4"} & found - {"table_4"}


@pytest.mark.parametrize("module", sorted(fingerprint.INFRASTRUCTURE - {"unlocked"}))
def test_infrastructure_is_left_out(edit: Edit, module: str) -> None:
    """Editing how settings are read or results are written retrains nothing."""
    assert not {"virtual", "allreduce"} & affected(edit, module, "import annotations", "import annotations  # edited")


@pytest.mark.parametrize("module", ["unlocked.cli", "unlocked.workflow", "unlocked.plan", "unlocked.items.build"])
def test_the_rest_of_the_road_retrains_nothing(edit: Edit, module: str) -> None:
    """The command line and the plan compute nothing."""
    assert affected(edit, module, "import annotations", "import annotations  # edited") == set()


def test_changing_the_budget_retrains(edit: Edit) -> None:
    """How many gradients a run does is part of its code, wherever it stands."""
    found = affected(
        edit, "unlocked.budget", "// run.optim.batch_size)) // workers * workers", "// 7)) // workers * workers"
    )
    assert {"virtual", "allreduce"} <= found


def test_modules_of_the_engines() -> None:
    """No engine reaches into the other paper, the items, or the plan."""
    for engine in (GOSSIP, TOGETHER):
        reached = fingerprint.modules(engine)
        assert engine in reached
        assert not [m for m in reached if m.split(".")[1] in ("forward_gradient", "items", "plan", "cli", "workflow")]


def test_digest_separates_its_parts() -> None:
    """Moving text from one part to the next changes the digest."""
    assert fingerprint.digest("ab", "c") != fingerprint.digest("a", "bc")
