"""Tables and figures about A²CiD² beyond the paper: when does the momentum help, by how much, and when does it not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.gossip.clock import Clock
from unlocked.items import style
from unlocked.items.acid import GRAPH_NAMES, METHODS_ON_GRAPHS, exponent, finals, lost, method_name
from unlocked.items.output import Context, Figure, Table, percent, spread
from unlocked.measures import consensus, lowest, time_to
from unlocked.record import Record


def interval(values: Sequence[float]) -> str:
    """`0.61 ± 0.02`: mean and deviation over seeds."""
    if not values:
        return "–"
    mean, deviation = spread(values)
    return f"{mean:.3g} ± {deviation:.2g}" if len(values) > 1 else f"{mean:.3g}"


def ratios(records: Iterable[Record], references: Iterable[Record]) -> list[float]:
    """Consensus distance over that of the reference with the same seed; diverged runs are left out."""
    below = {r.config.seed: consensus(r) for r in references if not r.diverged}
    return [consensus(r) / below[r.config.seed] for r in records if not r.diverged and r.config.seed in below]


DATA_ROWS = (("iid", "iid"), ("dirichlet", "Dirichlet"), ("label_sorted", "label-sorted"))
MOMENTUM_ROWS = (
    ("rate 2", {"method": "baseline", "rate": 2.0}),
    ("A²CiD²", {"method": "acid", "dynamics": "exact"}),
    ("A²CiD², released dynamics", {"method": "acid", "dynamics": "released"}),
)


def conditions(context: Context) -> Table:
    """Consensus distance relative to the rate-1 baseline, and accuracies, by SGD momentum and data."""
    printed, numbers = {}, []
    for momentum in (0.9, 0.0):
        for partition, name in DATA_ROWS:
            shared = {"optim__momentum": momentum, "data__partition": partition}
            reference = context.select(method="baseline", rate=1.0, **shared)
            if not reference:  # a scale may leave a partition out
                continue
            row = {"rate 1: workers (%)": percent(finals(reference, "worker_test_accuracy_mean"))}
            for label, settings in MOMENTUM_ROWS:
                records = context.select(**settings, **shared)
                found = ratios(records, reference)
                row[f"{label}: distance / rate 1"] = interval(found) + lost(records)
                row[f"{label}: workers (%)"] = percent(finals(records, "worker_test_accuracy_mean"))
                mean, deviation = spread(found)
                accuracies = {
                    key: spread(finals(records, metric))[0]
                    for key, metric in (("workers", "worker_test_accuracy_mean"), ("average", "test_accuracy"))
                }
                numbers.append(
                    {"sgd_momentum": momentum, "partition": partition, "row": label, "ratio": mean,
                     "deviation": deviation, "runs": len(found), **accuracies}
                )  # fmt: skip
            printed[f"momentum {momentum:g}, {name}"] = row
    notes = (
        "Distance: consensus distance, mean over the training, relative to the baseline at one communication "
        "per gradient with the same seed; below 1 is better. Mean ± standard deviation over seeds.",
    )
    return Table(pd.DataFrame(printed).T.rename_axis("ring"), pd.DataFrame(numbers), notes)


def quadratic(context: Context) -> Table:
    """The same question on a written-down problem: noisy quadratic functions on the ring."""
    printed, numbers = {}, []
    cases = sorted({(float(r.config.optim.momentum), float(r.config.optim.lr), bool(r.config.quadratic.heterogeneous))
                    for r in context.records}, reverse=True)  # fmt: skip
    for momentum, lr, heterogeneous in cases:
        shared = {"optim__momentum": momentum, "optim__lr": lr, "quadratic__heterogeneous": heterogeneous}
        reference = context.select(method="baseline", rate=1.0, **shared)
        row = {}
        for label, settings in MOMENTUM_ROWS:
            found = ratios(context.select(**settings, **shared), reference)
            row[f"{label}: distance / rate 1"] = interval(found)
            mean, deviation = spread(found)
            numbers.append(
                {**{k.replace("__", "."): v for k, v in shared.items()}, "row": label, "ratio": mean,
                 "deviation": deviation, "runs": len(found)}
            )  # fmt: skip
        data = "heterogeneous" if heterogeneous else "iid"
        printed[f"lr {lr:g}, momentum {momentum:g}, {data}"] = row
    return Table(pd.DataFrame(printed).T.rename_axis("quadratic, ring"), pd.DataFrame(numbers))


def equivalent_rate(context: Context) -> Figure:
    """The baseline's rate that gives the consensus distance of A²CiD² at rate 1, against n."""
    figure, axes = style.new(1, 2, height=2.6)
    workers, numbers = context.settings["workers"], []
    for n, color in zip(workers, style.shades(style.BLUE, len(workers)), strict=True):
        rates = sorted({float(r.config.rate) for r in context.select(method="baseline", workers=n)})
        runs = [context.select(method="baseline", workers=n, rate=rate) for rate in rates]
        distance = [np.mean([consensus(r) for r in same]) for same in runs]
        mine = [consensus(r) for r in context.select(method="acid", workers=n)]
        axes[0].loglog(rates, distance, marker="o", markersize=3, color=color, label=f"baseline, n = {n}")
        axes[0].axhline(np.mean(mine), color=color, linestyle=":", linewidth=1)
        found = [rate_for(value, rates, distance) for value in mine]
        mean, deviation = spread(found)
        numbers.append({"workers": n, "equivalent_rate": mean, "deviation": deviation, "highest_rate": rates[-1]})
    table = pd.DataFrame(numbers)
    axes[1].errorbar(
        table["workers"], table["equivalent_rate"], table["deviation"], color=style.RED, marker="o", markersize=4
    )
    axes[1].axhline(2, color="0.6", linestyle="--", linewidth=1)
    axes[1].set(xscale="log", xlabel="workers", ylabel="equivalent rate of the baseline", xticks=workers)
    axes[1].set_xticklabels(workers)
    axes[1].minorticks_off()
    axes[0].set(xlabel="communications per gradient", ylabel="consensus distance")
    axes[0].set_xticks(rates, [f"{rate:g}" for rate in rates])
    axes[0].minorticks_off()
    style.legend_below(figure, *axes[0].get_legend_handles_labels(), columns=len(workers))
    style.panel(axes, ["baseline (dotted: A²CiD² at rate 1)", "equivalent rate (dashed: doubling)"])
    return Figure(figure, table)


