"""Frames, measures and tables by hand: selection, groups, single numbers of a run, how cells are printed."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from unlocked.gossip.schedule import Schedule
from unlocked.items import latex, measures, style
from unlocked.items.context import Context, facts
from unlocked.items.frames import Frames
from unlocked.items.table import Table, mean_deviation, number, tabulate
from unlocked.papers.acid.tables import between_gradients

COLUMNS = ["run", "step", "epoch", "virtual_time", "wall_time", "metric", "index", "value"]


def frames(values: dict[str, list[float]], metric: str = "consensus_distance", index: int = -1, **runs: list) -> Frames:
    """Runs whose metric takes these values at steps 0, 10, 20, ...; other columns of theirs."""
    rows = [
        (run, 10 * k, float(k), float(k), 0.0, metric, index, value)
        for run, own in values.items()
        for k, value in enumerate(own)
    ]
    columns = {"study": ["training"] * len(values), "diverged": [False] * len(values)} | runs
    return Frames(pd.DataFrame(columns, index=list(values)), pd.DataFrame(rows, columns=COLUMNS))


SOME = frames(
    {"a": [4.0, 2.0], "b": [6.0, 4.0], "c": [1.0, 9.0]},
    **{"rate": [1.0, 2.0, None], "optim.lr": [0.1, 0.1, 0.2], "diverged": [False, False, True], "y": [1.0, 3.0, 8.0]},
)


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"rate": 1}, "a"),
        ({"rate": [1.0, 2.0]}, "ab"),
        ({"rate": None}, "c"),
        ({"rate": [1.0, None]}, "ac"),
        ({"optim__lr": 0.1, "rate": 2.0}, "b"),
        ({"graph": "ring"}, ""),
        ({"graph": None}, "abc"),
    ],
)
def test_select(settings: dict, chosen: str) -> None:
    """Double underscores reach nested settings, a list means any of, None runs without it; histories go along."""
    own = SOME.select(**settings)
    assert list(own.runs.index) == list(chosen)
    assert set(own.history["run"]) == set(chosen)


def test_groups_leave_out_what_diverged() -> None:
    """Mean and sample deviation (0 for a single value), in the order of the first run; lost runs are counted."""
    both = SOME.summary(["optim.lr"], mean="y").set_index("optim.lr")
    assert both.loc[0.1].tolist() == pytest.approx([2.0, 2**0.5, 2, 0])
    assert np.isnan(both.loc[0.2, "mean"])
    assert both.loc[0.2].tolist()[1:] == [0, 0, 1]
    rows = SOME.labelled({"two": {"rate": 2.0}, "one": {"rate": 1.0}}).summary(["row"], "y")
    assert rows[["row", "y", "y_deviation", "runs"]].to_numpy().tolist() == [["two", 3, 0, 1], ["one", 1, 0, 1]]


def test_a_curve_leaves_out_what_diverged() -> None:
    """And says so in its label, also where nothing is left."""
    some = frames(
        {"a": [4.0, 2.0], "b": [6.0, 9.0], "c": [1.0, 7.0]}, rate=[1.0, 1.0, 2.0], diverged=[False, True, True]
    )
    _, ax = style.new(1, 1)
    drawn = style.draw(some, [(ax, "consensus_distance", "epoch")], ["rate"], lambda rate: {"label": f"{rate:g}"})
    assert ax.get_legend_handles_labels()[1] == ["1 (1 of 2 diverged)", "2 (1 of 1 diverged)"]
    assert drawn[["mean", "low", "high", "runs"]].to_numpy().tolist() == [[2, 2, 2, 1]]


def test_curves_and_last_values() -> None:
    """The mean over runs at every step with their range; the last value by index; names in parts."""
    curve = SOME.curve("consensus_distance", ["optim.lr"]).query("`optim.lr` == 0.1").drop(columns="optim.lr")
    assert curve.to_dict("list") == {
        "metric": ["consensus_distance"] * 2, "step": [0, 10], "epoch": [0, 1], "mean": [5, 3], "low": [4, 2],
        "high": [6, 4], "runs": [2, 2],
    }  # fmt: skip
    assert SOME.curve("nothing", ["rate"]).empty
    assert SOME.by_index("consensus_distance").loc[-1].tolist() == [3, 2, 4]
    assert frames({"a": [1.0]}, "x/y").parts("left", "right")[["left", "right"]].iloc[0].tolist() == ["x", "y"]


def test_a_training_counts_whole_but_for_its_start_and_a_study_when_it_has_settled() -> None:
    """All evaluations after the start have the same weight; of a study its second half, steps 20 to 40."""
    values = [100.0, 8.0, 4.0, 2.0, 3.0]
    both = frames({"training": values, "study": values}, study=["training", "quadratic"])
    assert measures.consensus(both).tolist() == pytest.approx([17 / 4, 3])
    still = Frames(both.runs, both.history.assign(step=0))  # averaging has no gradients: time counts
    for settled in (both, still):
        assert measures.settled(settled, "consensus_distance").tolist() == pytest.approx([3, 3])


def test_every_index_has_the_same_weight() -> None:
    blocks = [frames({"a": [9.0, *last]}, "cosine", index) for index, last in enumerate([(1.0, 3.0), (2.0, 12.0)])]
    both = Frames(blocks[0].runs, pd.concat([block.history for block in blocks]))
    assert measures.settled(both, "cosine").item() == pytest.approx((2 + 7) / 2)
    assert measures.geometric_mean(both, "cosine").item() == pytest.approx(6)


def test_time_to_a_loss_and_exponents() -> None:
    """Between two evaluations on a straight line; at the start; never. The exponent of a power law is its power."""
    runs = frames({"between": [4.0, 2.0, 1.0], "start": [1.0, 1.0, 0.5], "never": [5.0, 4.0, 3.5]}, "train_loss")
    assert measures.time_to(runs, 3.0).tolist() == [0.5, 0, np.inf]
    assert measures.lowest(runs).tolist() == [1, 0.5, 3.5]
    assert measures.exponent([16, 64, 256], [3 * n**1.7 for n in (16, 64, 256)]) == pytest.approx(1.7)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"x": 0.91, "x_deviation": 0.0141, "runs": 2, "diverged": 0, "y": 0.5}, "91.0 ± 1.4 (50.0)"),
        ({"x": 0.5, "x_deviation": 0.0, "runs": 1, "diverged": 1, "y": 1.0}, "50.0 (100.0) (1 diverged)"),
        ({"x": None, "x_deviation": 0.0, "runs": 0, "diverged": 2, "y": None}, "– (2 diverged)"),
        ({"x": None, "x_deviation": None, "runs": 0, "diverged": 0, "y": None}, "–"),
    ],
)
def test_mean_and_deviation(row: dict, text: str) -> None:
    """In percent; a single value without deviation; nothing as a dash; what diverged is said."""
    assert mean_deviation("x", beside="y")(row) == text


TABLE = tabulate(
    pd.DataFrame({"n": [4, 16, 4], "name": ["a_b", "a_b", "χ₁"], "x": [0.5, None, 2.0], "word": ["u", "v", ""]}),
    "{name}", {"n = {n}": number("x"), "word": "{word}".format_map}, corner="50 %", notes=["≥ 1."],
)  # fmt: skip


def test_cells_stand_where_their_numbers_say() -> None:
    """Rows and columns in the order in which they come; a dash where there is no number or no text."""
    assert TABLE.columns == ("50 %", "n = 4", "word", "n = 16")
    assert TABLE.rows == (("a_b", "0.50", "v", "–"), ("χ₁", "2.00", "–", "–"))
    assert TABLE.numeric == (False, True, False, True)


def test_renderings_show_the_same_cells() -> None:
    """Markdown, where a bar is escaped, LaTeX and JSON of one object; a table read back is the table."""
    lines = TABLE.markdown().splitlines()
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == list(TABLE.rows[0])
    assert lines[-1] == "≥ 1."
    tex = latex.render(TABLE, "Caption of 5 %", "five")
    assert r"\begin{tabular}{lrlr}" in tex
    assert r"50 \% & n = 4 & word & n = 16 \\" in tex
    assert r"a\_b & 0.50 & v & -- \\" in tex
    assert r"$\chi_1$ & 2.00 & -- & -- \\" in tex
    assert tex.index(r"\caption{Caption of 5 \%}") < tex.index(r"\par $\geq$ 1.")
    assert r"\label{tab:five}" in tex
    assert Table.from_json(TABLE.to_json()) == TABLE
    assert Table(("a",), (("1|2",),), (False,)).markdown().endswith("| 1\\|2 |")


def test_a_wide_table_with_few_rows_is_turned() -> None:
    """The same cells; one that is narrow, or has more rows than columns, stays as it is."""
    wide = Table(tuple("abcdefghi"), (tuple("123456789"), tuple("987654321")), (False,) * 9, ("Note.",))
    turned = wide.narrow()
    assert turned.columns == ("a", "1", "9")
    assert turned.rows[-1] == ("i", "9", "1")
    assert (len(turned.rows), turned.notes) == (8, ("Note.",))
    assert turned.narrow() is turned
    assert TABLE.narrow() is TABLE


def test_facts_and_footer() -> None:
    """Of runs that are there: data, seeds, how many diverged, what they took; a claim's runs may be missing."""
    runs = SOME.assign(
        **{"data.name": ["digits", "digits", None], "seed": [0, 1, 1], "commit": ["c0ffee00ff", None, "c0ffee00ff"]},
        dirty=[False, True, False], memory_mb=100.0, wall_seconds=20.0,
    )  # fmt: skip
    start = "scale quick · no data set, scikit-learn digits · 2 seeds · 3 runs (1 diverged)"
    assert Context("acid_x", "t", "c", "quick", runs).footer == f"{start} · commit c0ffee00, unknown (modified)"
    assert facts(runs.runs, "quick", 5) == {
        "Scale": "quick",
        "Data": "no data set, scikit-learn digits",
        "Seeds": "0, 1",
        "Runs": "3 of 5 recorded (1 diverged)",
        "Cost": "60 s in all, at most 105 MB of memory",
    }
    assert facts(pd.DataFrame(), "quick", 2)["Runs"] == "0 of 2 recorded"


def test_averagings_of_a_schedule_are_counted_per_gradient() -> None:
    """By hand: two averagings before the second gradient of worker 0, one of them with worker 1."""
    kinds, i, j = [0, 1, 1, 0, 0], [0, 0, 0, 0, 1], [-1, 1, 2, -1, -1]
    events = Schedule(3, np.array(kinds, np.uint8), np.arange(5.0), np.array(i), np.array(j))
    assert between_gradients(events).tolist() == [0, 2, 1]
