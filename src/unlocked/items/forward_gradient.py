"""Tables and figures of paper B, forward gradients: one function per item, records in, a figure or table out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator
from omegaconf import DictConfig, OmegaConf

from unlocked.items import style
from unlocked.items.output import DATA_NAMES, Context, Figure, Table, mean_curve, percent, spread
from unlocked.record import Record

# (target, guess): name and colour; the two cells where they are one are methods of their own
CELLS = {
    ("global", "global"): ("backpropagation", style.BLACK),
    ("local", "local"): ("local learning", style.PURPLE),
    ("global", "local"): ("local guess", style.RED),
    ("global", "ntk"): ("NTK guess", style.BLUE),
    ("global", "fixed_ntk"): ("fixed NTK guess", style.SKY),
    ("global", "random"): ("random guess", style.GREEN),
}
GUESSES = ("local", "ntk", "fixed_ntk", "random")
GUESS_NAMES = {"local": "local", "ntk": "NTK", "fixed_ntk": "fixed NTK", "random": "random", "global": "itself"}
SPACES = ("activity", "weight")
SPACE_NAMES = {"activity": "activities", "weight": "weights"}
SPACE_DASH = {"activity": "-", "weight": "--", "weight_per_sample": ":"}
NETWORKS = {
    "resnet18_8": "ResNet-18, 8 blocks",
    "resnet18_16": "ResNet-18 without skips, 16 blocks",
    "resnet18_2": "ResNet-18, 2 blocks",
}
SEEDS_NOTE = "Mean ± standard deviation over seeds; a dash: not run at this scale."


def is_projected(run: DictConfig) -> bool:
    """Whether a run has a space: backpropagation and local learning have none."""
    return run.target != run.guess


def uses_auxiliary(run: DictConfig) -> bool:
    """Whether anything in a run comes from its auxiliary nets."""
    return run.guess != "global" and (run.target, run.guess) != ("global", "random")


def final(records: Iterable[Record], metric: str) -> list[float]:
    """Last values of a metric, one per run that did not diverge."""
    return [r.summary["metrics"][metric] for r in records if not r.diverged]


def cell(records: Sequence[Record]) -> tuple[str, dict[str, float]]:
    """Accuracy of the runs of one method, as printed and as numbers."""
    if not records:
        return "–", {}
    diverged = sum(r.diverged for r in records)
    test, train, best = (final(records, m) for m in ("test_accuracy", "train_accuracy", "best_test_accuracy"))
    text = f"{percent(test)} ({100 * spread(train)[0]:.1f})" if test else "–"
    numbers = {"diverged": diverged, "runs": len(records)}
    for name, values in (("test_accuracy", test), ("train_accuracy", train), ("best_test_accuracy", best)):
        numbers[name], numbers[f"{name}_deviation"] = spread(values)
    return text + f" ({diverged} diverged)" * bool(diverged), numbers


def row_name(run: DictConfig) -> str:
    """What a run is, in a table: `global target, local guess, weights`."""
    if not is_projected(run):
        return CELLS[run.target, run.guess][0]
    per_sample = ", per sample" * (run.space == "weight" and not run.averaged)
    averaged = ", averaged" * (run.space == "activity" and run.averaged)
    return f"{run.target} target, {GUESS_NAMES[run.guess]} guess, {SPACE_NAMES[run.space]}{per_sample}{averaged}"


def row_order(run: DictConfig) -> tuple:
    """Backpropagation, local learning, then by target, guess and space."""
    place = ("global", *GUESSES).index(run.guess)
    return (is_projected(run), run.target, place, run.space == "weight", not run.averaged)


def accuracy(context: Context) -> Table:
    """Accuracy of every method by auxiliary net; a method without auxiliary nets has one value in all columns."""
    kinds = [k for k in ("cnn", "mlp", "linear") if any(r.config.auxiliary == k for r in context.records)]
    kinds = [k for k in kinds if any(r.config.auxiliary == k and uses_auxiliary(r.config) for r in context.records)]
    printed: dict[str, dict[str, str]] = {}
    numbers = []
    for name, records in grouped(context.records, row_name, row_order):
        shared = not uses_auxiliary(records[0].config)
        printed[name] = {}
        for kind in kinds:
            found = [r for r in records if shared or r.config.auxiliary == kind]
            printed[name][f"{kind} auxiliary"], values = cell(found)
            if values:
                settings = {key: records[0].config[key] for key in ("target", "guess", "space", "averaged")}
                numbers.append({"method": name, **settings, "auxiliary": "none" if shared else kind, **values})
    table = pd.DataFrame(printed).T.rename_axis("test (training) accuracy, %")
    notes = (SEEDS_NOTE, "Backpropagation and random guesses at the global target use no auxiliary net.")
    return Table(table, pd.DataFrame(numbers).drop_duplicates(["method", "auxiliary"]), notes)


def grouped(
    records: Sequence[Record], name: Callable[[DictConfig], str], order: Callable[[DictConfig], tuple]
) -> list[tuple[str, list[Record]]]:
    """Records by the name of their method, methods in order, seeds in order within."""
    found: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: (order(r.config), r.config.seed)):
        found.setdefault(name(record.config), []).append(record)
    return list(found.items())


def noise(context: Context) -> Table:
    """Gaussian and Rademacher guesses side by side."""
    printed: dict[str, dict[str, str]] = {}
    numbers = []
    for name, records in grouped(context.records, row_name, row_order):
        printed[name] = {}
        for kind, title in (("gaussian", "Gaussian"), ("rademacher", "Rademacher")):
            printed[name][title], values = cell([r for r in records if r.config.distribution == kind])
            numbers.append({"method": name, "distribution": kind, **values})
    table = pd.DataFrame(printed).T.rename_axis("test (training) accuracy, %")
    return Table(table, pd.DataFrame(numbers), (SEEDS_NOTE,))


def aligned_auxiliary(context: Context) -> Table:
    """Two blocks: the auxiliary net as deep as the rest of the net, against a small one."""

    def name(run: DictConfig) -> str:
        kind = {"copy": "copy of block 2"}.get(run.auxiliary, run.auxiliary)
        return row_name(run) + f", {kind}" * uses_auxiliary(run)

    printed: dict[str, dict[str, str]] = {}
    numbers = []
    for label, records in grouped(context.records, name, lambda run: (*row_order(run), run.auxiliary)):
        text, values = cell(records)
        cosines = [float(r.values("cosine").iloc[0]) for r in records if not r.diverged]
        mean, deviation = spread(cosines)
        printed[label] = {"accuracy, %": text, "cosine": f"{mean:.3f} ± {deviation:.3f}" if cosines else "–"}
        numbers.append({"method": label, **values, "cosine": mean, "cosine_deviation": deviation})
    table = pd.DataFrame(printed).T.rename_axis("method")
    notes = (SEEDS_NOTE, "Backpropagation's guess is the target, so that its cosine is 1; so is local learning's.")
    return Table(table, pd.DataFrame(numbers), notes)


TAXONOMY = {
    ("global", "itself"): ("backpropagation", "backpropagation"),
    ("global", "random"): (
        "forward gradient, weight perturbation (Baydin et al. 2022)",
        "forward gradient, activity perturbation (Ren et al. 2022)",
    ),
    ("global", "local"): ("the paper's", "the paper's (Figure 1)"),
    ("global", "NTK, fixed NTK"): ("the paper's", "the paper's"),
    ("local", "itself"): ("decoupled local learning", "decoupled local learning"),
    ("local", "random"): (
        "local losses, weight perturbation (compared in Ren et al. 2022)",
        "local losses, activity perturbation (Ren et al. 2022)",
    ),
    ("local", "NTK, fixed NTK"): ("the paper's", "the paper's"),
}


def taxonomy(context: Context) -> Table:
    """Which method each cell is."""
    rows = [
        {"target": target, "guess": guess, "in the weights": weight, "in the activities": activity}
        for (target, guess), (weight, activity) in TAXONOMY.items()
    ]
    notes = (
        "Random guesses are fresh noise in every step; local ones the gradient of the block's own auxiliary loss; NTK "
        "ones the same with an auxiliary net drawn anew every step, fixed NTK with one frozen as it was drawn.",
        "Which cells earlier work covers is our reading of the cited papers.",
    )
    frame = pd.DataFrame(rows)
    return Table(frame.set_index("target"), frame, notes)


def auxiliary_cost(context: Context) -> Table:
    """Parameters and multiply-adds of each kind of auxiliary net, absolute and against the net."""
    printed: dict[str, dict[str, str]] = {}
    numbers, per_block = [], []
    for record in sorted(context.records, key=lambda r: list(NETWORKS).index(r.config.model.name)):
        network = NETWORKS[record.config.model.name]
        totals = {}
        for kind in ("blocks", "classifier", "cnn", "mlp", "linear", "copy"):
            found = {key: record.values(f"{key}/{kind}") for key in ("parameters", "flops")}
            totals[kind] = {key: float(values.sum()) for key, values in found.items()}
            for block in found["flops"].index:
                one = {key: int(values[block]) for key, values in found.items()}
                per_block.append({"network": network, "part": kind, "block": int(block) + 1, **one})
        net = {key: totals["blocks"][key] + totals["classifier"][key] for key in ("parameters", "flops")}
        printed[f"{network}: the net"] = {
            "parameters": f"{net['parameters']:,.0f}",
            "multiply-adds": f"{net['flops']:,.0f}",
        }
        for kind in ("cnn", "mlp", "linear", "copy"):
            printed[f"{network}: {kind}"] = {
                "parameters": f"{totals[kind]['parameters']:,.0f} ({percent_of(totals[kind], net, 'parameters')})",
                "multiply-adds": f"{totals[kind]['flops']:,.0f} ({percent_of(totals[kind], net, 'flops')})",
            }
        numbers += [{"network": network, "part": part, "block": 0, **values} for part, values in totals.items()]
    width = context.records[0].config.model.width
    notes = (
        f"Net of width {width:g} on this scale's images; the parentheses give the share of the"
        " net's. The numbers of every block are in the CSV file (block 0: the total).",
    )
    return Table(pd.DataFrame(printed).T.rename_axis("net"), pd.DataFrame([*numbers, *per_block]), notes)


def percent_of(part: dict[str, float], whole: dict[str, float], key: str) -> str:
    """`2.9 %`."""
    share = 100 * part[key] / whole[key]
    return f"{share:,.0f} %" if share >= 100 else f"{share:.2g} %"


SETTINGS = {
    "data.augmentation": "augmentation",
    "model.width": "width",
    "norm": "normalisation",
    "optim.batch_size": "batch",
    "optim.epochs": "epochs",
    "optim.lr": "learning rate",
    "optim.momentum": "momentum",
    "optim.weight_decay": "weight decay",
    "optim.schedule": "schedule",
    "test_statistics": "statistics at test time",
}


def hyperparameters(context: Context) -> Table:
    """The settings of every pair of data set and network, from the records."""
    printed: dict[str, dict[str, str]] = {}
    for record in context.records:
        run = record.config
        name = f"{DATA_NAMES[run.data.name]}, {NETWORKS[run.model.name]}, width {run.model.width:g}"
        values = {title: str(OmegaConf.select(run, key)) for key, title in SETTINGS.items() if key != "model.width"}
        if run.optim.schedule == "step":
            values["schedule"] = f"× {run.optim.step_gamma:g} every {run.optim.step_every} epochs"
        values["augmentation"] = (run.data.augmentation or "the data set's own").replace("crop_flip", "crop and flip")
        printed[name] = values | {"steps": str(record.summary["counts"]["gradients"])}
    table = pd.DataFrame(printed).rename_axis("setting")
    return Table(table, table.reset_index().melt("setting", var_name="runs", value_name="value"))


def mean_by_index(records: Sequence[Record], metric: str) -> pd.DataFrame:
    """Last value of a metric by block: mean, low and high over seeds; the index counts from 0."""
    values = pd.DataFrame([r.values(metric) for r in records if not r.diverged])
    return pd.DataFrame({"mean": values.mean(), "low": values.min(), "high": values.max()})


def alignment(context: Context) -> Figure:
    """Cosine of target and guess in every block through training."""
    figure, axes = style.new(2, len(GUESSES), height=3.2, sharex=True, sharey=True)
    blocks = context.records[0].values("cosine").index
    colors = block_colors(len(blocks))
    numbers = []
    for row, space in zip(axes, SPACES, strict=True):
        for ax, guess in zip(row, GUESSES, strict=True):
            records = context.select(guess=guess, space=space)
            for block, color in zip(blocks, colors, strict=True):
                data = mean_curve([with_index(r, "cosine", block) for r in records], "cosine")
                style.curve(ax, data, color=color, band=False, label=f"block {block + 1}", linewidth=1)
                numbers.append(data.assign(space=space, guess=guess, block=block + 1))
            ax.axhline(0, color="0.6", linewidth=0.6)
        row[0].set_ylabel(f"cosine, {SPACE_NAMES[space]}")
    for ax, guess in zip(axes[0], GUESSES, strict=True):
        ax.set_title(f"{GUESS_NAMES[guess]} guess")
    for ax in axes[1]:
        ax.set_xlabel("epochs")
    style.legend_below(figure, *axes[0, 0].get_legend_handles_labels(), len(blocks))
    return Figure(figure, pd.concat(numbers))


def block_colors(count: int) -> list[tuple[float, ...]]:
    """From the first block, dark, to the last, light."""
    import matplotlib

    return [matplotlib.colormaps["viridis"](0.9 * k / max(1, count - 1)) for k in range(count)]


def with_index(record: Record, metric: str, index: int) -> Record:
    """The record with one block's values of a metric in the place of the whole net's."""
    rows = record.series(metric, index).assign(index=-1)
    return Record(record.folder, record.config, rows, record.summary)


CURVES = (
    ("train_loss", "training loss"),
    ("test_loss", "test loss"),
    ("train_accuracy", "training accuracy"),
    ("test_accuracy", "test accuracy"),
)


def learning_curves(context: Context) -> Figure:
    """Loss and accuracy through training; a row per space."""
    figure, axes = style.new(2, len(CURVES), height=3.4, sharex=True, sharey="col")
    numbers = []
    for row, space in zip(axes, SPACES, strict=True):
        for (target, guess), (name, color) in CELLS.items():
            where = {"space": space} if target != guess else {}
            records = context.select(target=target, guess=guess, **where)
            for ax, (metric, _) in zip(row, CURVES, strict=True):
                data = mean_curve(records, metric)
                data = data[data["step"] > 0]
                style.curve(ax, data, color=color, label=name, linewidth=1.1)
                numbers.append(data.assign(metric=metric, space=space, target=target, guess=guess))
        row[0].set_ylabel(f"guess in the {SPACE_NAMES[space]}")
    for ax, (metric, title) in zip(axes[0], CURVES, strict=True):
        ax.set_title(title)
        if "loss" in metric:
            ax.set_yscale("log")
        else:
            ax.set_ylim(0, 1)
    for ax in axes[1]:
        ax.set_xlabel("epochs")
    style.legend_below(figure, *axes[0, 0].get_legend_handles_labels(), len(CELLS))
    return Figure(figure, pd.concat(numbers))


def draw_quantiles(ax: Axes, records: Sequence[Record], metric: str, shift: float, color: str) -> pd.DataFrame:
    """Median and 10 to 90 % of a metric by block, means over seeds."""
    low, middle, high = (mean_by_index(records, f"{metric}_q{q}")["mean"] for q in (10, 50, 90))
    x = np.asarray(middle.index) + 1 + shift
    ax.vlines(x, low, high, color=color, linewidth=1.2, alpha=0.6)
    ax.plot(x, middle, "o", color=color, markersize=2.6)
    return pd.DataFrame({"block": middle.index + 1, "q10": low, "q50": middle, "q90": high, "metric": metric})


def norms(context: Context) -> Figure:
    """Coefficients, norm ratios of guess to target, and of estimate to true gradient, by block."""
    figure, axes = style.new(3, 2, height=4.6, sharex=True, sharey="row")
    numbers = []
    for column, space in zip(axes.T, SPACES, strict=True):
        for place, guess in enumerate(GUESSES):
            records = context.select(guess=guess, space=space)
            color, shift = CELLS["global", guess][1], 0.16 * (place - 1.5)
            for ax, metric in zip(column, ("coefficient", "norm_ratio"), strict=False):
                data = draw_quantiles(ax, records, metric, shift, color)
                numbers.append(data.assign(space=space, guess=guess))
            ratio = mean_by_index(records, "estimate_norm_ratio")
            column[2].plot(ratio.index + 1 + shift, ratio["mean"], "o", color=color, markersize=3)
            numbers.append(
                pd.DataFrame({"block": ratio.index + 1, "q50": ratio["mean"]}).assign(
                    metric="estimate_norm_ratio", space=space, guess=guess
                )
            )
        column[0].set(title=f"guess in the {SPACE_NAMES[space]}")
        column[0].set_yscale("symlog", linthresh=1e-3)
        column[0].axhline(0, color="0.6", linewidth=0.6)
        for ax in column[1:]:
            ax.set_yscale("log")
            ax.axhline(1, color="0.6", linewidth=0.6)
        column[2].set_xlabel("block")
        column[2].set_xticks(ratio.index + 1)
    for ax, label in zip(axes[:, 0], ("coefficient c", "‖guess‖ / ‖target‖", "‖estimate‖ / ‖gradient‖"), strict=True):
        ax.set_ylabel(label)
    marks = [Line2D([], [], color=CELLS["global", g][1], marker="o", markersize=3, linewidth=1.2) for g in GUESSES]
    style.legend_below(figure, marks, [CELLS["global", g][0] for g in GUESSES], len(GUESSES))
    return Figure(figure, pd.concat(numbers))


def width(context: Context) -> Figure:
    """Final test accuracy against the net's width."""
    figure, ax = style.new(width=style.COLUMN, height=2.4)
    widths = sorted({r.config.model.width for r in context.records})
    numbers = []
    for (target, guess), space in (
        (("global", "global"), None),
        *((("global", guess), space) for guess in ("local", "random") for space in SPACES),
    ):
        name, color = CELLS[target, guess]
        rows = []
        for w in widths:
            where = {"space": space} if space else {}
            values = final(context.select(guess=guess, model__width=w, **where), "test_accuracy")
            mean, _ = spread(values)
            low, high = (min(values), max(values)) if values else (np.nan, np.nan)
            rows.append({"width": w, "mean": mean, "low": low, "high": high, "runs": len(values)})
        data = pd.DataFrame(rows)
        label = name if space is None else f"{name}, {SPACE_NAMES[space]}"
        ax.errorbar(
            data["width"] * 2 ** (0.02 * (len(numbers) - 2)),  # side by side
            data["mean"], yerr=[data["mean"] - data["low"], data["high"] - data["mean"]], color=color,
            linestyle=SPACE_DASH[space or "activity"], marker="o", markersize=3, capsize=2, linewidth=1.2, label=label,
        )  # fmt: skip
        numbers.append(data.assign(guess=guess, space=space))
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [f"{w:g}" for w in widths])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="width (factor on the channels)", ylabel="test accuracy")
    _, labels = ax.get_legend_handles_labels()
    lines = [Line2D([], [], color=c[0].get_color(), linestyle=c[0].get_linestyle()) for c in ax.containers]
    style.legend_below(figure, lines, labels, 2)
    return Figure(figure, pd.concat(numbers))


