"""Figures of A²CiD², as `configs/acid/items.yaml` describes them: runs in, a figure and its numbers out."""

from __future__ import annotations

from typing import Any

import networkx as nx
import numpy as np
import pandas as pd

from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.gossip.schedule import COMMUNICATION, GRADIENT, Schedule
from unlocked.gossip.topology import GRAPHS
from unlocked.items import style
from unlocked.items.context import Context
from unlocked.items.measures import consensus, exponent, lowest, time_to
from unlocked.items.output import Figure
from unlocked.items.style import draw
from unlocked.papers.acid.methods import COLORS, NAMES, WIDTHS, at_rate, by_workers, constants, shades

EPOCHS = "epochs (all workers)"
TIME = "time (mean gradient durations)"
LOSS = "training loss of the workers (nats)"
DISTANCE = r"$\frac{1}{n}\sum_i \|x_i-\bar x\|^2$"


def figure_1(context: Context) -> Figure:
    figure, axes = style.new(1, 2, height=2.3)
    panels = [(axes[0], "train_loss", "epoch"), (axes[1], "consensus_distance", "epoch")]
    numbers = draw(context.frames, panels, ["method", "rate"], at_rate)
    axes[0].set(xlabel=EPOCHS, ylabel=LOSS, yscale="log")
    axes[1].set(xlabel=EPOCHS, ylabel=f"consensus distance {DISTANCE}", yscale="log")
    style.panel(axes, ["training loss", "consensus distance"])
    style.shared_legend(figure, 3)
    return Figure(figure, numbers)


def asynchronous_trace(schedule: Schedule, horizon: float) -> pd.DataFrame:
    """What each worker does until `horizon`: rows (worker, kind, start, end, peer).

    `gradient`: from a worker's one gradient event to its next; it computes all the time. `averaging`: a moment, with
    the other worker as `peer`.
    """
    kinds = pd.Series(schedule.kind).map({GRADIENT: "gradient", COMMUNICATION: "averaging"})
    rows = pd.DataFrame({"worker": schedule.i, "kind": kinds, "end": schedule.time, "peer": schedule.j})
    begun = rows.groupby(["worker", "kind"])["end"].shift(fill_value=0.0)
    rows.insert(2, "start", begun.where(kinds == "gradient", rows["end"]))
    return rows[rows["start"] < horizon].assign(end=rows["end"].clip(upper=horizon)).reset_index(drop=True)


def synchronous_trace(schedule: Schedule, horizon: float, averaging: float) -> pd.DataFrame:
    """The same gradient durations under all-reduce: all wait for the slowest, then average for `averaging` units.

    Rows as in `asynchronous_trace`, with kinds `gradient`, `idle` and `communication`.
    """
    gradients = schedule.kind == GRADIENT
    durations = [np.diff(schedule.time[gradients & (schedule.i == w)], prepend=0.0) for w in range(schedule.workers)]
    rows: list[tuple[int, str, float, float, int]] = []
    start = 0.0
    for step in zip(*durations, strict=False):
        barrier = start + max(step)
        for worker, duration in enumerate(step):
            bounds = start, start + duration, barrier, barrier + averaging
            for kind, a, b in zip(("gradient", "idle", "communication"), bounds, bounds[1:], strict=False):
                if a < min(b, horizon):
                    rows.append((worker, kind, a, min(b, horizon), -1))
        start = barrier + averaging
    return pd.DataFrame(rows, columns=["worker", "kind", "start", "end", "peer"])


SPANS = {"gradient": style.BLUE, "communication": style.ORANGE, "idle": "0.93"}


def figure_2(context: Context) -> Figure:
    workers, horizon, averaging = 6, 6.0, 0.25
    events = schedules.poisson(topology.build("ring", workers), 1.0, gradients=workers * 60, seed=context.seeds[0])
    together, alone = synchronous_trace(events, horizon, averaging), asynchronous_trace(events, horizon)
    figure, axes = style.new(1, 2, height=2.1, sharey=True)
    for ax, trace in zip(axes, (together, alone), strict=True):
        for (kind, worker), own in trace[trace["kind"].isin(SPANS)].groupby(["kind", "worker"]):
            bars = list(zip(own["start"], own["end"] - own["start"], strict=True))
            ax.broken_barh(bars, (worker - 0.36, 0.72), color=SPANS[kind], edgecolor="white", linewidth=0.8, label=kind)
        for row in trace[trace["kind"] == "averaging"].itertuples():
            pair, label = [row.worker, row.peer], "averaging of a pair"
            ax.plot([row.start] * 2, pair, color=style.RED, linewidth=1, marker="o", markersize=2.5, label=label)
        ax.set(xlabel=TIME, xlim=(0, horizon), yticks=range(workers))
        ax.grid(False)
    axes[0].set_ylabel("worker")
    axes[0].invert_yaxis()
    style.panel(axes, ["synchronous: all-reduce after every gradient", "asynchronous: pairs average when they meet"])
    style.shared_legend(figure, 4)
    return Figure(figure, pd.concat([together.assign(panel="synchronous"), alone.assign(panel="asynchronous")]))


