"""Published values: refused without a source, shown beside ours where they are checked, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from unlocked.artifact import published, workflow
from unlocked.artifact.plan import Plan
from unlocked.errors import DataError
from unlocked.items import latex
from unlocked.items.table import Table
from unlocked.papers import PAPERS

GOOD = 'table_4,AR-SGD,n = 4,94.50,0.1,"a paper, Table 4",2024-05-01'
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Replace paper A's published values by the header and these lines."""
    monkeypatch.setattr(published, "FOLDER", tmp_path)
    header = ",".join(published.COLUMNS)
    return lambda *lines: (tmp_path / "acid.csv").write_text("\n".join([header, *lines, ""]))


@pytest.mark.parametrize("paper", PAPERS)
def test_the_files_of_the_project_can_be_read(paper: str) -> None:
    assert (published.FOLDER / f"{paper}.csv").is_file()
    assert all(value["source"] for value in published.of_paper(paper))
    assert published.of_paper("claims") == []


BAD = {
    "without a source": ("table_4,AR-SGD,n = 4,94.5,0.1,  ,yes", ["94.5 has no source"]),
    "of no item": ("table_44,AR-SGD,n = 4,94.5,0.1,p. 7,yes", ["table_44", "table_4"]),
    "that is no number": ("table_4,AR-SGD,n = 4,high,0.1,p. 7,yes", ["high"]),
    "that is empty": ("table_4,AR-SGD,n = 4,,0.1,p. 7,yes", ["float"]),
    "with a bad deviation": ("table_4,AR-SGD,n = 4,94.5,small,p. 7,yes", ["small"]),
    "nobody knows whether checked": ("table_4,AR-SGD,n = 4,94.5,0.1,p. 7,", ["isoformat"]),
    "checked on no date": ("table_4,AR-SGD,n = 4,94.5,0.1,p. 7,2024-13-01", ["month"]),
    "with a cell too few": ("table_4,AR-SGD,n = 4,94.5,0.1,p. 7", ["columns item,row"]),
    "with a cell too many": ("table_4,AR-SGD,n = 4,94.5,0.1,p. 7,yes,really", ["columns item,row"]),
}


@pytest.mark.parametrize(("line", "words"), BAD.values(), ids=BAD)
def test_a_value_that_cannot_stand_is_refused(write: Write, line: str, words: list[str]) -> None:
    """One line with the file, the line and what is wrong; the workflow stops with it before any training."""
    write(GOOD, line)
    with pytest.raises(DataError) as caught:
        published.of_paper("acid")
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in ["acid.csv, line 3", *words])
    with pytest.raises(SystemExit, match=r"^unlocked: .*acid.csv, line 3"):
        workflow.Setup.read_or_exit({})


TABLE = Table(
    ("accuracy", "n = 4", "n = 16"),
    (("AR-SGD", "90", "91"), ("A²CiD², ring", "92", "93")),
    (False, True, True),
    ("Ours.",),
)


def test_published_values_stand_beside_ours(write: Write) -> None:
    """A column after ours where there is a value, a dash where there is none, no column where there are none at all;
    what nobody checked, and what this scale leaves out, is counted and not shown."""
    write("table_5,AR-SGD,n = 16,70,,p. 9,yes")
    assert published.beside(TABLE, published.of_item("acid", "table_4")) == TABLE
    unchecked, absent = "table_4,AR-SGD,n = 16,94.5,,p. 7,no", "table_4,AR-SGD,n = 64,94.1,,p. 7,yes"
    write(GOOD, "table_5,AR-SGD,n = 16,70,,p. 9,yes", unchecked, absent)
    shown = published.beside(TABLE, published.of_item("acid", "table_4"))
    assert shown.columns == ("accuracy", "n = 4", "n = 4, published", "n = 16")
    assert shown.numeric == (False, True, True, True)
    assert [row[2] for row in shown.rows] == ["94.50 ± 0.1", "–"]
    assert [(row[0], row[1], row[3]) for row in shown.rows] == list(TABLE.rows)
    assert shown.notes[:2] == ("Ours.", "Published, in the paper's setting: a paper, Table 4.")
    assert shown.notes[2].endswith("without a cell here: 2.")
    assert r"94.50 $\pm$ 0.1" in latex.render(shown, "caption", "x")


def test_editing_a_value_redraws_its_table_alone(write: Write) -> None:
    plan = Plan("quick", only=["acid_table_4", "acid_table_5", "acid_figure_3"])

    def codes() -> dict[str, str]:
        return {name: workflow.item_code(item) for name, item in plan.items.items()}

    write()
    before = codes()
    write(GOOD)
    after = codes()
    assert {name for name in before if before[name] != after[name]} == {"acid_table_4"}