def rate_for(value: float, rates: Sequence[float], distances: Sequence[float]) -> float:
    """The rate at which the baseline has distance `value`: log-log interpolation, beyond the ends extrapolation."""
    x, y = np.log(rates), np.log(distances)
    order = np.argsort(y)
    x, y = x[order], y[order]
    target = np.log(value)
    k = int(np.clip(np.searchsorted(y, target), 1, len(y) - 1))
    return float(np.exp(x[k - 1] + (target - y[k - 1]) * (x[k] - x[k - 1]) / (y[k] - y[k - 1])))


def decay_rate(record: Record) -> float:
    """Slope of log consensus distance against time, from a third of the run on and above rounding."""
    rows = record.series("consensus_distance")
    start = rows["value"].iloc[0]
    kept = rows[(rows["virtual_time"] > rows["virtual_time"].max() / 3) & (rows["value"] > 1e-20 * start)]
    return -float(np.polyfit(kept["virtual_time"], np.log(kept["value"]), 1)[0]) if len(kept) > 2 else float("nan")


def pure_gossip(context: Context) -> Figure:
    """Averaging without gradients: measured decay of the consensus distance against the rates of the theory."""
    figure, ax = style.new(width=style.COLUMN * 1.4, height=2.8)
    numbers = []
    for name in GRAPH_NAMES:
        records = context.select(graph=name)
        if not records:
            continue
        workers = int(records[0].config.workers)
        chi1, chi2 = topology.chi(topology.build(name, workers))
        for method, theory in (("baseline", 1 / chi1), ("acid", (chi1 * chi2) ** -0.5)):
            found = [decay_rate(r) for r in context.select(graph=name, method=method)]
            mean, deviation = spread(found)
            numbers.append(
                {"graph": name, "workers": workers, "method": method, "theory": theory, "measured": mean,
                 "deviation": deviation, "runs": len(found)}
            )  # fmt: skip
    table = pd.DataFrame(numbers)
    names = [name for name in GRAPH_NAMES if name in set(table["graph"])]
    for method, shift, symbol in (("baseline", -0.15, r"$1/\chi_1$"), ("acid", 0.15, r"$1/\sqrt{\chi_1\chi_2}$")):
        rows = table[table["method"] == method].set_index("graph").loc[names]
        y = np.arange(len(names)) + shift
        color, name = style.METHOD[method], style.METHOD_NAME[method]
        look = {"linestyle": "", "color": color}
        ax.errorbar(rows["measured"], y, xerr=rows["deviation"], marker="o", markersize=4, label=name, **look)
        ax.plot(rows["theory"], y, marker="|", markersize=11, label=f"theory, {symbol}", **look)
    ax.set_yticks(range(len(names)), [GRAPH_NAMES[name] for name in names])
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="decay of the consensus distance (per gradient time)")
    style.legend_below(figure, *ax.get_legend_handles_labels(), 2)
    return Figure(figure, table)