ERROR_SPACES = {
    "activity": ("activities", style.ORANGE),
    "weight": ("weights", style.BLUE),
    "weight_per_sample": ("weights, per sample", style.GREEN),
}


def estimator_error(context: Context) -> Figure:
    """Cosine against random tangents and dimension, and relative error by block, with the local guess beside."""
    figure, axes = style.new(1, 3, height=2.3)
    largest = max(r.config.model.width for r in context.records)
    main = context.select(model__width=largest)
    numbers = [draw_tangents(axes[0], main), draw_dimensions(axes[1], context.records), draw_errors(axes[2], main)]
    axes[0].set(xlabel="random guesses averaged", ylabel="cosine to the gradient", xscale="log", yscale="log")
    axes[1].set(xlabel="dimension of the guess", ylabel="|cosine|, one random guess", xscale="log", yscale="log")
    axes[2].set(xlabel="block", ylabel="relative error", yscale="log")
    most = max(r.config.tangents for r in main)
    every = 1 if most <= 16 else 2  # powers of two that get a label
    counts = [2**k for k in range(0, 20, every) if 2**k <= most]
    axes[0].set_xticks(counts, [str(n) for n in counts])
    axes[0].xaxis.set_minor_locator(NullLocator())
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
    style.panel(axes, [f"random guesses, width {largest:g}", "dimension", f"by block, width {largest:g}"])
    marks = [Line2D([], [], color=color) for _, color in ERROR_SPACES.values()]
    marks += [Line2D([], [], color="0.3", linestyle=dash) for dash in ("-", "--")]
    labels = [name for name, _ in ERROR_SPACES.values()] + ["random guess", "local guess"]
    style.legend_below(figure, marks, labels, 5)
    return Figure(figure, pd.concat(numbers))


