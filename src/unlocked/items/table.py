"""Tables: numbers with formats. What is printed is made from the numbers once, and every rendering shows that."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

NONE = "–"
COLUMNS = 7  # from which a table with fewer rows is turned
Row = Mapping[str, Any]  # of a frame of numbers
Format = Callable[[Row], str]  # how a cell is printed; `"{n} of {m}".format_map` is one


def number(key: str, spec: str = ".2f", scale: float = 1.0) -> Format:
    """A column's number times `scale`; a dash where there is none."""
    return lambda row: NONE if pd.isna(row[key]) else f"{scale * row[key]:{spec}}"


def mean_deviation(key: str, spec: str = ".1f", scale: float = 100.0, spread: str = "", beside: str = "") -> Format:
    """`97.2 ± 0.3 (95.1) (1 diverged)`, by default in percent, from the columns of `Frames.summary`.

    The deviation, printed as `spread` says, is left out where there is one run. The column `beside` is shown in
    brackets. A dash: no run, or all diverged.
    """

    def printed(row: Row) -> str:
        text = number(key, spec, scale)(row)
        if text != NONE:
            text += f" ± {scale * row[f'{key}_deviation']:{spread or spec}}" * (row["runs"] > 1)
            text += f" ({number(beside, spec, scale)(row)})" if beside else ""
        return text + (f" ({row['diverged']:.0f} diverged)" if row["diverged"] > 0 else "")

    return printed


@dataclass(frozen=True)
class Table:
    """A table as printed, and the numbers that it was made of. Row labels are the first column."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]  # by column: aligned to the right
    notes: tuple[str, ...] = ()
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)

    @staticmethod
    def of_texts(texts: pd.DataFrame, **more: Any) -> Table:
        """A table of words. more: other fields of the table."""
        rows = tuple(tuple(map(str, row)) for row in texts.itertuples(index=False))
        return Table(tuple(texts), rows, **{"numeric": (False,) * len(texts.columns), "numbers": texts, **more})

    def markdown(self) -> str:
        """The table and its notes; a bar in a cell is escaped."""
        align = ["right" if numeric else "left" for numeric in self.numeric]
        cells = [[cell.replace("|", r"\|") for cell in row] for row in self.rows]
        body = pd.DataFrame(cells, columns=self.columns).to_markdown(index=False, disable_numparse=True, colalign=align)
        return "\n\n".join([body, *self.notes])

    def narrow(self) -> Table:
        """The same cells, rows as columns where there are many columns and fewer rows, so that it fits a page."""
        if len(self.columns) <= max(COLUMNS, len(self.rows)):
            return self
        heads, *turned = zip(self.columns, *self.rows, strict=True)
        return replace(self, columns=heads, rows=tuple(turned), numeric=(False,) * len(heads))

    def to_json(self) -> dict[str, Any]:
        """Plain values: everything but the numbers, which stand in the CSV file."""
        return {key: value for key, value in vars(self).items() if key != "numbers"}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Table:
        """The inverse of `to_json`, without numbers."""
        own = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return Table(**own | {"rows": tuple(map(tuple, values["rows"]))})


def tabulate(
    shown: pd.DataFrame, row: str, cells: Mapping[str, Format], *, corner: str, notes: Sequence[str] = (),
    numbers: pd.DataFrame | None = None,
) -> Table:  # fmt: skip
    """A table from a frame of numbers: every row of it gives cells, rows and columns in the order in which they come.

    row, and the keys of `cells`: templates of labels and headers, e.g. `n = {workers}`. A place that gets no text has a
    dash. numbers: what the CSV file holds, if not `shown`.
    """
    printed: dict[str, dict[str, str]] = {}
    for record in shown.to_dict("records"):
        own = printed.setdefault(row.format_map(record), {})
        for header, cell in cells.items():
            if text := cell(record):
                own[header.format_map(record)] = text
    texts = pd.DataFrame(list(printed.values()), index=pd.Index(printed, name=corner)).fillna(NONE)
    numeric = [all(re.match(rf"{NONE}|-?\d", text) for text in texts[name]) for name in texts]
    return Table.of_texts(
        texts.reset_index(), numeric=(False, *numeric), notes=tuple(notes),
        numbers=shown if numbers is None else numbers,
    )  # fmt: skip
