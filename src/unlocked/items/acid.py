"""Tables and figures of paper A, A²CiD²: one function per item, records in, a figure or table out."""

from __future__ import annotations

from collections.abc import Sequence

import networkx as nx
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.items import style
from unlocked.items.output import Context, Figure, Table, mean_curve, percent, spread
from unlocked.record import Record

GRAPH_NAMES = {
    "complete": "complete",
    "exponential": "exponential",
    "hypercube": "hypercube",
    "torus": "torus",
    "ring": "ring",
    "star": "star",
    "path": "path",
    "erdos_renyi": "Erdős–Rényi",
}
RING_METHODS = (("baseline", 1.0), ("baseline", 2.0), ("acid", 1.0))


def method_name(method: str, rate: float | None = None) -> str:
    """`A²CiD², 1 com/∇`: the method and its communications per gradient."""
    name = style.METHOD_NAME[method]
    return name if rate is None else f"{name}, {rate:g} com/∇"


def labelled(curve: pd.DataFrame, **columns: object) -> pd.DataFrame:
    """A curve with the columns that say which one it is in front."""
    return curve.assign(**columns)[[*columns, *curve.columns]]


def draw_metric(ax: Axes, records: Sequence[Record], metric: str, **options: object) -> pd.DataFrame:
    """The mean curve of a metric over epochs, from the first evaluation after the start."""
    data = mean_curve(records, metric)
    data = data[data["step"] > 0]
    style.curve(ax, data, **options)
    return data


def figure_1(context: Context) -> Figure:
    """Ring, largest n: does adding the momentum do what doubling the communication rate does?"""
    figure, axes = style.new(1, 2, height=2.3)
    numbers = []
    for method, rate in RING_METHODS:
        records = context.select(method=method, rate=rate)
        look = {"color": style.METHOD[method], "linestyle": style.DASH[rate], "label": method_name(method, rate)}
        for ax, metric in zip(axes, ("train_loss", "consensus_distance"), strict=True):
            data = draw_metric(ax, records, metric, **look)
            numbers.append(labelled(data, metric=metric, method=method, rate=rate))
    axes[0].set_ylabel("training loss of the workers")
    axes[1].set_ylabel(r"consensus distance $\frac{1}{n}\sum_i \|x_i-\bar x\|^2$")
    for ax in axes:
        ax.set(xlabel="epochs (all workers)", yscale="log")
    style.panel(axes, ["training loss", "consensus distance"])
    style.legend_below(figure, *axes[0].get_legend_handles_labels(), 3)
    return Figure(figure, pd.concat(numbers))


def figure_2(context: Context) -> Figure:
    """Time lines: in the synchronous picture everyone waits for the slowest, in the asynchronous one nobody waits."""
    workers, horizon, round_trip = 6, 6.0, 0.25
    graph = topology.build("ring", workers)
    events = schedules.poisson(graph, 1.0, gradients=workers * 60, seed=context.settings["seeds"][0])
    together = schedules.synchronous_trace(events, horizon, round_trip)
    alone = schedules.asynchronous_trace(events, horizon)
    figure, axes = style.new(1, 2, height=2.1, sharey=True)
    colors = {"gradient": (style.SKY, style.BLUE), "communication": (style.ORANGE,), "idle": ("0.93",)}
    for ax, trace in zip(axes, (together, alone), strict=True):
        for kind, shades in colors.items():
            spans = trace[trace["kind"] == kind]
            for k, (worker, mine) in enumerate(spans.groupby("worker")):
                ax.broken_barh(
                    list(zip(mine["start"], mine["end"] - mine["start"], strict=True)),
                    (worker - 0.36, 0.72),
                    facecolors=[shades[n % len(shades)] for n in range(len(mine))],
                    label=kind if k == 0 else None,
                )
        ax.set(xlabel="time (mean gradient durations)", xlim=(0, horizon), yticks=range(workers))
        ax.grid(False)
    talks = alone[alone["kind"] == "averaging"]
    for row in talks.itertuples():
        axes[1].plot([row.start] * 2, [row.worker, row.peer], color=style.RED, linewidth=1, marker="o", markersize=2.5)
    axes[1].plot([], [], color=style.RED, marker="o", markersize=2.5, linewidth=1, label="averaging of a pair")
    axes[0].set_ylabel("worker")
    axes[0].invert_yaxis()
    style.panel(axes, ["synchronous: all-reduce after every gradient", "asynchronous: pairs average when they meet"])
    handles = [h for ax in axes for h in zip(*ax.get_legend_handles_labels(), strict=True)]
    unique = {label: handle for handle, label in handles}
    style.legend_below(figure, list(unique.values()), list(unique), 4)
    return Figure(figure, pd.concat([together.assign(panel="synchronous"), alone.assign(panel="asynchronous")]))


def figure_3(context: Context) -> Figure:
    """The graphs with the two constants that set the speed of gossip on them."""
    workers = 16
    names = ("complete", "exponential", "hypercube", "torus", "ring", "star")
    figure, axes = style.new(1, len(names), height=1.6)
    numbers = []
    for ax, name in zip(axes, names, strict=True):
        graph = topology.build(name, workers)
        chi1, chi2 = topology.chi(graph)
        numbers.append({"graph": name, "workers": workers, "chi1": chi1, "chi2": chi2, "root": (chi1 * chi2) ** 0.5})
        around = positions(name, graph)
        nx.draw_networkx_edges(graph, around, ax=ax, width=0.5, edge_color=style.BLUE, alpha=0.6)
        nx.draw_networkx_nodes(graph, around, ax=ax, node_size=12, node_color=style.BLACK)
        ax.set_title(GRAPH_NAMES[name])
        ax.set_aspect("equal")
        ax.axis("off")
        ax.text(
            0.5, -0.08, f"$\\chi_1={chi1:.2f}$\n$\\chi_2={chi2:.2f}$", transform=ax.transAxes, ha="center", va="top"
        )
    return Figure(figure, pd.DataFrame(numbers))


