"""Figures of forward gradients, as `configs/forward_gradient/items.yaml` describes them: runs in, a figure and its
numbers out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator, NullFormatter

from unlocked.forward_gradient.guesses import get as guess_of
from unlocked.forward_gradient.method import Method
from unlocked.items import style
from unlocked.items.context import Context
from unlocked.items.frames import Frames
from unlocked.items.output import Figure
from unlocked.items.style import draw
from unlocked.papers.forward_gradient.tables import SPACES, by_method, guess_order


def guesses_in(frames: Frames) -> list[str]:
    """The guesses of runs, in the order of tables."""
    return [name for name in guess_order() if name in set(frames.runs["guess"])]


def alignment(context: Context) -> Figure:
    guesses = guesses_in(context.frames)
    figure, axes = style.new(2, len(guesses), height=3.2, sharex=True, sharey=True, squeeze=False)
    numbers = []
    for (space, title), row in zip(SPACES.items(), axes, strict=True):
        for guess, ax in zip(guesses, row, strict=True):
            data = context.frames.select(space=space, guess=guess).curve("cosine", ["space", "guess", "index"])
            data = data.sort_values(["index", "step"]).assign(block=data["index"] + 1)
            ax.set_prop_cycle(color=colormaps["viridis"](np.linspace(0, 0.9, data["block"].nunique())))
            for block, own in data.groupby("block"):
                ax.plot(own["epoch"], own["mean"], linewidth=1, label=f"block {block}")
            ax.axhline(0, color="0.6", linewidth=0.6)
            ax.set(xlabel="epochs", ylabel=f"cosine, {title}")
            ax.label_outer()
            numbers.append(data.drop(columns=["metric", "index"]))
    for guess, ax in zip(guesses, axes[0], strict=True):
        ax.set_title(f"{guess_of(guess).label} guess")
    drawn = pd.concat(numbers)
    style.shared_legend(figure, drawn["block"].nunique())
    return Figure(figure, drawn)


def look_of(target: str, guess: str) -> dict[str, Any]:
    """How the curve of a cell of the table looks."""
    cell = Method(target, guess)
    return {"label": cell.label, "color": cell.colour, "linewidth": 1.1}


def learning_curves(context: Context) -> Figure:
    metrics = [f"{data}_{metric}" for metric in ("loss", "accuracy") for data in ("train", "test")]
    figure, axes = style.new(2, len(metrics), height=3.4, sharex=True, sharey="col")
    frames = by_method(context.frames)
    numbers = []
    for row, (space, title) in zip(axes, SPACES.items(), strict=True):
        panels = [(ax, metric, "epoch") for ax, metric in zip(row, metrics, strict=True)]
        own = draw(frames.select(space=[space, None]), panels, ["target", "guess"], look_of)
        numbers.append(own.assign(space=space))
        row[0].set_ylabel(f"guess in the {title}")
    for ax, metric in zip(axes[0], metrics, strict=True):
        unit = " (nats)" if "loss" in metric else " (%)"
        ax.set_title(metric.replace("train_", "training ").replace("_", " ") + unit)
        ax.set(yscale="log") if "loss" in metric else ax.set(ylim=(0, 1))
    style.percent(*axes[:, 2:].flat)
    for ax in axes[1]:
        ax.set_xlabel("epochs")
    style.shared_legend(figure, len(axes[0, 0].lines))
    return Figure(figure, pd.concat(numbers))


NORMS = {  # quantiles over samples or tensors, but for the last, which has one value per block
    "coefficient": "coefficient c",
    "norm_ratio": "‖guess‖ / ‖target‖",
    "estimate_norm_ratio": "‖estimate‖ / ‖gradient‖",
}


def norms(context: Context) -> Figure:
    figure, axes = style.new(3, 2, height=4.6, sharex=True, sharey="row")
    guesses = guesses_in(context.frames)
    for row, label, usual in zip(axes, NORMS.values(), (0, 1, 1), strict=True):
        row[0].set_ylabel(label)
        for ax in row:
            ax.set_yscale(**{"value": "log"} if usual else {"value": "symlog", "linthresh": 1e-3})
            ax.axhline(usual, color="0.6", linewidth=0.6)
    numbers = []
    for column, (space, title) in zip(axes.T, SPACES.items(), strict=True):
        for k, guess in enumerate(guesses):
            frames, look = context.frames.select(guess=guess, space=space), {"color": guess_of(guess).colour}
            for ax, metric in zip(column, NORMS, strict=True):
                data = quantiles(frames, metric)
                x = data["block"] + 0.16 * (k - (len(guesses) - 1) / 2)
                ax.vlines(x, data["q10"], data["q90"], linewidth=1.2, alpha=0.6, **look)
                ax.plot(x, data["q50"], "o", markersize=2.6, label=f"{guess_of(guess).label} guess", **look)
                numbers.append(data.assign(metric=metric, space=space, guess=guess))
        column[0].set(title=f"guess in the {title}")
        column[2].set(xlabel="block", xticks=numbers[-1]["block"])
    style.shared_legend(figure, len(guesses))
    return Figure(figure, pd.concat(numbers))


def quantiles(frames: Frames, metric: str) -> pd.DataFrame:
    """Last values by block, means over runs: q10, q50 and q90; a metric that has one value per block is q50."""
    several = f"{metric}_q50" in set(frames.history["metric"])
    names = {q: f"{metric}_{q}" for q in ("q10", "q50", "q90")} if several else {"q50": metric}
    data = pd.DataFrame(
        {q: frames.by_index(name)["mean"] for q, name in names.items()}, columns=["q10", "q50", "q90"], dtype=float
    )
    return data.assign(block=data.index + 1)


def width(context: Context) -> Figure:
    figure, ax = style.new(width=style.COLUMN, height=2.4)
    runs = by_method(context.frames.completed).runs.rename(columns={"model.width": "width"})
    groups = runs.groupby(["target", "guess", "space", "width"], dropna=False, sort=False)["test_accuracy"]
    data = groups.agg(mean="mean", low="min", high="max", runs="count").reset_index()
    for (target, guess, space), own in data.groupby(["target", "guess", "space"], dropna=False, sort=False):
        own, look = own.sort_values("width"), look_of(target, guess) | {"linestyle": "--" if space == "weight" else "-"}
        if space in SPACES:
            look["label"] += f", {SPACES[space]}"
        spread = own["mean"] - own["low"], own["high"] - own["mean"]
        ax.errorbar(own["width"], own["mean"], spread, marker="o", markersize=2.6, **look)
    ax.set_xscale("log", base=2)
    style.log_ticks(ax, context.frames.values("model.width"))
    ax.set(xlabel="width (factor on the channels)", ylabel="test accuracy (%)")
    style.percent(ax)
    style.shared_legend(figure, 2)
    return Figure(figure, data.drop(columns="target"))


ERROR_SPACES = {
    "activity": ("activities", style.ORANGE),
    "weight": ("weights", style.BLUE),
    "weight_per_sample": ("weights, per sample", style.GREEN),
}
GUESSES = {"random": "-", "local": "--"}


def error_panels(frames: Frames) -> dict[str, pd.DataFrame]:
    """Last values, means over seeds, by panel: columns guess, of (the space), space (as in the CSV file), x, value, and
    chance: what the expected error of a random guess makes of it."""
    rows = frames.parts("measure", "guess", "of", "count").sort_values("step", kind="stable")
    rows = rows.groupby(["run", "metric", "index"]).tail(1).join(frames.runs["model.width"].rename("width"), on="run")
    places, guessed = ["run", "of", "index"], rows["guess"].isin(GUESSES)
    sizes = rows[rows["measure"] == "dimension"].set_index(["run", "guess", "index"])["value"].rename("x")
    errors = rows[rows["measure"] == "expected_error"].set_index(places)["value"].rename("error")
    rows = rows[guessed].sort_values(["of", "guess"], ascending=[True, False], kind="stable").join(errors, on=places)
    rows = rows.assign(count=rows["count"].fillna("1").astype(int), space=rows["of"], block=rows["index"])
    rows["chance"] = (1 / np.sqrt(1 + rows["error"] ** 2 / rows["count"])).where(rows["guess"] == "random")
    main, by = rows[rows["width"] == rows["width"].max()], ["guess", "of", "space", "x"]
    cosine = main[main["measure"] == "error_cosine"].assign(x=main["count"])
    cosine["space"] += cosine["guess"].map({"random": "", "local": ", local guess"})
    shown = (main["measure"] + main["guess"]).isin(["relative_errorlocal", "expected_errorrandom"])
    error = main[shown].assign(x=main["block"] + 1, space=main["guess"] + "/" + main["of"], chance=np.nan)
    single = rows[rows["metric"].str.fullmatch("error_cosine/random/.*/1")].join(sizes, on=places)
    single["value"] = single["value"].abs()
    panels = {"tangents": (cosine, by), "dimension": (single, [*by[:3], "width", "block", "x"]), "block": (error, by)}
    return {
        panel: own.groupby(keys, sort=False)[["value", "chance"]].mean().reset_index().assign(panel=panel)
        for panel, (own, keys) in panels.items()
    }


def estimator_error(context: Context) -> Figure:
    panels, largest = error_panels(context.frames.completed), context.frames.values("model.width")[-1]
    figure, axes = style.new(1, 3, height=2.3)
    for ax, (panel, data) in zip(axes, panels.items(), strict=True):
        for (space, guess), own in data.groupby(["of", "guess"]):
            look = {"color": ERROR_SPACES[space][1], "linestyle": "" if panel == "dimension" else GUESSES[guess]}
            if panel == "tangents" and guess == "local":
                ax.axhline(own["value"].item(), linewidth=1, **look)
            else:
                ax.plot(own["x"], own["value"], marker="o", markersize=2.3, **look)
            chance = own.groupby("x")["chance"].mean().dropna()
            ax.plot(chance.index, chance, linewidth=0.8, **look | {"linestyle": ":"})
    counts = sorted(set(panels["tangents"]["x"]))
    axes[0].set(xlabel="random guesses averaged", ylabel="cosine to the gradient", xscale="log", yscale="log")
    axes[1].set(xlabel="dimension of the guess", ylabel="|cosine|, one random guess", xscale="log", yscale="log")
    axes[2].set(xlabel="block", ylabel="relative error", yscale="log")
    style.log_ticks(axes[0], counts[:: 1 + (len(counts) > 5)])
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    style.panel(axes, [f"random guesses, width {largest:g}", "dimension", f"by block, width {largest:g}"])
    for name, color in ERROR_SPACES.values():
        axes[0].plot([], color=color, label=name)
    for guess, dash in GUESSES.items():
        axes[0].plot([], color="0.3", linestyle=dash, label=f"{guess} guess")
    axes[0].plot([], color="0.3", linestyle=":", label="expected of random guesses")
    style.shared_legend(figure, 3)
    return Figure(figure, pd.concat(panels.values()).drop(columns=["guess", "of"]))


def alignment_same_weights(context: Context) -> Figure:
    rows = context.frames.completed.parts("measure", "guess", "of", "count")
    rows = rows[rows["measure"] == "alignment"].assign(block=rows["index"] + 1)
    groups = rows.assign(when=np.where(rows["step"] > 0, "end", "start")).groupby(["of", "guess", "when", "block"])
    data = groups["value"].agg(mean="mean", low="min", high="max", runs="count").reset_index()
    figure, axes = style.new(1, 2, height=2.2, sharex=True, sharey=True)
    for ax, of in zip(axes, SPACES, strict=True):
        for (guess, when), own in data[data["of"] == of].groupby(["guess", "when"]):
            look = {"color": guess_of(guess).colour, "linestyle": {"start": ":", "end": "-"}[when]}
            label = f"{guess_of(guess).label} guess" if when == "end" else None
            style.curve(ax, own["block"], own, {"marker": "o", "markersize": 2.3, "label": label, **look})
        ax.axhline(0, color="0.6", linewidth=0.6)
        ax.set(xlabel="block", ylabel="cosine of target and guess")
        ax.label_outer()
    axes[0].plot([], color="0.3", linestyle=":", label="before the training")
    style.panel(axes, [*SPACES.values()])
    style.shared_legend(figure, 5)
    return Figure(figure, data)


RATE_PANELS = {"none": "no guess", "activity": "guess in the activities", "weight": "guess in the weights"}


def rate_look(target: str, guess: str, space: str, averaged: bool) -> dict[str, Any]:
    """How a method's curve against its learning rate looks: colour by guess, dashes by target and coefficient."""
    look = look_of(target, guess)
    if space == "weight" and not averaged:
        return look | {"linestyle": ":", "label": f"{look['label']}, per sample"}
    if target == "local" and guess != "local":
        return look | {"linestyle": "--", "label": f"{look['label']}, local target"}
    return look