def exponents(context: Context) -> Figure:
    """How the two time scales grow with n: chi1 without, sqrt(chi1 chi2) with the momentum."""
    sizes = (8, 16, 32, 64, 128, 256, 512, 1024)
    names = ("ring", "torus", "exponential", "complete")
    figure, axes = style.new(1, 2, height=2.5, sharey=True)
    colors = dict(zip(names, (style.RED, style.ORANGE, style.GREEN, style.BLUE), strict=True))
    numbers = []
    for name in names:
        pairs = np.array([topology.chi(topology.build(name, n)) for n in sizes])
        for ax, values, symbol in ((axes[0], pairs[:, 0], "chi1"), (axes[1], np.sqrt(pairs.prod(1)), "root")):
            slope = exponent(sizes, values)
            label = f"{GRAPH_NAMES[name]}, slope {slope:.2f}"
            ax.loglog(sizes, values, marker="o", markersize=3, color=colors[name], label=label)
            numbers += [
                {"graph": name, "workers": n, "quantity": symbol, "value": v, "slope": slope}
                for n, v in zip(sizes, values, strict=True)
            ]
    for ax in axes:
        ax.set_xlabel("workers")
        ax.legend(fontsize=6)
    axes[0].set_ylabel("time scale (gradient times)")
    style.panel(axes, [r"$\chi_1$: baseline", r"$\sqrt{\chi_1\chi_2}$: A²CiD²"])
    return Figure(figure, pd.DataFrame(numbers))


def stragglers(context: Context) -> Figure:
    """Time to a training loss that every run reaches, against the spread of gradient times and one slow worker."""
    loss = 1.02 * max(lowest(r) for r in context.records if not r.diverged)
    spreads = sorted({float(r.config.clock.variation) for r in context.records if not r.config.clock.slow_workers})
    factors = sorted({float(r.config.clock.slow_factor) for r in context.records if r.config.clock.slow_workers})
    calm = spreads[0]
    figure, axes = style.new(1, 2, height=2.4, sharey=True)
    numbers = []
    for method in ("allreduce", "baseline", "acid"):
        cases = (
            (axes[0], "spread", spreads, [{"clock__variation": v, "clock__slow_workers": 0} for v in spreads]),
            (
                axes[1],
                "slow worker",
                [1.0, *factors],
                [
                    {"clock__variation": calm, "clock__slow_workers": 0},
                    *[{"clock__slow_factor": f, "clock__slow_workers": 1} for f in factors],
                ],
            ),
        )
        for ax, case, xs, settings in cases:
            times = [[time_to(r, loss) for r in context.select(method=method, **own)] for own in settings]
            means, deviations = zip(*map(spread, times), strict=True)
            look = {"color": style.METHOD[method], "label": style.METHOD_NAME[method], "marker": "o", "markersize": 3}
            ax.errorbar(xs, means, deviations, **look)
            numbers += [
                {"case": case, "x": x, "method": method, "loss": loss, "time": m, "deviation": d}
                for x, m, d in zip(xs, means, deviations, strict=True)
            ]
    axes[0].set(xlabel="coefficient of variation of gradient times", ylabel=f"time to training loss {loss:.2g}")
    axes[1].set(xlabel="slowdown of one worker")
    axes[0].set_ylim(bottom=0)
    axes[0].legend()
    style.panel(axes, ["spread of gradient times", "one slow worker"])
    return Figure(figure, pd.DataFrame(numbers))