def figure_3(_: Context) -> Figure:
    numbers = constants(("complete", "exponential", "hypercube", "torus", "ring", "star"), [16])
    figure, axes = style.new(1, len(numbers), height=1.6)
    for ax, row in zip(axes, numbers.itertuples(), strict=True):
        graph = topology.build(row.graph, row.workers)
        places = nx.kamada_kawai_layout(graph)
        nx.draw_networkx_edges(graph, places, ax=ax, width=0.5, edge_color=style.BLUE, alpha=0.6)
        nx.draw_networkx_nodes(graph, places, ax=ax, node_size=12, node_color=style.BLACK)
        ax.set(title=GRAPHS[row.graph].title, aspect="equal")
        ax.axis("off")
        text = f"$\\chi_1={row.chi1:.2f}$\n$\\chi_2={row.chi2:.2f}$"
        ax.text(0.5, -0.08, text, transform=ax.transAxes, ha="center", va="top")
    return Figure(figure, numbers)


def figure_4(context: Context) -> Figure:
    workers, numbers = context.settings.workers, []
    figure, axes = style.new(1, len(workers), height=1.9, sharex=True, sharey=True, squeeze=False)
    for n, ax in zip(workers, axes[0], strict=True):
        for method in ("baseline", "allreduce"):
            own, look = context.frames.select(method=method, workers=n), WIDTHS[method]
            look = look | {"color": COLORS[method], "label": NAMES[method]}
            numbers.append(draw(own, [(ax, "train_loss", "epoch")], ["method", "workers"], lambda *_, look=look: look))
        ax.set(xlabel="epochs", yscale="log", title=f"n = {n}")
    axes[0, 0].set_ylabel(LOSS)
    style.shared_legend(figure, 2)
    return Figure(figure, pd.concat(numbers))


def figure_5(context: Context) -> Figure:
    figure, (left, right) = style.new(1, 2, height=2.6)
    workers, largest = context.settings.workers, context.settings.largest
    numbers = []
    for method in ("baseline", "acid"):
        once = context.frames.select(method=method, rate=1.0, workers=workers)
        growing = draw(once, [(left, "train_loss", "epoch")], ["method", "workers"], by_workers(workers), band=False)
        most = context.frames.select(method=method, workers=largest)
        apart = draw(most, [(right, "consensus_distance", "epoch")], ["method", "rate"], at_rate)
        numbers += [growing.assign(rate=1.0), apart.assign(workers=largest)]
    left.set(xlabel=EPOCHS, ylabel=LOSS, yscale="log")
    right.set(xlabel=EPOCHS, ylabel=f"consensus distance {DISTANCE}", yscale="log")
    style.panel((left, right), ["training loss on the ring", f"consensus distance, n = {largest}"])
    left.legend(ncols=2, loc="upper right", columnspacing=0.8, fontsize=6)
    right.legend(loc="lower left", fontsize=6)
    return Figure(figure, pd.concat(numbers))


def figure_6(context: Context) -> Figure:
    figure, axes = style.new(2, 2, height=4.2)
    workers, metrics, clocks = (
        context.settings.large.workers,
        ("train_loss", "test_accuracy"),
        ("epoch", "virtual_time"),
    )
    panels = [(axes[row, column], metrics[row], clocks[column]) for row in (0, 1) for column in (0, 1)]
    frames = context.frames.select(rate=[1.0, None])
    numbers = draw(frames, panels, ["method", "workers"], by_workers(workers))
    axes[0, 0].set(ylabel=LOSS, yscale="log")
    axes[0, 1].set(yscale="log", xscale="log")
    axes[1, 0].set(ylabel="test accuracy of the average (%)", xlabel=EPOCHS)
    style.percent(*axes[1])
    axes[1, 1].set(xlabel=TIME, xscale="log")
    style.panel(axes.flat, ["against epochs", "against time"] * 2)
    style.shared_legend(figure, len(workers))
    return Figure(figure, numbers.assign(against=np.where(numbers["epoch"].notna(), *clocks)))