def positions(name: str, graph: nx.Graph) -> dict[int, np.ndarray]:
    """Where to draw the workers: around a circle, the star's centre inside, grids and cubes by their distances."""
    if name == "star":
        return nx.circular_layout(range(1, len(graph))) | {0: np.zeros(2)}
    if name in ("torus", "hypercube"):
        return nx.kamada_kawai_layout(graph)
    return nx.circular_layout(graph)


def figure_5(context: Context) -> Figure:
    """Ring: (a) training loss against n with and without momentum; (b) consensus distance at the largest n."""
    figure, axes = style.new(1, 2, height=2.6)
    workers, largest = context.settings["workers"], context.settings["largest"]
    numbers = []
    for method in ("baseline", "acid"):
        for n, color in zip(workers, style.shades(style.METHOD[method], len(workers)), strict=True):
            records = context.select(method=method, workers=n, rate=1.0)
            look = {"color": color, "label": f"{style.METHOD_NAME[method]}, n = {n}", "band": False}
            data = draw_metric(axes[0], records, "train_loss", **look)
            numbers.append(labelled(data, metric="train_loss", method=method, rate=1.0, workers=n))
        for rate in (1.0, 2.0):
            records = context.select(method=method, workers=largest, rate=rate)
            look = {
                "color": style.METHOD[method],
                "linestyle": style.DASH[rate],
                "label": method_name(method, rate),
            }
            data = draw_metric(axes[1], records, "consensus_distance", **look)
            numbers.append(labelled(data, metric="consensus_distance", method=method, rate=rate, workers=largest))
    axes[0].set(xlabel="epochs (all workers)", ylabel="training loss of the workers", yscale="log")
    axes[1].set(xlabel="epochs (all workers)", ylabel=r"$\frac{1}{n}\sum_i \|x_i-\bar x\|^2$", yscale="log")
    style.panel(axes, ["training loss on the ring", f"consensus distance, n = {largest}"])
    axes[0].legend(ncols=2, loc="upper right", columnspacing=0.8, fontsize=6)
    axes[1].legend(ncols=2, loc="best", fontsize=6)
    return Figure(figure, pd.concat(numbers))


def table_2(context: Context) -> Table:
    """The constants of every graph and how they grow with n."""
    sizes, shown = (16, 64, 256, 1024), (16, 64)
    numbers = []
    for name in GRAPH_NAMES:
        for n in sizes:
            chi1, chi2 = topology.chi(topology.build(name, n))
            numbers.append({"graph": name, "workers": n, "chi1": chi1, "chi2": chi2, "root": (chi1 * chi2) ** 0.5})
    frame = pd.DataFrame(numbers)
    frame["communications"] = frame["workers"] / 2
    printed = {}
    for name, rows in frame.groupby("graph", sort=False):
        by_n = rows.set_index("workers")
        cells = {
            f"{symbol} (n = {n})": f"{by_n.loc[n, key]:.2f}"
            for key, symbol in (("chi1", "χ₁"), ("chi2", "χ₂"), ("root", "√(χ₁χ₂)"))
            for n in shown
        }
        for key, symbol in (("chi1", "χ₁"), ("root", "√(χ₁χ₂)")):
            cells[f"{symbol} ~ n^"] = f"{exponent(by_n.index, by_n[key]):.2f}"
        cells["averagings"] = "n/2"
        printed[GRAPH_NAMES[name]] = cells
    table = pd.DataFrame(printed).T.rename_axis("graph")
    notes = (
        "Communication rate 1: every worker takes part in one averaging per gradient on average, n/2 averagings per "
        "unit of time over all workers. Exponents are least-squares slopes of log χ against log n over "
        f"n = {', '.join(map(str, sizes))}; for graphs whose constant grows like log n they are small and not constant.",
    )
    return Table(table, frame, notes)


def exponent(n: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(values) against log(n)."""
    return float(np.polyfit(np.log(list(n)), np.log(list(values)), 1)[0])


TABLE_4_ROWS = (
    ("allreduce", "complete"),
    ("baseline", "complete"),
    ("baseline", "exponential"),
    ("acid", "exponential"),
    ("baseline", "ring"),
    ("acid", "ring"),
)


def table_4(context: Context) -> Table:
    """Test accuracy of the averaged model for every method, graph and number of workers."""
    workers = context.settings["workers"]
    printed, numbers = {}, []
    for method, graph in TABLE_4_ROWS:
        cells = {}
        for n in workers:
            records = context.select(method=method, graph=graph, workers=n)
            kept = [r for r in records if not r.diverged]
            values = [r.summary["metrics"]["test_accuracy"] for r in kept]
            cells[f"n = {n}"] = percent(values) + f" ({len(records) - len(kept)} diverged)" * (len(records) > len(kept))
            mean, deviation = spread(values)
            numbers.append(
                {
                    "method": method,
                    "graph": graph,
                    "workers": n,
                    "mean": mean,
                    "deviation": deviation,
                    "runs": len(values),
                    "diverged": len(records) - len(kept),
                }
            )
        where = "" if method == "allreduce" else f", {GRAPH_NAMES[graph]}"
        printed[f"{style.METHOD_NAME[method]}{where}"] = cells
    table = pd.DataFrame(printed).T.rename_axis("test accuracy (%)")
    return Table(
        table, pd.DataFrame(numbers), ("Mean ± standard deviation over seeds; model: average of all workers.",)
    )
