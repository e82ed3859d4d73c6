"""Published values: refused without a source, shown beside ours where they are checked, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from unlocked import config, published, workflow
from unlocked.errors import DataError
from unlocked.items import acid
from unlocked.items.output import Context, Table, latex, markdown
from unlocked.plan import Plan
from unlocked.record import Record

HEADER = "item,row,column,value,deviation,source,checked"
GOOD = 'table_4,AR-SGD,n = 4,94.5,0.1,"a paper, Table 4",2024-05-01'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A folder with paper A's published values, the header and these lines."""

    def make(*lines: str, header: str = HEADER) -> Path:
        (tmp_path / "acid.csv").write_text("\n".join([header, *lines, ""]))
        return tmp_path

    return make


@pytest.mark.parametrize("paper", config.RUNS)
def test_the_files_of_the_project_can_be_read(paper: str) -> None:
    """Every paper has one, and what is in it stands."""
    assert (published.FOLDER / f"{paper}.csv").is_file()
    assert all(value.source for value in published.of_paper(paper))


def test_values_are_read(write: Write) -> None:
    """Numbers, the source, and whether it was checked; by item."""
    folder = write(GOOD, "table_4,AR-SGD,n = 8,94,,p. 7,no", "table_5,AR-SGD,n = 16,75.5,,p. 8,yes")
    first, second, third = published.of_paper("acid", folder)
    assert (first.value, first.deviation, first.source, first.checked) == (94.5, 0.1, "a paper, Table 4", True)
    assert (first.printed, second.printed) == ("94.5 ± 0.1", "94")
    assert (second.checked, third.checked) == (False, True)
    assert published.of_item("acid", "table_5", folder) == [third]
    assert published.of_paper("claims", folder) == []


