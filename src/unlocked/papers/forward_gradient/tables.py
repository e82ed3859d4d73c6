"""Tables of forward gradients, as `configs/forward_gradient/items.yaml` describes them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import pandas as pd

from unlocked.forward_gradient import guesses
from unlocked.forward_gradient.method import Method
from unlocked.items.context import Context
from unlocked.items.frames import Frames
from unlocked.items.table import Row, Table, mean_deviation, tabulate
from unlocked.vision.data import DATASETS
from unlocked.vision.networks import AUXILIARIES, NETWORKS

SPACES = {"activity": "activities", "weight": "weights"}
SEEDS_NOTE = "Mean ± standard deviation over seeds; a dash: not run at this scale."
FROZEN_NOTE = "Frozen blocks, the control: only the last block and the classifier are trained, the others are as drawn."
CORNER = "test (training) accuracy, %"
ACCURACY = mean_deviation("test_accuracy", beside="train_accuracy")
ACCURACIES = ("test_accuracy", "train_accuracy", "best_test_accuracy")


def guess_order() -> list[str]:
    """The target itself, none, then guesses from auxiliary nets, then noise."""
    order = ("target", "nothing", "head", "noise")
    return sorted(guesses.names(), key=lambda name: order.index(guesses.get(name).source))


def method_name(run: Row) -> str:
    """What a run is, in a table: `global target, local guess, weights`."""
    method = Method(run["target"], run["guess"])
    if not method.is_projected:
        return method.label
    usual = run["averaged"] == (run["space"] == "weight")
    unusual = "" if usual else ", averaged" if run["averaged"] else ", per sample"
    return f"{method.of_target.label} target, {method.label}, {SPACES[run['space']]}{unusual}"


def by_method(frames: Frames) -> Frames:
    """The runs, exact methods first, then by target, guess (from auxiliary nets, then noise), space, auxiliary net and
    seed; `method`: what each is."""

    def order(run: Row) -> tuple[Any, ...]:
        projected, guess = Method(run["target"], run["guess"]).is_projected, guess_order().index(run["guess"])
        settings = run.get("space") == "weight", not run.get("averaged"), str(run.get("auxiliary")), run["seed"]
        return projected, run["target"], guess, *settings

    runs = frames.runs.to_dict("records")
    table = frames.runs.assign(method=[method_name(run) for run in runs])
    return Frames(table.iloc[sorted(range(len(runs)), key=lambda k: order(runs[k]))], frames.history)


def under_every(numbers: pd.DataFrame, column: str, values: Iterable[str]) -> pd.DataFrame:
    """The rows of each of the values of a column, those that have none under all of them; a method's together."""
    has_none = numbers[column].isna() | (numbers[column] == "none")
    parts = [numbers[has_none | (numbers[column] == value)].assign(**{column: value}) for value in values]
    return pd.concat(parts).set_index("method").loc[numbers["method"].unique()].reset_index()


def accuracy(context: Context) -> Table:
    frames = by_method(context.frames)
    kinds = [kind for kind in AUXILIARIES if kind in set(frames.column("auxiliary"))]
    frames = frames.assign(auxiliary=frames.column("auxiliary").astype(object).fillna("none"))
    numbers = frames.summary(["method", "target", "guess", "space", "averaged", "auxiliary"], *ACCURACIES)
    shown = under_every(numbers, "auxiliary", kinds)
    headless = "Backpropagation and random guesses at the global target use no auxiliary net."
    notes = (SEEDS_NOTE, headless, FROZEN_NOTE, context.learning_rates(frames, "method"))
    cells = {"{auxiliary} auxiliary": ACCURACY}
    return tabulate(shown, "{method}", cells, corner=CORNER, notes=notes, numbers=numbers)


def noise(context: Context) -> Table:
    frames = by_method(context.frames)
    numbers = frames.summary(["method", "distribution"], *ACCURACIES)
    shown = under_every(numbers, "distribution", numbers["distribution"].dropna().unique())
    shown = shown.assign(title=shown["distribution"].str.capitalize())
    notes = (SEEDS_NOTE, FROZEN_NOTE, context.learning_rates(frames, "method"))
    return tabulate(shown, "{method}", {"{title}": ACCURACY}, corner=CORNER, notes=notes, numbers=numbers)


def aligned_auxiliary(context: Context) -> Table:
    frames = by_method(context.frames)
    kinds = frames.column("auxiliary").replace("copy", "copy of block 2")
    names = frames.runs["method"] + (", " + kinds).fillna("")
    frames = frames.assign(method=names, cosine=frames.last("cosine").iloc[:, 0])
    numbers = frames.summary(["method"], *ACCURACIES, "cosine")
    cells = {"accuracy, %": ACCURACY, "cosine": mean_deviation("cosine", ".3f", 1.0)}
    exact = "Backpropagation's guess is the target, so that its cosine is 1; so is local learning's."
    notes = (SEEDS_NOTE, exact, FROZEN_NOTE, context.learning_rates(frames, "method"))
    return tabulate(numbers, "{method}", cells, corner="method", notes=notes)