def learning_rate(context: Context) -> Figure:
    frames = by_method(context.frames)
    known = {name: frames.column(name).astype(object).fillna("none") for name in ("space", "averaged")}
    by = ["target", "guess", "space", "averaged", "optim.lr"]
    numbers = frames.assign(**known).summary(["method", *by], "test_accuracy", "train_accuracy")
    figure, axes = style.new(2, len(RATE_PANELS), height=3.6, sharex=True, sharey="row")
    for row, metric in zip(axes, ("test_accuracy", "train_accuracy"), strict=True):
        for ax, (space, title) in zip(row, RATE_PANELS.items(), strict=True):
            for method, own in numbers[numbers["space"] == space].groupby(by[:-1], sort=False):
                values = 100 * own.sort_values("optim.lr").set_index("optim.lr")[[metric, f"{metric}_deviation"]]
                look = {"marker": "o", "markersize": 2.5, "elinewidth": 0.6, **rate_look(*method)}
                ax.errorbar(values.index, values[metric], values[f"{metric}_deviation"], **look)
            ax.set(xscale="log", title=title if metric == "test_accuracy" else None)
            style.log_ticks(ax, context.frames.values("optim.lr"))
        row[0].set_ylabel(metric.replace("train_", "training ").replace("_", " ") + ", %")
    for ax in axes[1]:
        ax.set_xlabel("learning rate")
    style.shared_legend(figure, 4)
    return Figure(figure, numbers)


