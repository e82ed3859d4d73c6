"""What README and documentation say of results, made from the shipped ones: tables between two marks, and one picture.

`unlocked docs` says what is stale, `unlocked docs --write` renews it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unlocked.artifact.config import ROOT
from unlocked.errors import DataError
from unlocked.items import style
from unlocked.report import claims, costs
from unlocked.report.sources import SUMS, Sources
from unlocked.units import plural

PICTURE = ROOT / "docs" / "overview.png"
DRAWN_FROM = ("acid/figure_1.csv", "forward_gradient/accuracy_8_blocks.csv")
CURVES = {  # method and rate: label and look
    ("baseline", 1.0): ("gossip", {"color": style.BLUE}),
    ("baseline", 2.0): ("gossip, twice the rate", {"color": style.BLUE, "linestyle": "--"}),
    ("acid", 1.0): ("A²CiD²", {"color": style.RED}),
}
GAINS = {  # of accuracy by A²CiD²: claim and part
    ("A7", "many"): "ResNet-18, BatchNorm",
    ("A10", "accuracy_mlp"): "perceptron",
    ("A10", "accuracy_conv"): "convolutional net",
    ("A10", "accuracy_conv_clipped"): "the same, clipped",
}
GUESSES: Sequence[tuple[str, str, Mapping[str, object]]] = (  # label, colour, and which row of the table of accuracies
    ("backpropagation", style.BLACK, {"guess": "global"}),
    ("local guess, activities", style.RED, {"guess": "local", "space": "activity", "auxiliary": "cnn"}),
    ("local guess, weights", style.ORANGE, {"guess": "local", "space": "weight", "averaged": True, "auxiliary": "cnn"}),
    ("random guess, activities", style.GREEN, {"guess": "random", "space": "activity"}),
    ("random guess, weights", style.SKY, {"guess": "random", "space": "weight", "averaged": True}),
)


def published(sources: Sources) -> list[list[dict[str, Any]]]:
    """The parts of every claim that the papers make; ours are in the documentation."""
    judged = claims.read(sources.verdicts)
    return claims.by_claim(judged[judged["kind"] != "ours"])


def key_numbers(sources: Sources) -> str:
    """A row per claim: the first part that decided, with its interval, and the verdict."""
    first = [claims.deciding(parts) for parts in published(sources)]
    rows = [("claim", "measured here [95 % interval]", "verdict"), ("---",) * 3]
    rows += [
        (f"{p['id']}: {claims.statement(p)}", f"{p['statistic']}: {p['interval']}", p["claim_verdict"]) for p in first
    ]
    return "\n".join(f"|{'|'.join(row)}|" for row in rows)


def full_table(sources: Sources) -> str:
    """Every part of every claim, with sources and conditions."""
    return claims.as_table(claims.read(sources.verdicts)).markdown()


def cost_table(sources: Sources) -> str:
    """What every item took whose runs were shipped, whatever is recorded here."""
    sources = Sources(sources.plan, Path(os.devnull), sources.figures)
    runs = sources.runs.runs
    told = f"{plural(len(runs), 'run')}, {runs['wall_seconds'].sum() / 3600:.1f} hours of run time on one core each."
    return f"{told}\n\n{costs.as_markdown(costs.of_runs(sources).dropna())}"


BLOCKS: dict[tuple[str, str], Callable[[Sources], str]] = {  # by file and name of the mark
    ("README.md", "claims"): key_numbers,
    ("docs/results.md", "verdicts"): full_table,
    ("docs/costs.md", "reduced"): cost_table,
}


def renewed(text: str, mark: str, block: str) -> str:
    """The text with what stands between `<!-- mark -->` and `<!-- end mark -->` replaced."""
    start, end = f"<!-- {mark} -->", f"<!-- end {mark} -->"
    if start not in text or end not in text:
        raise DataError(f"no place for {mark}: {start} ... {end}")
    return re.sub(f"{re.escape(start)}.*?{re.escape(end)}", lambda _: f"{start}\n{block}\n{end}", text, flags=re.DOTALL)


def pages(sources: Sources) -> dict[Path, str]:
    """Every page with its tables renewed, and the sums by which the shipped tables are known."""
    texts = {SUMS: sums(sources)}
    for (name, mark), make in BLOCKS.items():
        path = ROOT / name
        texts[path] = renewed(texts.get(path) or path.read_text(), mark, make(sources))
    return texts


def gains(ax: Axes, verdicts: pd.DataFrame) -> None:
    """Effects on accuracy with their intervals, by network."""
    known = verdicts.set_index(["id", "part"])
    for y, (key, label) in enumerate(GAINS.items()):
        effect, low, high = (known[name][key] for name in ("effect", "low", "high"))
        ax.errorbar(effect, y, xerr=[[effect - low], [high - effect]], fmt="o", color=style.BLACK, markersize=4)
        ax.annotate(
            label, (0, y - 0.2), (3 if effect > 0 else -3, 0), textcoords="offset points", fontsize=7,
            ha="left" if effect > 0 else "right",
        )  # fmt: skip
    ax.axvline(0, color=style.BLACK, linewidth=0.8)
    ax.set(yticks=[], ylim=(len(GAINS) - 0.5, -0.9), xlabel="A²CiD² − gossip, percentage points")
    ax.margins(x=0.45)
    ax.grid(False)


def bars(ax: Axes, table: pd.DataFrame) -> None:
    """Accuracies in percent, with the deviation over seeds."""
    value, ends = "test_accuracy", "test_accuracy_deviation"
    for y, (label, color, chosen) in enumerate(GUESSES):
        (row,) = table[(table[list(chosen)] == pd.Series(chosen)).all(axis=1)].to_dict("records")
        ax.barh(y, 100 * row[value], xerr=100 * row[ends], color=color, height=0.65)
        ink = "black" if color in (style.SKY, style.ORANGE) else "white"
        ax.text(1, y, label, va="center", color=ink, fontsize=7)
    ax.set(yticks=[], xlim=(0, 100), xlabel="test accuracy (%)")
    ax.invert_yaxis()
    ax.grid(False)


def overview(sources: Sources) -> Figure:
    """What both papers are about, in three panels."""
    folder = sources.figures / sources.plan.scale.name
    curves, guesses = (pd.read_csv(folder / name) for name in DRAWN_FROM)
    figure, (left, middle, right) = style.new(1, 3, height=2.1)
    distance = curves[curves["metric"] == "consensus_distance"]
    for (method, rate), (label, look) in CURVES.items():
        own = distance[(distance["method"] == method) & (distance["rate"] == rate)]
        style.curve(left, own["epoch"], own, {"label": label, **look})
    left.set(xlabel="epochs", ylabel="consensus distance", yscale="log")
    left.legend(fontsize=6)
    gains(middle, claims.read(sources.verdicts))
    bars(right, guesses[(guesses["target"] == "global") & (guesses["guess"] != "frozen")])
    largest = sources.plan.scale.plain()["acid"]["largest"]
    titles = [f"{largest} workers on a ring", "test accuracy there, by network", "forward gradients"]
    style.panel((left, middle, right), titles)
    told = "means over seeds; left: range, middle: 95 % interval, right: standard deviation"
    style.footer(figure, f"scale {sources.plan.scale.name}, {told}")
    return figure


def sums(sources: Sources) -> str:
    """What `sha256sum` prints of the tables that all this is made from."""
    paths = [f"{sources.plan.scale.name}/{name}" for name in ("claims/verdicts.csv", "runs.csv", *DRAWN_FROM)]
    lines = [(hashlib.sha256((sources.figures / path).read_bytes()).hexdigest(), path) for path in paths]
    return "".join(f"{digest}  {path}\n" for digest, path in lines)


def stale(sources: Sources) -> list[Path]:
    """What does not say what the shipped results say; the picture if any of their tables changed."""
    old = [path for path, text in pages(sources).items() if not path.is_file() or path.read_text() != text]
    return old + [PICTURE] * (SUMS in old or not PICTURE.is_file())


def write(sources: Sources) -> list[Path]:
    """Renew all that is stale; returns its paths."""
    old, texts = stale(sources), pages(sources)
    for path in old:
        if path == PICTURE:
            overview(sources).savefig(path, dpi=200, bbox_inches="tight")
        else:
            path.write_text(texts[path])
    return old