def draw_tangents(ax: Axes, records: Sequence[Record]) -> pd.DataFrame:
    """Mean cosine over blocks against the number of random guesses; a horizontal line for one local guess."""
    rows = []
    metrics = {str(m) for r in records for m in r.history["metric"].unique()}
    for space, (_, color) in ERROR_SPACES.items():
        counts = sorted(int(m.rsplit("/", 1)[1]) for m in metrics if m.startswith(f"error_cosine/random/{space}/"))
        means = [float(mean_by_index(records, f"error_cosine/random/{space}/{n}")["mean"].mean()) for n in counts]
        local = float(mean_by_index(records, f"error_cosine/local/{space}")["mean"].mean())
        ax.plot(counts, means, color=color, marker="o", markersize=2.5)
        ax.axhline(local, color=color, linestyle="--", linewidth=1)
        rows += [{"panel": "tangents", "space": space, "x": n, "value": v} for n, v in zip(counts, means, strict=True)]
        rows.append({"panel": "tangents", "space": f"{space}, local guess", "x": 1, "value": local})
    return pd.DataFrame(rows)


def draw_dimensions(ax: Axes, records: Sequence[Record]) -> pd.DataFrame:
    """Size of the cosine of one random guess against the dimension, a point per block and width (mean over seeds)."""
    rows = []
    for space, (_, color) in ERROR_SPACES.items():
        points = [
            {"x": dimension, "value": abs(value), "block": block, "width": r.config.model.width}
            for r in records
            for (block, dimension), value in zip(
                r.values(f"dimension/{space}").items(), r.values(f"error_cosine/random/{space}/1"), strict=True
            )
        ]
        means = pd.DataFrame(points).groupby(["width", "block", "x"])["value"].mean().reset_index()
        ax.plot(means["x"], means["value"], "o", color=color, markersize=2.5)
        rows.append(means.assign(panel="dimension", space=space))
    found = pd.concat(rows)
    ends = np.array([found["x"].min(), found["x"].max()])
    ax.plot(ends, np.sqrt(2 / (np.pi * ends)), color="0.4", linewidth=0.8, linestyle=":")
    ax.text(0.97, 0.97, r"dotted: $\sqrt{2/(\pi d)}$", transform=ax.transAxes, fontsize=6, ha="right", va="top")
    return found


