"""Tables and figures of paper A, A²CiD²: one function per item, records in, a figure or table out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import networkx as nx
import numpy as np
import pandas as pd
import scipy.stats
from matplotlib.axes import Axes

from unlocked.gossip import clock as clocks
from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.gossip.clock import Clock
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
        f"n = {', '.join(map(str, sizes))}; where a constant grows like log n they are small and not constant.",
    )
    return Table(table, frame, notes)


def exponent(n: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(values) against log(n)."""
    return float(np.polyfit(np.log(list(n)), np.log(list(values)), 1)[0])


METHODS_ON_GRAPHS = (
    ("allreduce", "complete"),
    ("baseline", "complete"),
    ("baseline", "exponential"),
    ("acid", "exponential"),
    ("baseline", "ring"),
    ("acid", "ring"),
)


def accuracy_table(rows: dict[str, dict[int, list[Record]]], settings: dict[str, dict[str, object]]) -> Table:
    """Test accuracy of the averaged model: `rows` maps a row's label to its runs by number of workers.

    `settings` names what makes each row, for the numbers.
    """
    printed, numbers = {}, []
    for label, by_workers in rows.items():
        cells = {}
        for n, records in by_workers.items():
            values = finals(records, "test_accuracy")
            cells[f"n = {n}"] = percent(values) + lost(records)
            mean, deviation = spread(values)
            own = {"workers": n, "mean": mean, "deviation": deviation, "runs": len(values)}
            numbers.append(settings[label] | own | {"diverged": len(records) - len(values)})
        printed[label] = cells
    notes = ("Mean ± standard deviation over seeds; model: average of all workers.",)
    return Table(pd.DataFrame(printed).T.rename_axis("test accuracy (%)"), pd.DataFrame(numbers), notes)


def table_4(context: Context) -> Table:
    """Test accuracy of the averaged model for every method, graph and number of workers."""
    rows, settings = {}, {}
    for method, graph in METHODS_ON_GRAPHS:
        where = "" if method == "allreduce" else f", {GRAPH_NAMES[graph]}"
        label = f"{style.METHOD_NAME[method]}{where}"
        settings[label] = {"method": method, "graph": graph}
        rows[label] = {n: context.select(**settings[label], workers=n) for n in context.settings["workers"]}
    return accuracy_table(rows, settings)


def figure_4(context: Context) -> Figure:
    """Complete graph: training loss of the asynchronous baseline and of AR-SGD for growing numbers of workers."""
    figure, ax = style.new(width=style.COLUMN * 1.25, height=2.5)
    workers, numbers = context.settings["workers"], []
    for method, dash in (("allreduce", "--"), ("baseline", "-")):
        for n, color in zip(workers, style.shades(style.METHOD[method], len(workers)), strict=True):
            records = context.select(method=method, workers=n)
            look = {"color": color, "linestyle": dash, "label": f"{style.METHOD_NAME[method]}, n = {n}", "band": False}
            data = draw_metric(ax, records, "train_loss", **look)
            numbers.append(labelled(data, metric="train_loss", method=method, workers=n))
    ax.set(xlabel="epochs (all workers)", ylabel="training loss of the workers", yscale="log")
    ax.legend(ncols=2, fontsize=6, columnspacing=0.8)
    return Figure(figure, pd.concat(numbers))


def figure_6(context: Context) -> Figure:
    """The larger setting on the ring: training loss and test accuracy against epochs and against time."""
    figure, axes = style.new(2, 2, height=4.2)
    workers, numbers = context.settings["large"]["workers"], []
    for method in ("allreduce", "baseline", "acid"):
        for n, color in zip(workers, style.shades(style.METHOD[method], len(workers)), strict=True):
            records = context.select(method=method, workers=n, rate=1.0)
            for row, metric in enumerate(("train_loss", "test_accuracy")):
                for column, x in enumerate(("epoch", "virtual_time")):
                    data = mean_curve(records, metric, x)
                    data = data[data["step"] > 0]
                    label = f"{style.METHOD_NAME[method]}, n = {n}"
                    style.curve(axes[row, column], data, x, band=False, color=color, label=label)
                    numbers.append(labelled(data, metric=metric, method=method, workers=n, against=x))
    for ax, text in zip(axes[:, 0], ("training loss of the workers", "test accuracy of the average"), strict=True):
        ax.set_ylabel(text)
    for ax, text in zip(axes[1], ("epochs (all workers)", "time (mean gradient durations)"), strict=True):
        ax.set_xlabel(text)
    for ax in axes[0]:
        ax.set_yscale("log")
    for ax in axes[:, 1]:
        ax.set_xscale("log")
    style.panel(axes.flat, ["against epochs", "against time", "against epochs", "against time"])
    style.legend_below(figure, *axes[0, 0].get_legend_handles_labels(), len(workers))
    return Figure(figure, pd.concat(numbers))


FIGURE_7_GRAPHS = ("complete", "exponential", "ring")


