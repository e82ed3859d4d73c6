"""Figures of A²CiD² beyond the paper's: every method against its learning rate, weaker momenta, costs of differing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from unlocked.gossip import stationary, topology
from unlocked.gossip.momentum import Constants
from unlocked.gossip.stationary import CURVATURES, Problem, Spectrum
from unlocked.items import style
from unlocked.items.context import Context
from unlocked.items.frames import Frames
from unlocked.items.measures import consensus, over_training, settled
from unlocked.items.output import Figure
from unlocked.papers.acid.methods import PARTITION_NAMES, below, reference, shades
from unlocked.vision.networks import NETWORKS

POINTS = 16  # of accuracy that are shown against the learning rate
STRENGTH_COLORS = (style.RED, style.ORANGE, style.PURPLE, style.GREEN)


def fraction(value: float) -> str:
    """`1/4` for 0.25."""
    return str(Fraction(value).limit_denominator(9999))


Methods = dict[str, tuple[dict[str, Any], dict[str, Any]]]  # settings that choose runs, options of `Axes.plot`


def compared(frames: Frames) -> Methods:
    """The methods set side by side, by label: settings that choose their runs, and options of `Axes.plot`."""
    ring = {"method": "baseline", "graph": "ring"}
    shown: Methods = {
        "AR-SGD": ({"method": "allreduce"}, {"color": style.BLACK, "linestyle": ":"}),
        "baseline, complete graph": ({"method": "baseline", "graph": "complete"}, {"color": style.SKY}),
        "baseline, 1 com/∇": (ring | {"rate": 1.0}, {"color": style.BLUE}),
        "baseline, 2 com/∇": (ring | {"rate": 2.0}, {"color": style.BLUE, "linestyle": "--"}),
    }
    strengths = sorted(frames.values("strength"), reverse=True)
    for c, color in zip(strengths, STRENGTH_COLORS, strict=False):
        shown[f"A²CiD², c = {fraction(c)}"] = {"method": "acid", "strength": c}, {"color": color}
    return {label: case for label, case in shown.items() if len(frames.select(**case[0]).runs)}


REGIME = ["model.name", "model.width", "workers", "data.partition", "optim.clip"]


def by_regime(frames: Frames) -> dict[str, Frames]:
    """The runs of each network, number of workers and partition, by what these are called."""
    found = {}
    for (name, width, workers, partition, clip), runs in frames.runs.groupby(REGIME, dropna=False, sort=False):
        narrow = f" × {fraction(width)}" if width != 1 else ""
        data = f", {PARTITION_NAMES[partition]}" if partition != "iid" else ""
        clipped = "" if pd.isna(clip) else ", clipped"
        title = f"{NETWORKS[name].title}{narrow}{clipped}, n = {workers}{data}"
        found[title] = frames.where(frames.runs.index.isin(runs.index))
    return found


def points(ax: Axes, x: Sequence[float] | pd.Series, table: pd.DataFrame, key: str, scale: float, **look: Any) -> None:
    """Means of a column of `Frames.summary` with bars of their deviation; a cross where some run diverged.

    Where all did, it stands at the lower edge, every method's at a height of its own.
    """
    y, deviation = scale * table[key], scale * table[f"{key}_deviation"]
    edge = 0.04 + 0.05 * len(ax.containers)
    ax.errorbar(x, y, yerr=deviation, marker="o", markersize=3, elinewidth=0.7, **look)
    lost, cross = (table["diverged"] > 0).to_numpy(), {"linestyle": "", "marker": "x", "color": look["color"]}
    all_lost, places = lost & y.isna().to_numpy(), np.asarray(x)
    ax.plot(places[lost & ~all_lost], y[lost & ~all_lost], markersize=6, **cross)
    ax.plot(places[all_lost], [edge] * all_lost.sum(), transform=ax.get_xaxis_transform(), markersize=4, **cross)


def near_the_best(row: Sequence[Axes]) -> None:
    """Frame the panels of a row, which share their axis, around the best; what is far below is out of sight."""
    drawn = [line for ax in row for line in ax.lines if line.get_linestyle() != "None"]
    values = np.concatenate([line.get_ydata(orig=False) for line in drawn])
    values = values[np.isfinite(values)]
    if values.size and (span := np.ptp(values)) > 0:  # else all diverged, or there is one value
        best = values.max()
        row[0].set_ylim(max(best - 1.2 * span, best - POINTS), best + 0.05 * min(span, POINTS))


def against_the_rate(panels: Mapping[str, Axes], frames: Frames, methods: Methods, **labels: Any) -> pd.DataFrame:
    """Draw every method against the learning rate, a column in each panel; the numbers, with `labels` and method, and
    with the consensus distance, which is not drawn."""
    numbers, frames = [], frames.assign(distance=consensus(frames))
    for label, (case, look) in methods.items():
        table = frames.select(**case).summary(["optim.lr"], *panels, "distance").sort_values("optim.lr")
        for key, ax in panels.items():
            points(ax, table["optim.lr"], table, key, 100, label=label, **look)
        numbers.append(table.assign(**labels, row=label))
    for ax in panels.values():
        ax.set(xscale="log", xlabel="base learning rate")
        style.log_ticks(ax, frames.values("optim.lr"))
    return pd.concat(numbers).rename(columns={"optim.lr": "learning_rate"})


def learning_rate(context: Context) -> Figure:
    regimes, numbers = by_regime(context.frames), []
    figure, axes = style.new(len(regimes), 2, height=2.5 * len(regimes), squeeze=False, sharey="row")
    for row, (title, frames) in zip(axes, regimes.items(), strict=True):
        alone = frames.column("worker_test_accuracy_mean").fillna(frames.column("test_accuracy"))
        frames = frames.assign(average=frames.column("test_accuracy"), workers=alone)
        panels = dict(zip(("average", "workers"), row, strict=True))
        numbers.append(against_the_rate(panels, frames, compared(frames), regime=title))
        for ax, who in zip(row, ("average of all workers", "single workers (mean)"), strict=True):
            ax.set_title(f"{title}: {who}")
        row[0].set_ylabel("test accuracy (%)")
        near_the_best(row)
    style.shared_legend(figure, 3)
    return Figure(figure, pd.concat(numbers))


def learning_rate_conditions(context: Context) -> Figure:
    """A row with SGD momentum, one without; a column for each partition."""
    frames = context.frames.assign(average=context.frames.column("test_accuracy"))
    momenta, methods = sorted(frames.values("optim.momentum"), reverse=True), compared(frames)
    partitions = [name for name in PARTITION_NAMES if name in frames.values("data.partition")]
    figure, axes = style.new(len(momenta), len(partitions), height=2.4 * len(momenta), squeeze=False, sharey="row")
    numbers = []
    for row, momentum in zip(axes, momenta, strict=True):
        with_momentum = f"SGD momentum {momentum:g}" if momentum else "no SGD momentum"
        for ax, partition in zip(row, partitions, strict=True):
            own = frames.select(**{"optim.momentum": momentum, "data.partition": partition})
            numbers.append(against_the_rate({"average": ax}, own, methods, momentum=momentum, partition=partition))
            ax.set_title(f"{PARTITION_NAMES[partition]}, {with_momentum}")
        row[0].set_ylabel("test accuracy (%)")
        near_the_best(row)
    style.shared_legend(figure, 3)
    return Figure(figure, pd.concat(numbers))


MEASURES = {  # of the item on the strength: what it is called, and whether it is a ratio to the reference
    "distance": ("consensus distance\n/ baseline", True),
    "loss": ("loss difference\n/ baseline", True),
    "accuracy": ("workers' accuracy\n$-$ baseline (points)", False),
}


def relative(frames: Frames) -> Frames:
    """The runs with every measure relative to the baseline at rate 1 with the same seed, workers, data and momentum.

    `smaller`: whether the learning rate is below that baseline's.
    """
    frames = frames.assign(
        distance=consensus(frames),
        loss=over_training(frames, "loss_difference"),
        accuracy=100 * frames.column("worker_test_accuracy_mean").astype(float),
    )
    runs, same = frames.runs, ["workers", "data.partition", "pairing", "optim.momentum"]
    usual = (runs["method"] == "baseline") & (runs["rate"] == 1)
    known = reference(runs, usual, same, list(MEASURES))
    return frames.assign(
        **{key: runs[key] / known[key] if ratio else runs[key] - known[key] for key, (_, ratio) in MEASURES.items()},
        smaller=below(runs, usual, same),
    )


def strength(context: Context) -> Figure:
    frames = relative(context.frames)
    columns, strengths = conditions(frames), frames.values("strength")
    figure, axes = style.new(3, len(columns), height=5.2, squeeze=False, sharex=True, sharey="row")
    numbers = []
    for column, (title, here) in zip(axes.T, columns.items(), strict=True):
        for group in looks(here):
            numbers.append(draw_strengths(column, here, strengths, *group).assign(condition=title))
        column[0].set_title(title.replace(", ", ",\n"))
        column[-1].set(xlabel="c", xticks=range(-1, len(strengths)))
        column[-1].set_xticklabels(["rate 2", *map(fraction, strengths)])
    for row, (name, ratio) in zip(axes, MEASURES.values(), strict=True):
        row[0].set_ylabel(name)
        for ax in row:
            ax.axhline(float(ratio), color=style.BLUE, linewidth=0.8, label="baseline, 1 com/∇")
            ax.axvline(-0.5, color="0.8", linewidth=0.6)
        if ratio:
            row[0].set_yscale("log", nonpositive="mask")  # an average that is worse than the workers
    for marker, meaning in {"v": "at a smaller learning rate", "x": "some runs diverged"}.items():
        axes[0, 0].plot([], [], linestyle="", marker=marker, markersize=5, color=style.RED, label=meaning)
    style.shared_legend(figure, 3)
    return Figure(figure, pd.concat(numbers))


def conditions(frames: Frames) -> dict[str, Frames]:
    """The runs of every partition under Poisson pairing, and of those that are there under availability, by title."""
    pairings = {"poisson": "", "availability": ", first come first served"}
    found = {}
    for (pairing, suffix), (partition, name) in itertools.product(pairings.items(), PARTITION_NAMES.items()):
        found[name + suffix] = frames.select(data__partition=partition, pairing=pairing)
    return {title: own for title, own in found.items() if len(own.runs)}


def looks(frames: Frames) -> Iterator[tuple[int, float, dict[str, Any]]]:
    """(workers, SGD momentum, how their points look)."""
    sizes = frames.values("workers")
    for n, color in zip(sizes, shades("acid", len(sizes)), strict=True):
        for momentum, line in ((m, "-" if m else "--") for m in frames.values("optim.momentum")[::-1]):
            yield n, momentum, {"color": color, "linestyle": line, "label": f"n = {n}, SGD momentum {momentum:g}"}


def draw_strengths(
    axes: Sequence[Axes], frames: Frames, strengths: list[float], n: int, momentum: float, look: dict[str, Any]
) -> pd.DataFrame:
    """In a column of panels, one measure each: the baseline at rate 2, then A²CiD² by strength. Returns the numbers."""
    own, by = frames.select(workers=n, optim__momentum=momentum), ["method", "optim.lr", "smaller"]
    doubled = own.select(method="baseline", rate=2.0).summary(by, *MEASURES).assign(x=-1, strength=np.nan)
    weaker = own.select(method="acid").summary([*by, "strength"], *MEASURES).sort_values("strength")
    weaker = weaker.assign(x=weaker["strength"].map(strengths.index))
    for ax, key in zip(axes, MEASURES, strict=True):
        points(ax, weaker["x"], weaker, key, 1, **look)
        points(
            ax, doubled["x"], doubled, key, 1, color=look["color"], mfc="none" if look["linestyle"] == "--" else None
        )
        for table in (doubled, weaker):
            smaller = table[table["smaller"]]
            ax.plot(smaller["x"], smaller[key], linestyle="", marker="v", markersize=5, color=look["color"])
    numbers = pd.concat([doubled, weaker]).drop(columns=["x", "smaller"])
    return numbers.rename(columns={"optim.lr": "learning_rate"}).assign(workers=n, sgd_momentum=momentum)


COSTS = {
    "consensus_distance": "consensus distance",
    "loss_difference": "loss difference",
    "disagreement_hessian": r"$\frac{1}{2n}\sum_i d_i^\top H d_i$",
    "disagreement_gauss_newton": r"$\frac{1}{2n}\sum_i d_i^\top G d_i$",
}
LEAST_LOSS = 1e-3  # below, the axis is linear, so that it has room for negative differences


def disagreement(context: Context) -> Figure:
    regimes, numbers = by_regime(context.frames), []
    figure, axes = style.new(len(regimes), len(COSTS), height=2.0 * len(regimes), squeeze=False)
    for row, (title, frames) in zip(axes, regimes.items(), strict=True):
        for label, (case, look) in compared(frames).items():
            panels = [(ax, metric, "epoch") for ax, metric in zip(row, COSTS, strict=True)]
            options = {"label": label, "linewidth": 1.0} | look
            drawn = style.draw(frames.select(**case), panels, ["method"], lambda _, own=options: own)
            numbers.append(drawn.assign(regime=title, row=label))
        row[0].set(ylabel=title, yscale="log")
        for ax, name in zip(row, COSTS.values(), strict=True):
            ax.set_title(name)
        for ax in row[1:]:  # losses: of one unit, and of both signs
            ax.sharey(row[1])
            ax.axhline(0.0, color="0.6", linewidth=0.8)
        row[1].set_yscale("symlog", linthresh=LEAST_LOSS)
        row[1].autoscale(axis="y")
    for ax in axes[-1]:
        ax.set_xlabel("epochs")
    style.shared_legend(figure, 3)
    return Figure(figure, pd.concat(numbers))


CASES = ["optim.lr", "optim.momentum", "quadratic.heterogeneous"]
CASE_COLORS = (style.BLUE, style.RED, style.GREEN, style.ORANGE)
STUDIED = {"distance": "consensus distance / baseline", "loss": "loss difference / baseline"}


def strength_theory(context: Context) -> Figure:
    frames = context.frames.assign(
        distance=settled(context.frames, "consensus_distance"), loss=settled(context.frames, "loss_difference")
    )
    (workers,), (dimension,) = frames.values("workers"), frames.values("quadratic.dimension")
    figure, axes = style.new(1, 3, height=2.6)
    spectrum, numbers = Spectrum.of(topology.build("ring", workers)), []
    for color, (case, runs) in zip(CASE_COLORS, frames.runs.groupby(CASES), strict=False):
        lr, momentum, heterogeneous = case
        problems = directions(dimension, lr, momentum, float(heterogeneous))
        curve, dots = predicted(spectrum, problems), simulated(runs)
        label = f"lr {lr:g}, momentum {momentum:g}, {'own optima' if heterogeneous else 'iid'}"
        for ax, key in zip(axes, STUDIED, strict=False):
            ax.plot(curve["strength"], curve[key], color=color, label=label)
            ax.errorbar(dots["strength"], dots[key], yerr=dots[f"{key}_deviation"], fmt="o", ms=3, color=color)
        both = pd.concat([curve.assign(source="theory"), dots.assign(source="simulation")])
        numbers.append(both.assign(**dict(zip(("lr", "sgd_momentum", "own_optima"), case, strict=True))))
    for ax, name in zip(axes, STUDIED.values(), strict=False):
        ax.set(xscale="log", xlabel="strength c", title=name)
        ax.set_ylim(bottom=0)
        ax.axhline(1.0, color="0.6", linewidth=0.8)
    best = draw_best(axes[2], dimension)
    style.shared_legend(figure, 2)
    return Figure(figure, pd.concat([*numbers, best]))


def directions(dimension: int, lr: float, momentum: float, optima: float) -> list[Problem]:
    """Of the quadratic study."""
    return [Problem(a, 1.0, optima, lr, momentum) for a in np.linspace(*CURVATURES, dimension).tolist()]


def predicted(spectrum: Spectrum, problems: list[Problem]) -> pd.DataFrame:
    """The theory's measures by strength, from that which is the baseline on, relative to the baseline."""
    chi1, chi2 = spectrum.chi
    strengths = np.geomspace(chi2 / chi1, 4.0, 13)
    every = [Constants.baseline(), *(Constants.accelerated(chi1, chi2, c) for c in strengths)]
    rows = np.array([stationary.measures(spectrum, constants, problems) for constants in every])
    return pd.DataFrame(rows[1:] / rows[0], columns=list(STUDIED)).assign(strength=strengths)