def draw_errors(ax: Axes, records: Sequence[Record]) -> pd.DataFrame:
    """Relative error by block of one random guess (solid) and of the local guess (dashed)."""
    rows = []
    for space, (_, color) in ERROR_SPACES.items():
        for case, dash in ((f"random/{space}/1", "-"), (f"local/{space}", "--")):
            data = mean_by_index(records, f"relative_error/{case}")
            ax.plot(data.index + 1, data["mean"], color=color, linestyle=dash, marker="o", markersize=2)
            rows.append(pd.DataFrame({"panel": "block", "space": case, "x": data.index + 1, "value": data["mean"]}))
    return pd.concat(rows)


COSTS = {
    "forward": ("forward pass", style.BLACK),
    "jvp": ("Jacobian-vector product", style.RED),
    "tangents": ("exact per sample, eight products at a time", style.GREEN),
    "backpropagation": ("backpropagation", style.BLUE),
}


def forward_mode_cost(context: Context) -> Figure:
    """Time and peak memory from every starting block, the memory relative to backpropagation through the whole net."""
    rows = []
    for record in context.records:
        for metric, value in record.summary["metrics"].items():
            kind, case, block = metric.split("/")
            rows.append({"measure": kind, "case": case, "block": int(block) + 1, "value": value})
    found = pd.DataFrame(rows).groupby(["measure", "case", "block"])["value"].agg(["mean", "min", "max"]).reset_index()
    whole = found.query("measure == 'seconds' and case == 'forward' and block == 1")["mean"].iloc[0]
    most = found.query("measure == 'bytes' and case == 'backpropagation' and block == 1")["mean"].iloc[0]
    figure, axes = style.new(1, 2, height=2.2)
    for case, (name, color) in COSTS.items():
        for ax, (measure, unit) in zip(axes, (("seconds", whole), ("bytes", most)), strict=True):
            data = found[(found["case"] == case) & (found["measure"] == measure)]
            ax.plot(data["block"], data["mean"] / unit, color=color, marker="o", markersize=3, label=name)
            ax.fill_between(data["block"], data["min"] / unit, data["max"] / unit, color=color, alpha=0.15, linewidth=0)
    axes[0].set(xlabel="from block", ylabel="time / forward pass from block 1", ylim=(0, None))
    axes[1].set(xlabel="from block", ylabel="peak memory / backpropagation", ylim=(0, None))
    run = context.records[0].config
    style.panel(axes, [f"time, width {run.model.width:g}, batch {run.optim.batch_size}", "memory"])
    style.legend_below(figure, *axes[1].get_legend_handles_labels(), 2)
    return Figure(figure, found)