def figure_7(context: Context) -> Figure:
    """How often each pair of workers averaged under first come, first served pairing, against the graph's rates."""
    workers, gradients = 16, 16 * 1000
    figure, axes = style.new(1, len(FIGURE_7_GRAPHS), height=2.5)
    numbers = []
    for ax, name in zip(axes, FIGURE_7_GRAPHS, strict=True):
        graph = topology.build(name, workers)
        events = schedules.availability(graph, 1.0, gradients, seed=context.settings["seeds"][0])
        counts, rates = events.communications_per_edge(), topology.edge_rates(graph)
        total, mean_rate = sum(counts.values()), sum(rates.values())
        relative = np.full((workers, workers), np.nan)
        rows = []
        for (i, j), rate in rates.items():
            expected = total * rate / mean_rate
            rows.append({"graph": name, "i": i, "j": j, "count": counts.get((i, j), 0), "expected": expected})
            relative[i, j] = relative[j, i] = counts.get((i, j), 0) / expected
        edges = pd.DataFrame(rows)
        test = scipy.stats.chisquare(edges["count"], edges["expected"])
        image = ax.imshow(relative, cmap="RdBu_r", vmin=0.7, vmax=1.3)
        ax.grid(False)
        ax.set(xlabel="worker", xticks=range(0, workers, 5), yticks=range(0, workers, 5))
        dispersion = f"$X^2$/dof = {test.statistic / (len(edges) - 1):.2f}"
        ax.set_title(f"{GRAPH_NAMES[name]}\n{probability(test.pvalue)}, {dispersion}")
        numbers.append(edges.assign(chi_square=test.statistic, p_value=test.pvalue))
    axes[0].set_ylabel("worker")
    figure.colorbar(image, ax=axes, shrink=0.8, label="averagings / expected")
    return Figure(figure, pd.concat(numbers))


def probability(p: float) -> str:
    """`p = .03` or `p < .001`."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")


def rate_factor(name: str, chi1: float, chi2: float) -> float:
    """The factor of the graph in a method's rate: chi1, or sqrt(chi1 chi2) with the momentum."""
    return (chi1 * chi2) ** 0.5 if name == "A²CiD²" else chi1


TABLE_1_ROWS = (
    ("synchronous gossip (Koloskova et al. 2020)", "σ²/(nμ²ε) + √L (χ₁ζ + √χ₁ σ)/(μ√(με)) + Lχ₁/μ",
     "Lσ²/(nε²) + L(χ₁ζ + √χ₁ σ)/ε^(3/2) + Lχ₁/ε", "χ₁"),
    ("asynchronous gossip (the baseline)", "as above, in expected time", "as above, in expected time", "χ₁"),
    ("A²CiD²", "as above with √(χ₁χ₂) for χ₁", "as above with √(χ₁χ₂) for χ₁", "√(χ₁χ₂)"),
)  # fmt: skip


def table_1(context: Context) -> Table:
    """Orders of the convergence rates, and the number that the graph's factor is on each graph.

    Synchronous gossip: Koloskova, Loizou, Boreiri, Jaggi, Stich, "A Unified Theory of Decentralized SGD with Changing
    Topology and Local Updates", ICML 2020, Theorem 2 with one gossip step per gradient and 1/p for chi1. Asynchronous:
    Lian, Zhang, Zhang, Liu, "Asynchronous Decentralized Parallel Stochastic Gradient Descent", ICML 2018 (the method).
    A²CiD²: Nabli, Belilovsky, Oyallon, NeurIPS 2023: chi1 becomes sqrt(chi1 chi2).
    """
    workers, names = context.settings["largest"], ("complete", "exponential", "torus", "ring")
    printed, numbers = {}, []
    for method, convex, other, factor in TABLE_1_ROWS:
        cells = {"strongly convex": convex, "non-convex": other, "factor": factor}
        for name in names:
            value = rate_factor(method, *topology.chi(topology.build(name, workers)))
            cells[f"{GRAPH_NAMES[name]}, n = {workers}"] = f"{value:.2f}"
            numbers.append({"method": method, "graph": name, "workers": workers, "factor": value})
        printed[method] = cells
    notes = (
        "Orders without constants and logarithms: number of gradients per worker to accuracy ε for L-smooth (and "
        "μ-strongly convex) functions, gradient noise σ², heterogeneity ζ². The first row follows the cited theorem; "
        "the paper's own statements for the other two were not checked against the published PDF.",
    )
    return Table(pd.DataFrame(printed).T.rename_axis("method"), pd.DataFrame(numbers), notes)


# Of table 3: a stated time model, not a measurement. 300 epochs of CIFAR-10 in batches of 128; ResNet-18 in float32.
TABLE_3_GRADIENTS, TABLE_3_BYTES = 300 * 390, 4 * 11_173_962
TABLE_3_CLOCKS = {
    "equal gradients": Clock(law="constant", latency=5e-5, bandwidth=1.25e9),
    "spread of 30 %": Clock(law="gamma", variation=0.3, latency=5e-5, bandwidth=1.25e9),
    "spread of 30 %, one slow worker (×2)": Clock(
        law="gamma", variation=0.3, slow_workers=1, latency=5e-5, bandwidth=1.25e9
    ),
}