def heterogeneous_data(context: Context) -> Table:
    """Dirichlet-partitioned labels: accuracy of the average and of the workers by graph and method."""
    printed, numbers = {}, []
    for method, graph in METHODS_ON_GRAPHS:
        records = context.select(method=method, graph=graph)
        where = "" if method == "allreduce" else f", {GRAPH_NAMES[graph]}"
        cells, row = {}, {"method": method, "graph": graph, "runs": len(finals(records, "test_accuracy"))}
        for name, metric in (
            ("average (%)", "test_accuracy"),
            ("workers, mean (%)", "worker_test_accuracy_mean"),
            ("workers, worst (%)", "worker_test_accuracy_min"),
        ):
            missing = method == "allreduce" and metric != "test_accuracy"
            values = [] if missing else finals(records, metric)
            cells[name] = percent(values) + lost(records)
            row[metric], row[f"{metric}_deviation"] = spread(values)
        printed[method_name(method) + where] = cells
        numbers.append(row)
    notes = ("Mean ± standard deviation over seeds. Under AR-SGD every worker is the average.",)
    return Table(pd.DataFrame(printed).T.rename_axis("test accuracy"), pd.DataFrame(numbers), notes)


def averagings_between_gradients(record: Record) -> np.ndarray:
    """Shares (k,) of the gradients with 0, 1, ... averagings since their worker's last one.

    Real processes have counted them; in virtual time they follow from the schedule, which the config determines.
    """
    counted = record.summary["counts"].get("averagings_between_gradients")
    if counted is None:
        run = record.config
        graph = topology.build(run.graph, run.workers, run.seed)
        options = {"clock": Clock(**run.clock), "owed": run.owed}
        total = record.summary["counts"]["gradients"]
        events = schedules.draw(run.pairing, graph, run.rate, total, run.seed, **options)
        counted = np.bincount(between_gradients(events))
    return np.asarray(counted) / sum(counted)


def between_gradients(events: schedules.Schedule) -> list[int]:
    """For every gradient the averagings of its worker since the one before."""
    waiting, found = [0] * events.workers, []
    for kind, i, j in zip(events.kind.tolist(), events.i.tolist(), events.j.tolist(), strict=True):
        if kind == schedules.GRADIENT:
            found.append(waiting[i])
            waiting[i] = 0
        else:
            waiting[i] += 1
            waiting[j] += 1
    return found


def pooled(shares: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of distributions of any lengths."""
    longest = max(map(len, shares))
    return np.mean([np.pad(share, (0, longest - len(share))) for share in shares], axis=0)


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Half the summed absolute difference of two distributions: 0 if they are the same, 1 if nothing is shared."""
    longest = max(len(p), len(q))
    return float(np.abs(np.pad(p, (0, longest - len(p))) - np.pad(q, (0, longest - len(q)))).sum() / 2)


ENGINES = {"virtual": "virtual time", "processes": "processes"}


def engines(context: Context) -> Table:
    """Both engines on the same settings: how often workers averaged, how far apart they were, how they learned."""
    printed, numbers = {}, []
    for method in ("baseline", "acid"):
        shares = {}
        for engine, name in ENGINES.items():
            records = [r for r in context.select(method=method, engine=engine) if not r.diverged]
            shares[engine] = pooled([averagings_between_gradients(r) for r in records])
            counts = [r.summary["counts"] for r in records]
            row = {
                "per_gradient": spread([2 * c["communications"] / c["gradients"] for c in counts])[0],
                "distance": spread([consensus(r) for r in records])[0],
                "variation": total_variation(shares["virtual"], shares[engine]),
            }
            some = np.pad(shares[engine], (0, 4))
            printed[f"{style.METHOD_NAME[method]}, {name}"] = {
                "communications per gradient": f"{row['per_gradient']:.2f}",
                **{f"{k} averagings (%)": f"{100 * some[k]:.0f}" for k in range(3)},
                "3 or more (%)": f"{100 * some[3:].sum():.0f}",
                "difference (%)": "" if engine == "virtual" else f"{100 * row['variation']:.0f}",
                "consensus distance": interval([consensus(r) for r in records]),
                "test accuracy (%)": percent(finals(records, "test_accuracy")),
            }
            numbers.append({"method": method, "engine": engine, "runs": len(records)} | row)
    notes = (
        "Difference: total variation between the two distributions of averagings per gradient. Mean ± standard "
        "deviation over seeds. Real gradients do not follow the gamma law: their durations depend on what else the "
        "cores do.",
    )
    return Table(pd.DataFrame(printed).T.rename_axis("ring"), pd.DataFrame(numbers), notes)