COUPLING = {
    "batch_statistics": ("BatchNorm, batch statistics", style.RED),
    "running_statistics": ("BatchNorm, running statistics", style.BLUE),
    "group_norm": ("GroupNorm", style.GREEN),
}


def batchnorm_coupling(context: Context) -> Figure:
    """Error of one-pass coefficients under three normalisations, by block: per sample, and summed over the batch."""
    figure, axes = style.new(1, 2, height=2.2, sharey=True)
    numbers = []
    for case, (name, color) in COUPLING.items():
        for ax, metric in zip(axes, ("per_sample_error", "batch_level_error"), strict=True):
            data = mean_by_index(context.records, f"{metric}/{case}")
            ax.plot(data.index + 1, data["mean"], color=color, marker="o", markersize=3, label=name)
            numbers.append(data.assign(block=data.index + 1, metric=metric, case=case))
            ax.set(xlabel="block", yscale="log")
    axes[0].set_ylabel("relative error of one pass")
    style.panel(axes, ["coefficients of samples", "their sum over the batch"])
    style.legend_below(figure, *axes[0].get_legend_handles_labels(), 3)
    return Figure(figure, pd.concat(numbers))


def box(ax: Axes, x: float, y: float, text: str, *, color: str = "0.95", edge: str = "0.3", wide: float = 1.3) -> None:
    """A rounded box with its centre at (x, y)."""
    corner = (x - wide / 2, y - 0.32)
    style_of = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": color, "edgecolor": edge, "linewidth": 0.8}
    ax.add_patch(FancyBboxPatch(corner, wide, 0.64, **style_of))
    ax.text(x, y, text, ha="center", va="center")


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str, **options: object) -> None:
    """An arrow between two points."""
    look = {"arrowstyle": "-|>", "mutation_scale": 8, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0} | options
    ax.add_patch(FancyArrowPatch(start, end, color=color, **look))


