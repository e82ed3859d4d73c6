"""Values that the papers printed, beside ours: `configs/published/<paper>.csv`, read, checked and put into tables.

On the road beside the items. A row is one value: the item's id, the row and the column of our table as printed, the
value and its deviation as the paper prints them, the source (paper, table, page), and whether somebody checked it
there: `no`, `yes`, or the date on which. A value without a source is refused; one that was not checked is not shown.
"""

from __future__ import annotations

import csv
import datetime
import math
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from unlocked import config, fingerprint
from unlocked.errors import DataError
from unlocked.items.output import Table

FOLDER = config.CONFIGS / "published"
COLUMNS = ("item", "row", "column", "value", "deviation", "source", "checked")
SUFFIX = ", published"


@dataclass(frozen=True)
class Value:
    """One published value."""

    item: str  # id of the item within its paper, e.g. table_4
    row: str  # as printed in our table
    column: str
    value: float
    deviation: float | None
    source: str
    checked: bool

    @property
    def printed(self) -> str:
        """`94.2 ± 0.3`."""
        return f"{self.value:g}" + (f" ± {self.deviation:g}" if self.deviation is not None else "")


def of_paper(paper: str, folder: Path | None = None) -> list[Value]:
    """All values of a paper, checked; none where it has no file (the claims have none)."""
    path = (folder or FOLDER) / f"{paper}.csv"
    if not path.is_file():
        return []
    known = [str(key) for key in config.read(config.CONFIGS / paper / "items.yaml")]
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}")
        found = [read_row(row, known, f"{path}, line {reader.line_num}") for row in reader]
    places = [(value.item, value.row, value.column) for value in found]
    if twice := next((place for place in places if places.count(place) > 1), None):
        raise DataError(f"{path}: two values for {' / '.join(twice)}")
    return found


def read_row(row: dict[str, str | None], known: list[str], where: str) -> Value:
    """One line of a file; `DataError` that names file and line if it cannot stand."""
    if None in row or None in row.values():
        raise DataError(f"{where}: must have the {len(COLUMNS)} values {','.join(COLUMNS)}")
    cells = {key: str(value).strip() for key, value in row.items()}
    if not cells["source"]:
        raise DataError(f"{where}: the value {cells['value']} has no source")
    if cells["item"] not in known:
        raise DataError(f"{where}: item {cells['item']!r} is none of {', '.join(known)}")
    for key in ("row", "column"):
        if not cells[key]:
            raise DataError(f"{where}: {key} is empty")
    return Value(
        cells["item"], cells["row"], cells["column"], number(cells["value"], f"{where}: value"),
        number(cells["deviation"], f"{where}: deviation") if cells["deviation"] else None,
        cells["source"], was_checked(cells["checked"], where),
    )  # fmt: skip


def number(text: str, where: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where} {text!r} is not a number")
    return value


def was_checked(text: str, where: str) -> bool:
    """`yes` or a date: true; `no`: false."""
    if text in ("yes", "no"):
        return text == "yes"
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        raise DataError(f"{where}: checked = {text!r} must be yes, no, or the date of the check (YYYY-MM-DD)") from None
    return True


def of_item(paper: str, item: str, folder: Path | None = None) -> list[Value]:
    """The values that belong to an item."""
    return [value for value in of_paper(paper, folder) if value.item == item]


def digest(paper: str, item: str) -> str:
    """Fingerprint of an item's published values."""
    return fingerprint.digest(*map(repr, of_item(paper, item)))


def beside(table: Table, values: list[Value]) -> Table:
    """The table with a column of published values after each of its columns that has one, and notes about them.

    Only the printed table changes; our numbers stay ours. Without a checked value the table is returned as it is.
    """
    rows, columns = ([str(label) for label in axis] for axis in (table.printed.index, table.printed.columns))
    checked = [value for value in values if value.checked]
    shown = {(v.row, v.column): v for v in checked if rows.count(v.row) == 1 and v.column in columns}
    if not values:
        return table
    printed = {}
    for column, cells in zip(columns, table.printed.to_numpy().T, strict=True):
        printed[column] = list(cells)
        if any(place[1] == column for place in shown):
            printed[column + SUFFIX] = [shown[row, column].printed if (row, column) in shown else "–" for row in rows]
    frame = pd.DataFrame(printed, index=table.printed.index)
    found = (*table.notes, *notes(values, checked, list(shown.values())))
    return replace(table, printed=frame, notes=found, columns=None if shown else table.columns)


def notes(values: list[Value], checked: list[Value], shown: list[Value]) -> list[str]:
    """Where the published values come from, and what is not shown and why."""
    found = []
    if shown:
        found.append(f"Published, in the paper's setting: {'; '.join(dict.fromkeys(v.source for v in shown))}.")
    if absent := [f"{v.row} / {v.column}" for v in checked if v not in shown]:
        found.append(f"Published values without a cell in this table: {', '.join(absent)}.")
    if unchecked := len(values) - len(checked):
        found.append(f"Published values not shown because nobody checked them against their source: {unchecked}.")
    return found