def simulated(runs: pd.DataFrame) -> pd.DataFrame:
    """Measured by strength, relative to the baseline with the same seed: mean and deviation over seeds."""
    names = list(STUDIED)
    ratios = runs[names] / reference(runs, runs["method"] == "baseline", [], names)
    groups = ratios.assign(strength=runs["strength"])[runs["method"] == "acid"].groupby("strength")
    means, deviations = groups.mean(), groups.std().fillna(0.0)
    return means.join(deviations.add_suffix("_deviation")).reset_index()


RECOMMENDED = {(0.005, 0.0): style.BLACK, (0.05, 0.0): style.PURPLE, (0.005, 0.9): style.SKY}  # learning rate, momentum


def draw_best(ax: Axes, dimension: int) -> pd.DataFrame:
    """The strength that the theory recommends, against how much the workers' optima differ."""
    spreads, numbers = np.geomspace(0.03, 3.0, 7), []
    for n, line in ((16, "--"), (64, "-")):
        spectrum = Spectrum.of(topology.build("ring", n))
        for (lr, momentum), color in RECOMMENDED.items():
            best = [stationary.best_strength(spectrum, directions(dimension, lr, momentum, s)[::10]) for s in spreads]
            label = f"right: lr {lr:g}, momentum {momentum:g}"  # one for both numbers of workers
            ax.plot(spreads, best, linestyle=line, color=color, label=label)
            values = {"workers": n, "lr": lr, "sgd_momentum": momentum, "optima": spreads, "best_strength": best}
            numbers.append(pd.DataFrame(values).assign(source="recommended"))
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="deviation of the optima (noise: 1)",
        title="strength of least loss difference",
    )
    ax.axhline(1.0, color="0.6", linewidth=0.8)
    return pd.concat(numbers)