def training_minutes(method: str, clock: Clock, workers: int, seed: int) -> float:
    """Virtual minutes until the budget of table 3 is done."""
    if method == "allreduce":
        steps = clocks.synchronous_steps(clock, workers, seed, TABLE_3_BYTES)
        end = next(itertools.islice(steps, TABLE_3_GRADIENTS // workers - 1, None))
    else:
        end = clocks.gradient_events(clock, workers, TABLE_3_GRADIENTS, seed)[0][-1]
    return float(end) * clock.gradient_seconds / 60


def table_3(context: Context) -> Table:
    """Training time of AR-SGD and of asynchronous training under a stated time model."""
    workers, seeds = context.settings["workers"], context.settings["seeds"]
    printed, numbers = {}, []
    for model, clock in TABLE_3_CLOCKS.items():
        means: dict[str, list[float]] = {"allreduce": [], "baseline": []}
        for method, row in means.items():
            for n in workers:
                mean, deviation = spread([training_minutes(method, clock, n, seed) for seed in seeds])
                row.append(mean)
                numbers.append(
                    {"model": model, "method": method, "workers": n, "minutes": mean, "deviation": deviation}
                )
            name = "AR-SGD" if method == "allreduce" else "asynchronous"
            printed[f"{name}, {model}"] = {f"n = {n}": f"{v:.1f}" for n, v in zip(workers, row, strict=True)}
        ratios = [a / b for a, b in zip(means["allreduce"], means["baseline"], strict=True)]
        printed[f"ratio, {model}"] = {f"n = {n}": f"{v:.2f}" for n, v in zip(workers, ratios, strict=True)}
    rows, more = measured_seconds(context)
    table = pd.DataFrame(printed | rows).T.rename_axis("virtual minutes, or seconds").fillna("–")
    return Table(table, pd.DataFrame(numbers + more))


def measured_seconds(context: Context) -> tuple[dict[str, dict[str, str]], list[dict[str, object]]]:
    """Rows of table 3, printed and as numbers, from runs of the engine of processes; none where there are none."""
    printed, numbers = {}, []
    for method in ("allreduce", "baseline", "acid"):
        records = [r for r in context.select(method=method, engine="processes") if not r.diverged]
        values = finals(records, "training_seconds")
        if values:
            workers, (mean, deviation) = int(records[0].config.workers), spread(values)
            cell = f"{mean:.2f} ± {deviation:.2f}" if len(values) > 1 else f"{mean:.2f}"
            printed[f"{style.METHOD_NAME[method]}, measured (seconds)"] = {f"n = {workers}": cell}
            numbers.append({"model": "measured", "method": method, "workers": workers, "seconds": mean})
    return printed, numbers


LARGE_ROWS = (("allreduce", 1.0), ("baseline", 1.0), ("baseline", 2.0), ("acid", 1.0), ("acid", 2.0))


def table_5(context: Context) -> Table:
    """The larger setting on the ring: test accuracy at one and two communications per gradient."""
    rows, settings = {}, {}
    for method, rate in LARGE_ROWS:
        label = method_name(method, None if method == "allreduce" else rate)
        settings[label] = {"method": method, "rate": rate}
        workers = context.settings["large"]["workers"]
        rows[label] = {n: context.select(**settings[label], workers=n) for n in workers}
    return accuracy_table(rows, settings)


def finals(records: Sequence[Record], metric: str) -> list[float]:
    """Final values of a metric over the runs that did not diverge."""
    return [r.summary["metrics"][metric] for r in records if not r.diverged]


def lost(records: Sequence[Record]) -> str:
    """How many runs diverged, for a cell."""
    count = sum(r.diverged for r in records)
    return f" ({count} diverged)" if count else ""


def table_6(context: Context) -> Table:
    """What happened in the runs with the most workers: time, gradients of the slowest and the fastest, averagings."""
    workers = context.settings["large"]["most_workers"]
    printed, numbers = {}, []
    for method, rate in LARGE_ROWS:
        records = [r for r in context.select(method=method, rate=rate, workers=workers) if not r.diverged]
        rows = [
            {
                "minutes": r.summary["metrics"]["virtual_seconds"] / 60,
                "slowest": min(r.summary["counts"]["gradients_per_worker"]),
                "fastest": max(r.summary["counts"]["gradients_per_worker"]),
                "averagings": r.summary["counts"].get("communications", 0),
                "per_gradient": 2 * r.summary["counts"].get("communications", 0) / r.summary["counts"]["gradients"],
            }
            for r in records
        ]
        means = pd.DataFrame(rows).mean()
        printed[method_name(method, None if method == "allreduce" else rate)] = {
            "virtual minutes": f"{means['minutes']:.2f}",
            "gradients, slowest worker": f"{means['slowest']:.0f}",
            "gradients, fastest worker": f"{means['fastest']:.0f}",
            "averagings": "–" if method == "allreduce" else f"{means['averagings']:.0f}",
            "communications per gradient": "–" if method == "allreduce" else f"{means['per_gradient']:.2f}",
        }
        numbers.append({"method": method, "rate": rate, "workers": workers, "runs": len(records), **means})
    return Table(pd.DataFrame(printed).T.rename_axis(f"n = {workers}"), pd.DataFrame(numbers), ("Means over seeds.",))