def figure_1(context: Context) -> Figure:
    """The schematic: local guess at block j, the later blocks' Jacobian-vector product, and the projection."""
    figure, (left, right) = style.new(1, 2, height=2.1, width_ratios=[3.4, 1])
    draw_chain(left)
    draw_projection(right)
    style.panel((left, right), ["target and guess at block j", "the update"])
    for ax in (left, right):
        ax.axis("off")
        ax.set_aspect("equal")
    numbers = pd.DataFrame(
        [
            {"symbol": "G", "meaning": "guess: gradient of the local loss a_j at the output of block j"},
            {"symbol": "T", "meaning": "target: gradient of the global loss at the output of block j, never formed"},
            {"symbol": "<T, G>", "meaning": "Jacobian-vector product of the later blocks along G"},
            {"symbol": "c G", "meaning": "estimate, c = <T, G> / <G, G>"},
        ]
    )
    return Figure(figure, numbers)


CHAIN = (  # place, width and text of the boxes
    (0.0, 1.2, "images"),
    (2.0, 1.6, "blocks < j"),
    (4.2, 1.4, "block j"),
    (6.6, 1.7, "block j+1"),
    (8.6, 0.8, "…"),
    (10.2, 1.6, "block K"),
    (12.2, 1.2, "loss L"),
)