def figure_7(context: Context) -> Figure:
    workers, names = 16, ("complete", "exponential", "ring")
    figure, axes = style.new(1, len(names), height=2.5)
    numbers = []
    for ax, name in zip(axes, names, strict=True):
        edges = averagings_by_edge(name, workers, context.seeds[0])
        both = pd.concat([edges, edges.rename(columns={"i": "j", "j": "i"})])
        relative = both.assign(relative=both["count"] / both["expected"]).pivot(
            index="i", columns="j", values="relative"
        )
        image = ax.imshow(relative, cmap="RdBu_r", vmin=0.7, vmax=1.3)
        ax.grid(False)
        p, dispersion = edges["p_value"][0], edges["chi_square"][0] / (len(edges) - 1)
        probability = "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".")
        ax.set_title(GRAPHS[name].title)
        ax.set(
            xlabel=f"worker\n$\\chi^2$ test: {probability}\n$\\chi^2$ / degrees of freedom: {dispersion:.2f}",
            xticks=range(0, workers, 5),
            yticks=range(0, workers, 5),
        )
        numbers.append(edges)
    axes[0].set_ylabel("worker")
    figure.colorbar(image, ax=axes, shrink=0.8, label="averagings / expected")
    return Figure(figure, pd.concat(numbers))


def averagings_by_edge(name: str, workers: int, seed: int) -> pd.DataFrame:
    """Counted and expected averagings of every edge in 1000 gradients per worker, and the χ² test of the counts."""
    import scipy.stats

    graph = topology.build(name, workers)
    counts = schedules.availability(graph, 1.0, workers * 1000, seed=seed).communications_per_edge()
    rates = topology.edge_rates(graph)
    edges = pd.DataFrame([{"graph": name, "i": i, "j": j, "count": counts.get((i, j), 0)} for i, j in rates])
    edges["expected"] = sum(counts.values()) * np.array(list(rates.values())) / sum(rates.values())
    test = scipy.stats.chisquare(edges["count"], edges["expected"])
    return edges.assign(chi_square=test.statistic, p_value=test.pvalue)


# Beyond the paper's figures: what the momentum is worth, and against what it can be measured.


def equivalent_rate(context: Context) -> Figure:
    import scipy.interpolate

    figure, (left, right) = style.new(1, 2, height=2.6)
    frames, workers = context.frames.assign(distance=consensus(context.frames)), context.settings.workers
    numbers = []
    for n, color in zip(workers, shades("baseline", len(workers)), strict=True):
        baseline = frames.select(method="baseline", workers=n).runs.groupby("rate")["distance"].mean()
        own = frames.select(method="acid", workers=n).runs["distance"]
        left.loglog(baseline, marker="o", markersize=3, color=color, label=f"baseline, n = {n}")
        left.axhline(own.mean(), color=color, linestyle=":", linewidth=1)
        x, y = np.log(baseline), np.log(baseline.index)
        rates = np.exp(np.log(own).map(scipy.interpolate.interp1d(x, y, fill_value="extrapolate")))
        numbers.append((n, rates.mean(), rates.std(), baseline.index.max()))
    table = pd.DataFrame(numbers, columns=["workers", "equivalent_rate", "deviation", "highest_rate"]).fillna(0.0)
    right.errorbar(*table.to_numpy().T[:3], color=style.RED, marker="o", markersize=4, label="A²CiD² at rate 1")
    right.axhline(2, color="0.6", linestyle="--", linewidth=1, label="doubling")
    right.set(xscale="log", xlabel="workers", ylabel="equivalent rate of the baseline")
    left.set(xlabel="communications per gradient", ylabel="consensus distance")
    style.log_ticks(left, frames.values("rate"))
    style.log_ticks(right, workers)
    left.yaxis.minorticks_off()
    style.shared_legend(figure, len(workers))
    style.panel((left, right), ["baseline (dotted: A²CiD² at rate 1)", "equivalent rate (dashed: doubling)"])
    return Figure(figure, table)


def decay_rate(rows: pd.DataFrame) -> float:
    """Slope of a run's log consensus distance against time, from a third of the run on and above rounding."""
    time, value = rows["virtual_time"], rows["value"]
    kept = (time > time.max() / 3) & (value > 1e-20 * value.iloc[0])
    return -float(np.polyfit(time[kept], np.log(value[kept]), 1)[0]) if kept.sum() > 2 else float("nan")


THEORY = {"baseline": ("chi1", -0.15, r"$1/\chi_1$"), "acid": ("root", 0.15, r"$1/\sqrt{\chi_1\chi_2}$")}


