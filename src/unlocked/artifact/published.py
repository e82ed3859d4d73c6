"""Values that the papers printed, beside ours: `configs/published/<paper>.csv`.

A row is one value: the item's id, the row and the column of our table as printed, the value and its deviation as the
paper prints them, the source (paper, table, page), and whether somebody checked it there: `no`, `yes`, or the date on
which. A value without a source is refused; one that was not checked is not shown.
"""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unlocked import fingerprint
from unlocked.artifact.config import CONFIGS, read_yaml
from unlocked.errors import DataError, choose

if TYPE_CHECKING:  # it needs pandas, and the workflow comes past here at every start
    from unlocked.items.table import Table

FOLDER = CONFIGS / "published"
COLUMNS = ("item", "row", "column", "value", "deviation", "source", "checked")
Value = dict[str, str]  # by column


def of_paper(paper: str) -> list[Value]:
    """All values of a paper; none where it has no file. `DataError` with file and line on one that cannot stand."""
    path = FOLDER / f"{paper}.csv"
    if not path.is_file():
        return []
    items = read_yaml(CONFIGS / paper / "items.yaml")
    with open(path, newline="") as file:
        lines = csv.DictReader(file)
        try:
            return [checked(line, items) for line in lines]
        except ValueError as error:  # so is a SettingError
            raise DataError(f"{path}, line {lines.line_num}: {error}") from None


def checked(line: Value, items: Iterable[str]) -> Value:
    """A line that can stand; `ValueError` with what is wrong."""
    if tuple(line) != COLUMNS or None in line.values():
        raise ValueError(f"must have the columns {','.join(COLUMNS)}")
    if not line["source"].strip():
        raise ValueError(f"the value {line['value']} has no source")
    choose("item", line["item"], items)
    for text in (line["value"], line["deviation"] or "0"):
        float(text)  # a ValueError if it is no number
    if line["checked"] not in ("yes", "no"):
        datetime.date.fromisoformat(line["checked"])
    return line


def of_item(paper: str, item: str) -> list[Value]:
    """The values that belong to an item."""
    return [value for value in of_paper(paper) if value["item"] == item]


def digest(paper: str, item: str) -> str:
    """Fingerprint of an item's published values."""
    return fingerprint.digest(*map(repr, of_item(paper, item)))


def beside(table: Table, values: Sequence[Value]) -> Table:
    """The table with a column of published values after each of its columns that has one, and notes about them."""
    known = {(value["row"], value["column"]): value for value in values if value["checked"] != "no"}
    columns, shown = [], []
    for name, numeric, cells in zip(table.columns, table.numeric, zip(*table.rows, strict=True), strict=True):
        columns.append((name, numeric, cells))
        theirs = [known.get((row[0], name)) for row in table.rows]
        if any(theirs):
            printed = [" ± ".join(filter(None, (v["value"], v["deviation"]))) if v else "–" for v in theirs]
            columns.append((f"{name}, published", True, tuple(printed)))
            shown += list(filter(None, theirs))
    names, numeric, cells = zip(*columns, strict=True)
    notes = list(table.notes)
    if shown:
        sources = "; ".join(dict.fromkeys(value["source"] for value in shown))
        notes.append(f"Published, in the paper's setting: {sources}.")
    if hidden := len(values) - len(shown):
        notes.append(f"Published values not shown, not checked against their source or without a cell here: {hidden}.")
    return replace(
        table, columns=names, numeric=numeric, rows=tuple(zip(*cells, strict=True)), notes=tuple(notes),
    )  # fmt: skip