def draw_chain(ax: Axes) -> None:
    """The blocks in a row, the auxiliary net above block j, and the Jacobian-vector product below the later ones."""
    for x, wide, text in CHAIN:
        mine = text == "block j"
        box(ax, x, 0, text, wide=wide, color="#FDE9D0" if mine else "0.95", edge=style.ORANGE if mine else "0.3")
    for (a, wide_a, _), (b, wide_b, _) in pairwise(CHAIN):
        arrow(ax, (a + wide_a / 2, 0), (b - wide_b / 2, 0), "0.3")
    box(ax, 5.4, 1.75, "auxiliary net: local loss $a_j$", wide=4.4, color="#FBE3DA", edge=style.RED)
    arrow(ax, (5.22, 0.05), (5.22, 1.43), "0.3")
    arrow(ax, (5.5, 1.43), (5.5, 0.05), style.RED)
    ax.text(5.65, 0.85, "guess $G=\\nabla a_j$", color=style.RED, va="center")
    arrow(ax, (5.4, -0.75), (12.2, -0.75), style.BLUE)
    ax.plot([5.4, 5.4], [0, -0.75], color=style.BLUE, linewidth=1.2)
    arrow(ax, (12.2, -0.75), (12.2, -0.32), style.BLUE)
    ax.text(8.8, -1.15, "$G$ pushed forward: $\\langle T, G\\rangle$ by a Jacobian-vector product", color=style.BLUE,
            ha="center", va="center")  # fmt: skip
    ax.plot([12.2, 12.2], [-0.75, -1.6], color=style.BLACK, linewidth=1)
    ax.plot([12.2, 4.2], [-1.6, -1.6], color=style.BLACK, linewidth=1)
    arrow(ax, (4.2, -1.6), (4.2, -0.34), style.BLACK)
    update = "update of block j: $c\\,G$,  $c=\\langle T,G\\rangle\\,/\\,\\Vert G\\Vert^2$"
    ax.text(8.2, -1.9, update, ha="center", va="center")
    ax.set(xlim=(-0.8, 13), ylim=(-2.2, 2.2))


def draw_projection(ax: Axes) -> None:
    """The target, the guess, and the projection of the first on the second."""
    target, guess = np.array([1.5, 2.1]), np.array([3.0, 0.9])
    onto = guess * (target @ guess) / (guess @ guess)
    arrow(ax, (0, 0), tuple(guess), style.RED)
    arrow(ax, (0, 0), tuple(target), style.GREEN)
    arrow(ax, (0, 0), tuple(onto), style.BLACK, linewidth=2.2)
    ax.plot([target[0], onto[0]], [target[1], onto[1]], color="0.5", linestyle=":", linewidth=1)
    ax.text(target[0] - 0.1, target[1] + 0.1, "$T$ (not formed)", color=style.GREEN, ha="center", va="bottom")
    ax.text(guess[0] + 0.1, guess[1], "$G$", color=style.RED, va="center")
    ax.text(onto[0] / 2 + 0.15, onto[1] / 2 - 0.15, "$c\\,G$", va="top", ha="left")
    ax.set(xlim=(-0.3, 3.6), ylim=(-0.6, 2.9))
