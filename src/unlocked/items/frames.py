"""Finished runs as two tidy tables, read once; items select, group and average, and pandas does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Frames:
    """Runs, one row each, and their histories, one row per measured number.

    runs: the index is the run's id; columns are settings by dotted name (missing where a kind of run does not have
    one), final metrics by name, `counts.<name>`, `diverged`, and what the run took and was made of. history: columns
    run, step, epoch, virtual_time, wall_time, metric, index (worker or block, -1 where a metric has none), value.
    """

    runs: pd.DataFrame
    history: pd.DataFrame

    def select(self, **settings: Any) -> Frames:
        """Runs with these settings, dots as double underscores: one value, or a list of which any will do.

        None is the value of runs that do not have the setting.
        """
        chosen = pd.Series(True, index=self.runs.index)
        for key, value in settings.items():
            column = self.column(key.replace("__", "."))
            allowed = value if isinstance(value, (list, tuple)) else [value]
            present = [one for one in allowed if one is not None]
            chosen &= column.isin(present) | (column.isna() & (None in allowed))
        return self.where(chosen)

    def where(self, chosen: pd.Series) -> Frames:
        """The runs that a truth value by run chooses."""
        runs = self.runs[chosen]
        return Frames(runs, self.history[self.history["run"].isin(runs.index)])

    def column(self, name: str) -> pd.Series:
        """A column of the runs; missing throughout if no run has it."""
        return self.runs[name] if name in self.runs else pd.Series(None, index=self.runs.index, dtype=object)

    def values(self, name: str) -> list[Any]:
        """The values that a column takes, in order."""
        return sorted(self.column(name).dropna().unique().tolist())

    @property
    def diverged(self) -> list[str]:
        """The runs that did."""
        return self.runs.index[self.column("diverged").eq(True)].tolist()

    @property
    def completed(self) -> Frames:
        """The runs that did not diverge."""
        return self.where(~self.column("diverged").astype(bool))

    def assign(self, **columns: Any) -> Frames:
        """With more columns of the runs: series by run, or one value for all."""
        return dataclasses.replace(self, runs=self.runs.assign(**columns))

    def labelled(self, cases: Mapping[str, Mapping[str, Any]]) -> Frames:
        """The runs of each case one after the other, its name in the column `row`.

        Cases are settings for `select`, and share no run.
        """
        runs = [self.select(**case).runs.assign(row=row) for row, case in cases.items()]
        return Frames(pd.concat(runs), self.history)

    def summary(self, by: Sequence[str], *metrics: str, **columns: str) -> pd.DataFrame:
        """Groups of runs in the order of their first: mean and `<name>_deviation` (0 of a single run) of columns over
        the runs that did not diverge, the number of these as `runs`, that of the others as `diverged`."""
        lost, columns = self.runs["diverged"], {name: name for name in metrics} | columns
        kept = {name: self.column(column).mask(lost).astype(float) for name, column in columns.items()}
        groups = self.runs[list(by)].assign(**kept, runs=~lost, diverged=lost)
        wanted = {name + end: (name, how) for name in columns for end, how in (("", "mean"), ("_deviation", "std"))}
        wanted |= {"runs": ("runs", "sum"), "diverged": ("diverged", "sum")}
        table = groups.groupby(list(by), dropna=False, sort=False).agg(**wanted).reset_index()
        return table.fillna({f"{name}_deviation": 0.0 for name in columns})

    def rows(self, metric: str) -> pd.DataFrame:
        """The history of one metric of all runs, without that of single workers or blocks."""
        return self.history[(self.history["metric"] == metric) & (self.history["index"] == -1)]

    def parts(self, *names: str) -> pd.DataFrame:
        """The history, its metrics' names `a/b/c` split into columns of these names as well."""
        return self.history.join(self.history["metric"].str.split("/", expand=True).set_axis(list(names), axis=1))

    def curve(self, metric: str, by: Sequence[str], x: str = "epoch") -> pd.DataFrame:
        """A metric over time for every group of runs: columns metric, `by`, step, x (mean over the runs), mean, low,
        high (their range), runs. `index` may be among `by`."""
        rows = self.history[self.history["metric"] == metric]
        rows = rows.join(self.runs[[name for name in by if name != "index"]], on="run")
        groups = rows.groupby(["metric", *by, "step"], dropna=False, sort=False)
        value = {x: (x, "mean"), "mean": ("value", "mean"), "low": ("value", "min"), "high": ("value", "max")}
        return groups.agg(**value, runs=("value", "count")).reset_index()

    def last(self, metric: str) -> pd.DataFrame:
        """The last value of a metric by run (rows) and index (columns: worker or block)."""
        rows = self.history[self.history["metric"] == metric].sort_values("step", kind="stable")
        last = rows.groupby(["run", "index"])["value"].last().unstack("index")
        return last.reindex(self.runs.index).dropna(how="all")

    def by_index(self, metric: str) -> pd.DataFrame:
        """Last values of a metric by index: mean, low and high over the runs that did not diverge."""
        values = self.completed.last(metric)
        return pd.DataFrame({"mean": values.mean(), "low": values.min(), "high": values.max()})