BAD = {
    "without a source": ("table_4,AR-SGD,n = 4,94.5,0.1,,yes", ["line 3", "94.5", "no source"]),
    "with a blank source": ("table_4,AR-SGD,n = 4,94.5,0.1,  ,yes", ["line 3", "no source"]),
    "of no item": ("table_44,AR-SGD,n = 4,94.5,0.1,p. 7,yes", ["line 3", "table_44", "table_4"]),
    "that is no number": ("table_4,AR-SGD,n = 4,high,0.1,p. 7,yes", ["line 3", "value", "high"]),
    "that is empty": ("table_4,AR-SGD,n = 4,,0.1,p. 7,yes", ["line 3", "value"]),
    "that is not finite": ("table_4,AR-SGD,n = 4,nan,,p. 7,yes", ["line 3", "nan"]),
    "with a bad deviation": ("table_4,AR-SGD,n = 4,94.5,small,p. 7,yes", ["line 3", "deviation", "small"]),
    "nobody knows whether checked": ("table_4,AR-SGD,n = 4,94.5,0.1,p. 7,", ["line 3", "checked", "yes, no"]),
    "checked on no date": ("table_4,AR-SGD,n = 4,94.5,0.1,p. 7,2024-13-01", ["line 3", "2024-13-01"]),
    "without a row": ("table_4,,n = 4,94.5,0.1,p. 7,yes", ["line 3", "row is empty"]),
    "with a cell too few": ("table_4,AR-SGD,n = 4,94.5,0.1,p. 7", ["line 3", "7 values"]),
    "with a cell too many": ("table_4,AR-SGD,n = 4,94.5,0.1,p. 7,yes,really", ["line 3", "7 values"]),
    "given twice": ('table_4,AR-SGD,n = 4,95,,"p. 9",yes', ["two values", "AR-SGD / n = 4"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_value_that_cannot_stand_is_refused(write: Write, case: str) -> None:
    """One line with the file, the line and what is wrong."""
    line, words = BAD[case]
    with pytest.raises(DataError) as caught:
        published.of_paper("acid", write(GOOD, line))
    text = str(caught.value)
    assert "\n" not in text
    assert all(word in text for word in ["acid.csv", *words]), text


def test_other_columns_are_refused(write: Write) -> None:
    """The header says what a file is."""
    with pytest.raises(DataError, match=r"acid.csv, line 1: the columns must be item,row"):
        published.of_paper("acid", write(header=HEADER.replace("source", "origin")))


# beside ours


@pytest.fixture(scope="module")
def table() -> Table:
    """Table 4 as its item makes it, from two synthetic seeds with 4 and 16 workers."""
    plan = Plan("quick", ["acid.workers=[4,16]"], only=["acid_table_4"])
    records = [
        Record(Path(name), plan.runs[name], pd.DataFrame(), {"status": "completed", "metrics": {"test_accuracy": 0.9}})
        for name in plan.item("acid_table_4").runs
    ]
    return acid.table_4(Context("acid", "table_4", "quick", "t", "c", records, {"workers": [4, 16]}))


def test_nothing_published_changes_nothing(write: Write, table: Table) -> None:
    """No empty column and no note."""
    assert published.beside(table, published.of_item("acid", "table_4", write())) is table


def test_published_values_stand_beside_ours(write: Write, table: Table) -> None:
    """A column after ours where there is a value, a dash where there is none, no column where there are none at all."""
    folder = write(GOOD, 'table_4,"A²CiD², ring",n = 4,95.17,,p. 8,yes', "table_5,AR-SGD,n = 16,70,,p. 9,yes")
    shown = published.beside(table, published.of_item("acid", "table_4", folder))
    assert list(shown.printed) == ["n = 4", "n = 4, published", "n = 16"]
    column = shown.printed["n = 4, published"]
    assert (column["AR-SGD"], column["A²CiD², ring"]) == ("94.5 ± 0.1", "95.17")
    assert set(column.drop(["AR-SGD", "A²CiD², ring"])) == {"–"}
    pd.testing.assert_frame_equal(shown.printed[["n = 4", "n = 16"]], table.printed)
    pd.testing.assert_frame_equal(shown.numbers, table.numbers)
    assert shown.notes[-1] == "Published, in the paper's setting: a paper, Table 4; p. 8."
    assert "| n = 4, published" in markdown(shown, "t", "c", "f")
    text = latex(shown, "t", "c", "f")
    assert r"94.5 $\pm$ 0.1" in text
    assert "a paper, Table 4" in text.partition(r"\end{tabular}")[2]


def test_unchecked_values_and_absent_cells_are_named_not_shown(write: Write, table: Table) -> None:
    """What nobody checked is counted; what this scale leaves out is listed."""
    folder = write("table_4,AR-SGD,n = 4,94.5,,p. 7,no", "table_4,AR-SGD,n = 64,94.1,,p. 7,yes")
    shown = published.beside(table, published.of_item("acid", "table_4", folder))
    pd.testing.assert_frame_equal(shown.printed, table.printed)
    assert shown.notes[-2:] == (
        "Published values without a cell in this table: AR-SGD / n = 64.",
        "Published values not shown because nobody checked them against their source: 1.",
    )


def test_editing_a_value_redraws_its_table_alone(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint of an item follows its own published values."""
    plan = Plan("quick", only=["acid_table_4", "acid_table_5", "acid_figure_3"])

    def codes() -> dict[str, str]:
        return {name: workflow.item_code(item) for name, item in plan.items.items()}

    monkeypatch.setattr(published, "FOLDER", write())
    before = codes()
    write(GOOD)
    after = codes()
    assert {name for name in before if before[name] != after[name]} == {"acid_table_4"}


def test_a_bad_value_stops_the_workflow_at_its_start(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, before any training."""
    monkeypatch.setattr(published, "FOLDER", write(BAD["without a source"][0]))
    with pytest.raises(SystemExit, match=r"^unlocked: .*acid.csv, line 2: the value 94.5 has no source$"):
        workflow.Setup.read_or_exit({})