COSTS = {
    "forward": ("forward pass", style.BLACK),
    "jvp": ("Jacobian-vector product", style.RED),
    "tangents": ("exact per sample, eight products at a time", style.GREEN),
    "backpropagation": ("backpropagation", style.BLUE),
}


def forward_mode_cost(context: Context) -> Figure:
    rows = context.frames.parts("measure", "case", "block")
    rows["block"] = rows["block"].astype(int) + 1
    numbers = rows.groupby(["measure", "case", "block"])["value"].agg(["mean", "min", "max"])
    figure, axes = style.new(1, 2, height=2.2)
    for ax, measure, whole in zip(axes, ("seconds", "bytes"), ("forward", "backpropagation"), strict=True):
        for case, (name, color) in COSTS.items():
            if (measure, case, 1) in numbers.index:  # nobody times the exact ones
                data = numbers.loc[measure, case] / numbers.loc[(measure, whole, 1), "mean"]
                look = {"color": color, "marker": "o", "markersize": 3, "label": name}
                style.curve(ax, data.index, data.rename(columns={"min": "low", "max": "high"}), look)
    axes[0].set(xlabel="from block", ylabel="time / forward pass from block 1", ylim=(0, None))
    axes[1].set(xlabel="from block", ylabel="peak memory / backpropagation", ylim=(0, None))
    run = context.frames.runs.iloc[0]
    style.panel(axes, [f"time, width {run['model.width']:g}, batch {run['optim.batch_size']}", "memory"])
    style.shared_legend(figure, 2)
    return Figure(figure, numbers.reset_index())


COUPLING = {
    "batch_statistics": ("BatchNorm, batch statistics", style.RED),
    "running_statistics": ("BatchNorm, running statistics", style.BLUE),
    "group_norm": ("GroupNorm", style.GREEN),
}


def batchnorm_coupling(context: Context) -> Figure:
    figure, axes = style.new(1, 2, height=2.2, sharey=True)
    numbers = []
    for wide, (case, (name, color)) in zip((3.5, 2.2, 1.0), COUPLING.items(), strict=True):  # equal ones are all seen
        for ax, metric in zip(axes, ("per_sample_error", "batch_level_error"), strict=True):
            data, look = context.frames.by_index(f"{metric}/{case}"), {"color": color, "label": name}
            ax.plot(data.index + 1, data["mean"], linewidth=wide, marker="o", markersize=2 + wide, **look)
            ax.set(xlabel="block", yscale="log")
            numbers.append(data.assign(block=data.index + 1, metric=metric, case=case))
    axes[0].set_ylabel("relative error of one pass")
    style.panel(axes, ["coefficients of samples", "their sum over the batch"])
    style.shared_legend(figure, 3)
    return Figure(figure, pd.concat(numbers))
