"""How methods, graphs and rates are called and drawn, in every table and figure alike."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap

from unlocked.gossip import topology
from unlocked.gossip.topology import GRAPHS
from unlocked.items import style

NAMES = {"allreduce": "AR-SGD", "baseline": "async. baseline", "acid": "A²CiD²"}
COLORS = {"allreduce": style.BLACK, "baseline": style.BLUE, "acid": style.RED}
WIDTHS: dict[str, dict[str, Any]] = {  # of curves that may run over one another
    "allreduce": {"linestyle": "--", "zorder": 3},
    "baseline": {"linewidth": 3.0, "alpha": 0.4},
    "acid": {"linewidth": 1.0, "zorder": 3},
}
PARTITION_NAMES = {"iid": "iid", "dirichlet": "Dirichlet", "label_sorted": "label-sorted"}
DASHES = {0.5: ":", 1.0: "-", 2.0: "--"}  # by communication rate


def shades(method: str, count: int) -> list[Any]:
    """From light to full, for a growing number."""
    colors = LinearSegmentedColormap.from_list(method, ["0.94", COLORS[method]])
    return [colors(part) for part in np.linspace(0, 1, count + 3)[3:]]


def at_rate(method: str, rate: float) -> dict[str, Any]:
    """How a curve of a method at a rate looks: `A²CiD², 1 com/∇`."""
    look = {"label": f"{NAMES[method]}, {rate:g} com/∇", "color": COLORS[method]}
    return look | WIDTHS[method] | {"linestyle": DASHES[rate]}


def by_workers(workers: Sequence[int]) -> Callable[[str, int], dict[str, Any]]:
    """How curves of a method for growing numbers of workers look; the baseline, drawn first, is seen under others."""
    colors = {method: dict(zip(workers, shades(method, len(workers)), strict=True)) for method in NAMES}
    return lambda method, n: {
        "label": f"{NAMES[method]}, n = {n}",
        "color": colors[method][n],
        **WIDTHS[method],
    }


def constants(graphs: Iterable[str], sizes: Sequence[int]) -> pd.DataFrame:
    """chi1, chi2 and root, which is sqrt(chi1 chi2), of graphs: a row per graph and number of workers."""
    rows = [(name, n, *topology.chi(topology.build(name, n))) for name, n in itertools.product(graphs, sizes)]
    table = pd.DataFrame(rows, columns=["graph", "workers", "chi1", "chi2"])
    return table.assign(root=(table["chi1"] * table["chi2"]) ** 0.5)


def reference(runs: pd.DataFrame, chosen: pd.Series, same: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """For every run columns `names` of the one among `chosen` with its seed and the same values of `same`; missing
    where there is none, or it diverged."""
    keys = [*same, "seed"]
    known = runs[chosen & ~runs["diverged"]].set_index(keys)[[*names]]
    return runs[keys].join(known, on=keys)[[*names]]


def below(runs: pd.DataFrame, chosen: pd.Series, same: Sequence[str]) -> pd.Series:
    """Whether a run's learning rate is below that of those `chosen` with the same values of `same`, diverged or not."""
    rates = runs[chosen].groupby(list(same))["optim.lr"].min().rename("known")
    return runs["optim.lr"] < runs[list(same)].join(rates, on=list(same))["known"]


# rows of the tables of accuracy, by label
GRAPH_ROWS = {
    f"{NAMES[method]}, {GRAPHS[graph].title}" if graph else NAMES[method]: {"method": method, "graph": graph}
    for method, graph in (
        ("allreduce", None), ("baseline", "complete"), ("baseline", "exponential"), ("acid", "exponential"),
        ("baseline", "ring"), ("acid", "ring"),
    )
}  # fmt: skip
RATE_ROWS = {"AR-SGD": {"method": "allreduce", "rate": None}} | {
    at_rate(method, rate)["label"]: {"method": method, "rate": rate}
    for method in ("baseline", "acid")
    for rate in (1.0, 2.0)
}