def pure_gossip(context: Context) -> Figure:
    decays = {run: decay_rate(rows) for run, rows in context.frames.rows("consensus_distance").groupby("run")}
    frames = context.frames.assign(measured=pd.Series(decays))
    table = frames.summary(["graph", "workers", "method"], "measured")
    times = constants(table["graph"].unique(), frames.values("workers")).set_index("graph")
    table["theory"] = [1 / times.loc[row.graph, THEORY[row.method][0]] for row in table.itertuples()]
    table["order"] = table["graph"].map(list(GRAPHS).index)
    table = table.sort_values("order", kind="stable").rename(columns={"measured_deviation": "deviation"})
    figure, ax = style.new(width=style.COLUMN * 1.4, height=2.8)
    for method, (_, shift, symbol) in THEORY.items():
        rows = table[table["method"] == method]
        y, look = np.arange(len(rows)) + shift, {"linestyle": "", "color": COLORS[method]}
        ax.errorbar(rows["measured"], y, xerr=rows["deviation"], marker="o", markersize=4, label=NAMES[method], **look)
        ax.plot(rows["theory"], y, marker="|", markersize=11, label=f"theory, {symbol}", **look)
    ax.set_yticks(range(len(rows)), [GRAPHS[name].title for name in rows["graph"]])
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="decay of the consensus distance (per gradient time)")
    style.shared_legend(figure, 2)
    return Figure(figure, table[["graph", "workers", "method", "theory", "measured", "deviation", "runs"]])


def exponents(_: Context) -> Figure:
    sizes = (8, 16, 32, 64, 128, 256, 512, 1024)
    colors = {"ring": style.RED, "torus": style.ORANGE, "exponential": style.GREEN, "complete": style.BLUE}
    figure, axes = style.new(1, 2, height=2.5, sharey=True)
    numbers = []
    for name, own in constants(colors, sizes).groupby("graph", sort=False):
        for ax, quantity in zip(axes, ("chi1", "root"), strict=True):
            slope = exponent(sizes, own[quantity])
            label = f"{GRAPHS[name].title}, slope {slope:.2f}"
            ax.loglog(sizes, own[quantity], marker="o", markersize=3, color=colors[name], label=label)
            numbers.append(own[["graph", "workers"]].assign(quantity=quantity, value=own[quantity], slope=slope))
            ax.set_xlabel("workers")
            ax.legend(fontsize=6)
    axes[0].set_ylabel("time scale (gradient times)")
    style.panel(axes, [r"$\chi_1$: baseline", r"$\sqrt{\chi_1\chi_2}$: A²CiD²"])
    return Figure(figure, pd.concat(numbers))


MARKERS = {"allreduce": "s", "baseline": "o", "acid": "D"}
SHIFTS = {"allreduce": -0.012, "baseline": 0.0, "acid": 0.012}  # so that no point hides another, as a share of the axis


def stragglers(context: Context) -> Figure:
    loss = 1.02 * lowest(context.frames.completed).max()  # every run reaches it
    runs = context.frames.runs.assign(time=time_to(context.frames, loss))
    slow, calm = runs["clock.slow_workers"] == 1, runs["clock.variation"] == runs["clock.variation"].min()
    one_slow = pd.concat([runs[~slow & calm].assign(x=1.0), runs[slow].assign(x=runs["clock.slow_factor"])])
    cases = {"spread": runs[~slow].assign(x=runs["clock.variation"]), "slow worker": one_slow}
    figure, axes = style.new(1, 2, height=2.4, sharey=True)
    numbers = []
    for method, color in COLORS.items():
        for ax, (case, points) in zip(axes, cases.items(), strict=True):
            times = points[points["method"] == method].groupby("x")["time"].agg(["mean", "std"]).fillna(0.0)
            places = times.index + SHIFTS[method] * (points["x"].max() - points["x"].min())
            look: dict[str, Any] = {"color": color, "label": NAMES[method], "marker": MARKERS[method]}
            ax.errorbar(places, *times.to_numpy().T, linestyle="", markersize=4, **look)
            own = times.reset_index().set_axis(["x", "time", "deviation"], axis=1)
            numbers.append(own.assign(case=case, method=method, loss=loss))
    axes[0].set(xlabel="coefficient of variation of gradient times", ylabel=f"{TIME}\nto training loss {loss:.2g}")
    axes[1].set(xlabel="slowdown of one worker (factor)")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    style.panel(axes, ["spread of gradient times", "one slow worker"])
    return Figure(figure, pd.concat(numbers)[["case", "x", "method", "loss", "time", "deviation"]])