TAXONOMY = (
    ("global", "itself", "backpropagation", "backpropagation"),
    ("global", "random", "forward gradient, weight perturbation (Baydin et al. 2022)",
     "forward gradient, activity perturbation (Ren et al. 2022)"),
    ("global", "local", "the paper's", "the paper's (Figure 1)"),
    ("global", "NTK, fixed NTK", "the paper's", "the paper's"),
    ("local", "itself", "decoupled local learning", "decoupled local learning"),
    ("local", "random", "local losses, weight perturbation (compared in Ren et al. 2022)",
     "local losses, activity perturbation (Ren et al. 2022)"),
    ("local", "NTK, fixed NTK", "the paper's", "the paper's"),
)  # fmt: skip


def taxonomy(_: Context) -> Table:
    numbers = pd.DataFrame(TAXONOMY, columns=["target", "guess", "in the weights", "in the activities"])
    notes = (
        "Random guesses are fresh noise in every step; local ones the gradient of the block's own auxiliary loss; NTK "
        "ones the same with an auxiliary net drawn anew every step, fixed NTK with one frozen as it was drawn.",
        "Which cells earlier work covers is our reading of the cited papers.",
    )
    return Table.of_texts(numbers, notes=notes)


PARTS = ("blocks", "classifier", "cnn", "mlp", "linear", "copy")


def auxiliary_cost(context: Context) -> Table:
    blocks = block_costs(context.frames)
    totals = blocks.groupby(["network", "part"], sort=False)[["parameters", "flops"]].sum().reset_index()
    of_net = totals["part"].isin(["blocks", "classifier"])
    nets = totals[of_net].groupby("network", sort=False)[["parameters", "flops"]].sum()
    shown = pd.concat([nets.reset_index().assign(part="the net"), totals[~of_net]])
    shown = shown.join(nets.add_suffix(" of the net"), on="network")
    shown = shown.set_index("network").loc[nets.index].reset_index()

    def share(key: str, row: Row) -> str:
        percent = 100 * row[key] / row[f"{key} of the net"]
        beside = f" ({percent:,.0f} %)" if percent >= 100 else f" ({percent:.2g} %)"
        return f"{row[key]:,.0f}" + beside * (row["part"] != "the net")

    notes = (
        f"Net of width {context.frames.runs['model.width'].iloc[0]:g} on this scale's images; the parentheses give the "
        "share of the net's. The numbers of every block are in the CSV file (block 0: the total).",
    )
    numbers = pd.concat([totals.assign(block=0), blocks])[["network", "part", "block", "parameters", "flops"]]
    cells = {"parameters": partial(share, "parameters"), "multiply-adds": partial(share, "flops")}
    return tabulate(shown, "{network}: {part}", cells, corner="net", notes=notes, numbers=numbers)


def block_costs(frames: Frames) -> pd.DataFrame:
    """Parameters and multiply-adds of every part of every network by block, counted from 1."""
    rows = frames.parts("quantity", "part").join(frames.runs["model.name"], on="run")
    rows["order"] = rows["model.name"].map(list(NETWORKS).index) * len(PARTS) + rows["part"].map(PARTS.index)
    table = rows.pivot(index=["order", "model.name", "part", "index"], columns="quantity", values="value").reset_index()
    titles = table["model.name"].map(lambda name: NETWORKS[name].title)
    counts = table[["parameters", "flops"]].astype(int)
    return pd.DataFrame({"network": titles, "part": table["part"], "block": table["index"] + 1}).join(counts)


SETTINGS = {
    "data.augmentation": "augmentation",
    "optim.batch_size": "batch",
    "optim.epochs": "epochs",
    "optim.lr": "learning rate",
    "optim.momentum": "momentum",
    "optim.weight_decay": "weight decay",
    "optim.schedule": "schedule",
    "test_statistics": "statistics at test time",
    "model.init": "initialisation",
    "model.auxiliaries": "auxiliary nets",
    "counts.gradients": "steps",
}


def hyperparameters(context: Context) -> Table:
    columns: dict[str, dict[str, str]] = {}
    for run in context.frames.runs.to_dict("records"):
        values = {title: str(run[key]) for key, title in SETTINGS.items()}
        if run["optim.schedule"] == "step":
            values["schedule"] = f"× {run['optim.step_gamma']:g} every {run['optim.step_every']} epochs"
        if run["optim.schedule"] == "proportional":
            values["schedule"] = f"× {run['optim.step_gamma']:g} every {run['optim.step_every']} % of the run"
        own = pd.isna(run["data.augmentation"])
        values["augmentation"] = "the data set's own" if own else values["augmentation"].replace("_", " and ")
        data, network = DATASETS[run["data.name"]].title, NETWORKS[run["model.name"]].title
        columns[f"{data}, {network}, width {run['model.width']:g}"] = values
    table = pd.DataFrame(columns).rename_axis("setting").reset_index()
    return Table.of_texts(table, numbers=table.melt("setting", var_name="runs", value_name="value"))
