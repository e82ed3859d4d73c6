"""Tables of A²CiD², as `configs/acid/items.yaml` describes them: runs in, a table of numbers with formats out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from unlocked.gossip import clock as clocks
from unlocked.gossip import schedule as schedules
from unlocked.gossip import stationary, topology
from unlocked.gossip.clock import Clock
from unlocked.gossip.momentum import Constants
from unlocked.gossip.stationary import Spectrum
from unlocked.gossip.topology import GRAPHS
from unlocked.items.context import Context
from unlocked.items.frames import Frames
from unlocked.items.measures import consensus, exponent
from unlocked.items.table import NONE, Format, Row, Table, mean_deviation, number, tabulate
from unlocked.papers.acid.comparisons import compared
from unlocked.papers.acid.methods import GRAPH_ROWS, NAMES, PARTITION_NAMES, RATE_ROWS, below, constants, reference
from unlocked.vision.networks import NETWORKS

OVER_SEEDS = "Mean ± standard deviation over seeds"
Cases = Mapping[str, Mapping[str, Any]]


def table_1(context: Context) -> Table:
    """From the eigenvalues of averaging alone in expectation; they give the constants that the symbols name."""
    rows, largest = [], context.settings.largest
    for name in ("complete", "exponential", "torus", "ring"):
        spectrum = Spectrum.of(topology.build(name, largest))
        for method, symbol, own in (
            ("asynchronous gossip (the baseline)", "χ₁", Constants.baseline()),
            ("A²CiD²", "√(χ₁χ₂)", Constants.accelerated(*spectrum.chi)),
        ):
            rows.append((method, symbol, name, 1 / stationary.averaging_decay(spectrum, own)))
    numbers = pd.DataFrame(rows, columns=["method", "symbol", "graph", "time_scale"])
    shown = numbers.assign(title=numbers["graph"].map(lambda name: GRAPHS[name].title))
    cells: dict[str, Format] = {
        "strongly convex": lambda _: NONE,
        "non-convex": lambda _: NONE,
        "time scale": "{symbol}".format_map,
        f"{{title}}, n = {largest}": number("time_scale"),
    }
    notes = (
        "Time scales in gradient times, from the eigenvalues of the expected dynamics. The published rates for "
        "strongly convex and for non-convex functions were neither read in the published PDF nor derived here.",
    )
    return tabulate(shown, "{method}", cells, corner="method", notes=notes, numbers=numbers)


def table_2(_: Context) -> Table:
    sizes, symbols = (16, 64, 256, 1024), {"chi1": "χ₁", "chi2": "χ₂", "root": "√(χ₁χ₂)"}
    numbers = constants(GRAPHS, sizes)
    wide = numbers.pivot(index="graph", columns="workers").loc[list(GRAPHS)]
    shown = wide.set_axis([f"{key} {n}" for key, n in wide], axis=1)
    shown["title"] = [GRAPHS[name].title for name in shown.index]
    cells = {f"{symbol} (n = {n})": number(f"{key} {n}") for key, symbol in symbols.items() for n in sizes[:2]}
    for key in ("chi1", "root"):
        shown[key] = wide[key].apply(lambda row: exponent(row.index, row), axis=1)
        cells[f"{symbols[key]} ~ n^"] = number(key)
    cells["averagings"] = "n/2".format_map
    notes = (
        "Communication rate 1: every worker takes part in one averaging per gradient on average, n/2 averagings per "
        "unit of time over all workers. Exponents are least-squares slopes of log χ against log n over "
        f"n = {', '.join(map(str, sizes))}; where a constant grows like log n they are small and not constant.",
    )
    numbers = numbers.assign(communications=numbers["workers"] / 2)
    return tabulate(shown, "{title}", cells, corner="graph", notes=notes, numbers=numbers)


# Of table 3: a stated time model, not a measurement. 300 epochs of CIFAR-10 in batches of 128; ResNet-18 in float32.
TABLE_3_GRADIENTS, TABLE_3_BYTES = 300 * 390, 4 * 11_173_962
SPREAD = Clock(law="gamma", variation=0.3, latency=5e-5, bandwidth=1.25e9)
TABLE_3_CLOCKS = {
    "equal gradients": Clock(law="constant", latency=5e-5, bandwidth=1.25e9),
    "spread of 30 %": SPREAD,
    "spread of 30 %, one slow worker (×2)": dataclasses.replace(SPREAD, slow_workers=1),
}
TABLE_3_ROWS = {
    "allreduce": "AR-SGD", "overlapped": "AR-SGD, overlapped", "baseline": "asynchronous", "ratio": "ratio",
    "overlapped_ratio": "ratio, overlapped", "idle": "idle at a barrier (%)",
}  # fmt: skip
BACKWARD = 2 / 3  # of a gradient's time is the backward pass, which costs twice the forward


def training_minutes(model: str, method: str, workers: int, seed: int) -> float:
    """Virtual minutes until the budget of table 3 is done."""
    clock = TABLE_3_CLOCKS[model]
    if method == "baseline":
        end = clocks.gradient_events(clock, workers, TABLE_3_GRADIENTS, seed)[0][-1]
    else:
        overlap = BACKWARD if method == "overlapped" else 0.0
        steps = clocks.synchronous_steps(clock, workers, seed, TABLE_3_BYTES, overlap)
        end = next(itertools.islice(steps, TABLE_3_GRADIENTS // workers - 1, None))
    return float(end) * clock.gradient_seconds / 60


def barrier_idle(model: str, workers: int, seed: int) -> float:
    """Percent of time that workers on a ring lose by waiting for their averagings, over 200 gradients each."""
    graph = topology.build("ring", workers)
    return 100 * schedules.barrier_idle(graph, 200 * workers, seed, TABLE_3_CLOCKS[model])


def time_model(sizes: Sequence[int], seeds: Sequence[int]) -> pd.DataFrame:
    """The virtual part of table 3: a row per time model, method and number of workers, `minutes` its mean over seeds.

    Of the ratios it is the ratio of these means, of the row `idle` percent.
    """
    keys, ways = ["model", "method", "workers"], ("allreduce", "overlapped", "baseline")
    cases = list(itertools.product(TABLE_3_CLOCKS, ways, sizes, seeds))
    every = pd.DataFrame(cases, columns=[*keys, "seed"]).assign(minutes=[training_minutes(*case) for case in cases])
    waits = [(m, "idle", n, s, barrier_idle(m, n, s)) for m, n, s in itertools.product(TABLE_3_CLOCKS, sizes, seeds)]
    every = pd.concat([every, pd.DataFrame(waits, columns=every.columns)])
    table = every.groupby(keys, sort=False)["minutes"].agg(minutes="mean", deviation="std").fillna(0.0).reset_index()
    wide = table.pivot(index=["model", "workers"], columns="method", values="minutes")
    ratios = {"ratio": wide["allreduce"] / wide["baseline"], "overlapped_ratio": wide["overlapped"] / wide["baseline"]}
    return pd.concat([table, *(r.rename("minutes").reset_index().assign(method=name) for name, r in ratios.items())])


def table_3(context: Context) -> Table:
    virtual = time_model(context.settings.workers, context.seeds)
    order = list(itertools.product(TABLE_3_CLOCKS, TABLE_3_ROWS))
    shown = virtual.set_index(["model", "method"]).loc[order].reset_index()
    shown["row"] = shown["method"].map(TABLE_3_ROWS) + ", " + shown["model"]
    measured = context.frames.summary(["method", "workers"], seconds="training_seconds").assign(model="measured")
    measured["row"] = measured["method"].map(NAMES) + ", measured (seconds)"

    def cell(row: Row) -> str:
        if row["model"] == "measured":
            return mean_deviation("seconds", ".2f", 1.0)(row)
        return number("minutes", ".2f" if "ratio" in row["method"] else ".1f")(row)

    numbers = pd.concat([virtual, measured[["model", "method", "workers", "seconds"]]])
    corner = "virtual minutes, or seconds"
    return tabulate(pd.concat([shown, measured]), "{row}", {"n = {workers}": cell}, corner=corner, numbers=numbers)


def accuracies(context: Context, rows: Cases, setting: str) -> Table:
    """Test accuracy of the averaged model: a row per case, a column per number of workers."""
    frames = context.frames.labelled(rows)
    shown = frames.summary(["row", "method", setting, "workers"], mean="test_accuracy")
    notes = (f"{OVER_SEEDS}; model: average of all workers.", context.learning_rates(frames, "row"))
    numbers = shown.drop(columns="row").rename(columns={"mean_deviation": "deviation"})
    cells = {"n = {workers}": mean_deviation("mean")}
    return tabulate(shown, "{row}", cells, corner="test accuracy (%)", notes=notes, numbers=numbers)


def table_4(context: Context) -> Table:
    return accuracies(context, GRAPH_ROWS, "graph")


def batch_norm(context: Context) -> Table:
    frames = context.frames.labelled({label: case for label, (case, _) in compared(context.frames).items()})
    metrics = {"average": "test_accuracy", "workers_mean": "worker_test_accuracy_mean"}
    shown = frames.summary(["row", "workers"], **metrics)
    cells = {
        "n = {workers}, average": mean_deviation("average"),
        "n = {workers}, workers": mean_deviation("workers_mean"),
    }
    notes = (
        f"{OVER_SEEDS}; average: of all workers; workers: mean over single ones. Ring where no graph is named.",
        context.learning_rates(frames, "row"),
    )
    return tabulate(shown, "{row}", cells, corner="test accuracy (%)", notes=notes)


def table_5(context: Context) -> Table:
    return accuracies(context, RATE_ROWS, "rate")


def networks_on_the_ring(context: Context) -> Table:
    rows = {label: case for label, case in RATE_ROWS.items() if case["method"] != "acid" or case["rate"] == 1}
    frames = context.frames.labelled(rows)
    clipped = frames.column("optim.clip").notna().map({True: ", clipped", False: ""})
    frames = frames.assign(network=frames.column("model.name").map(lambda name: NETWORKS[name].title) + clipped)
    shown = frames.summary(["row", "network"], "test_accuracy", "test_loss")
    cells = {
        "{network} (%)": mean_deviation("test_accuracy"),
        "{network}: loss": mean_deviation("test_loss", ".3f", 1.0),
    }
    notes = (f"{OVER_SEEDS}; model: average of all workers.", context.learning_rates(frames, "row", "network"))
    return tabulate(shown, "{row}", cells, corner="test set", notes=notes)


def table_6(context: Context) -> Table:
    frames = context.frames.labelled(RATE_ROWS)
    each, talks = frames.column("counts.gradients_per_worker"), frames.column("counts.communications").astype(float)
    measured = {
        "minutes": frames.column("virtual_seconds") / 60,
        "slowest": each.map(min),
        "fastest": each.map(max),
        "averagings": talks,
        "per_gradient": 2 * talks / frames.column("counts.gradients"),
    }
    keys = ["method", "rate", "workers"]
    shown = frames.assign(**measured).summary(["row", *keys], *measured)
    cells = {
        "virtual minutes": number("minutes"),
        "gradients, slowest worker": number("slowest", ".0f"),
        "gradients, fastest worker": number("fastest", ".0f"),
        "averagings": number("averagings", ".0f"),
        "communications per gradient": number("per_gradient"),
    }
    numbers = shown[[*keys, "runs", *measured]].fillna({"averagings": 0, "per_gradient": 0})
    corner = f"n = {context.settings.large.most_workers}"
    return tabulate(shown, "{row}", cells, corner=corner, notes=["Means over seeds."], numbers=numbers)


RATIO = mean_deviation("ratio", ".3g", 1.0, ".2g")
MOMENTUM_ROWS: Cases = {
    "rate 1": {"method": "baseline", "rate": 1.0},
    "rate 2": {"method": "baseline", "rate": 2.0},
    "A²CiD²": {"method": "acid", "dynamics": "exact"},
    "A²CiD², released dynamics": {"method": "acid", "dynamics": "released"},
}


def with_ratio(frames: Frames, rows: Cases, row: str, *same: str) -> Frames:
    """The runs of `rows`; `ratio`: consensus distance over that in a `row` with the same seed."""
    frames = frames.labelled(rows)
    runs = frames.runs.assign(distance=consensus(frames))
    return frames.assign(ratio=runs["distance"] / reference(runs, runs["row"] == row, same, ["distance"])["distance"])


def conditions(context: Context) -> Table:
    same = ["optim.momentum", "data.partition"]
    frames = with_ratio(context.frames, MOMENTUM_ROWS, "rate 1", *same)
    frames = frames.assign(smaller=below(frames.runs, frames.runs["row"] == "rate 1", same))
    renamed = {
        "optim.momentum": "sgd_momentum",
        "optim.lr": "learning_rate",
        "data.partition": "partition",
        "ratio_deviation": "deviation",
    }
    columns = {"ratio": "ratio", "workers": "worker_test_accuracy_mean", "average": "test_accuracy"}
    shown = frames.summary([*same, "row", "optim.lr", "smaller"], **columns)
    names = shown["data.partition"]
    shown = shown.assign(data=names.map(PARTITION_NAMES), order=names.map(list(PARTITION_NAMES).index))
    shown = shown.sort_values(["optim.momentum", "order"], ascending=[False, True], kind="stable")
    cells: dict[str, Format] = {
        "{row}: distance / rate 1": lambda row: "" if row["row"] == "rate 1" else RATIO(row) + " †" * row["smaller"],
        "{row}: workers (%)": mean_deviation("workers"),
    }
    notes = (
        "Distance: consensus distance, mean over the training, relative to the baseline at one communication "
        "per gradient with the same seed; below 1 is better. †: at a smaller learning rate than that baseline's, which "
        f"alone makes the distance smaller. {OVER_SEEDS}.",
        context.learning_rates(frames, *same, "row"),
    )
    numbers = shown[shown["row"] != "rate 1"].rename(columns=renamed)
    numbers = numbers[
        ["sgd_momentum", "partition", "row", "learning_rate", "ratio", "deviation", "runs", "workers", "average"]
    ]
    shown = shown.rename(columns={"optim.momentum": "momentum"})
    return tabulate(shown, "momentum {momentum:g}, {data}", cells, corner="ring", notes=notes, numbers=numbers)


def quadratic(context: Context) -> Table:
    groups = ["optim.momentum", "optim.lr", "quadratic.heterogeneous"]
    shown = with_ratio(context.frames, MOMENTUM_ROWS, "rate 1", *groups).summary([*groups, "row"], "ratio")
    shown = shown[shown["row"] != "rate 1"].sort_values(groups, ascending=False, kind="stable")
    numbers = shown.drop(columns="diverged").rename(columns={"ratio_deviation": "deviation"})
    shown["data"] = shown["quadratic.heterogeneous"].map({True: "heterogeneous", False: "iid"})
    shown = shown.rename(columns={"optim.momentum": "momentum", "optim.lr": "lr"})
    row, cells = "lr {lr:g}, momentum {momentum:g}, {data}", {"{row}: distance / rate 1": RATIO}
    return tabulate(shown, row, cells, corner="quadratic, ring", numbers=numbers)


def heterogeneous_data(context: Context) -> Table:
    metrics = ("test_accuracy", "worker_test_accuracy_mean", "worker_test_accuracy_min")
    headers = ("average (%)", "workers, mean (%)", "workers, worst (%)")
    frames = context.frames.labelled(GRAPH_ROWS)
    shown = frames.summary(["row", "method", "graph"], *metrics)
    cells = dict(zip(headers, map(mean_deviation, metrics), strict=True))
    notes = (f"{OVER_SEEDS}. Under AR-SGD every worker is the average.", context.learning_rates(frames, "row"))
    numbers = shown.drop(columns="row")
    return tabulate(shown, "{row}", cells, corner="test accuracy", notes=notes, numbers=numbers)


ENGINE_ROWS: Cases = {
    f"{NAMES[method]}, {name}": {"method": method, "engine": engine}
    for method in ("baseline", "acid")
    for engine, name in (("virtual", "virtual time"), ("processes", "processes"))
}


def engines(context: Context) -> Table:
    frames = context.frames.completed.labelled(ENGINE_ROWS)
    talks = 2 * frames.column("counts.communications") / frames.column("counts.gradients")
    frames, keys = frames.assign(per_gradient=talks, distance=consensus(frames)), ["method", "engine"]
    shown = frames.summary(["row", *keys], "per_gradient", "distance", "test_accuracy")
    shown = shown.join(distributions(frames.runs), on=keys)
    shown["difference"] = shown["variation"].where(shown["engine"] != "virtual")
    cells = {
        "communications per gradient": number("per_gradient"),
        **{f"{k} averagings (%)": number(f"share {k}", ".0f", 100) for k in range(3)},
        "3 or more (%)": number("share 3", ".0f", 100),
        "difference (%)": number("difference", ".0f", 100),
        "consensus distance": mean_deviation("distance", ".3g", 1.0, ".2g"),
        "test accuracy (%)": mean_deviation("test_accuracy"),
    }
    notes = (
        "Difference: total variation between the two distributions of averagings per gradient. "
        f"{OVER_SEEDS}. Real gradients do not follow the gamma law: their durations depend on what else the cores do.",
    )
    numbers = shown[[*keys, "runs", "per_gradient", "distance", "variation"]]
    return tabulate(shown, "{row}", cells, corner="ring", notes=notes, numbers=numbers)


def distributions(runs: pd.DataFrame) -> pd.DataFrame:
    """By method and engine: shares of gradients with 0, 1, 2, and 3 or more averagings before them, and `variation`,
    the total variation distance from the distribution in virtual time."""
    keys = ["method", "engine"]
    every = [averagings_between_gradients(run) for run in runs.to_dict("records")]
    counts = pd.DataFrame([dict(enumerate(own)) for own in every]).sort_index(axis=1).fillna(0)
    shares = counts.div(counts.sum(axis=1), axis=0).set_index(pd.MultiIndex.from_frame(runs[keys]))
    shares = shares.groupby(keys).mean()
    virtual = shares.xs("virtual", level="engine").loc[shares.index.get_level_values("method")].to_numpy()
    table = {f"share {k}": shares.get(k, 0.0) for k in range(3)} | {"share 3": shares.loc[:, 3:].sum(axis=1)}
    return pd.DataFrame(table, index=shares.index).assign(variation=(shares - virtual).abs().sum(axis=1) / 2)


def averagings_between_gradients(run: Mapping[str, Any]) -> np.ndarray:
    """How many gradients (k,) of a run had 0, 1, ... averagings since their worker's last one.

    Real processes have counted them; in virtual time they follow from the schedule, which the settings determine.
    """
    if isinstance(counted := run.get("counts.averagings_between_gradients"), list):
        return np.array(counted)
    own = {key: value for key, value in run.items() if key.startswith("clock.") and not pd.isna(value)}
    clock = Clock(**{key.removeprefix("clock."): value for key, value in own.items()})
    graph, gradients = topology.build(run["graph"], int(run["workers"]), run["seed"]), int(run["counts.gradients"])
    return np.bincount(
        between_gradients(schedules.PAIRINGS[run["pairing"]](graph, run["rate"], gradients, run["seed"], clock))
    )


def between_gradients(events: schedules.Schedule) -> np.ndarray:
    """For every gradient, worker by worker, the averagings of its worker since the one before."""
    counts = []
    for worker in range(events.workers):
        averaging = events.kind[(events.i == worker) | (events.j == worker)] != schedules.GRADIENT
        counts.append(np.diff(np.cumsum(averaging)[~averaging], prepend=0))
    return np.concatenate(counts)


EXACT = {"dynamics": "exact", "optim.clip": None, "init": "common", "batch_norm": "recalibrate"}
RELEASED_ROWS: Cases = {
    "exact dynamics": EXACT,
    "released dynamics": EXACT | {"dynamics": "released"},
    "exact dynamics, clipped gradients": EXACT | {"optim.clip": 1.0},
    "released dynamics, clipped gradients": EXACT | {"dynamics": "released", "optim.clip": 1.0},
    "exact dynamics, mean of independent initialisations": EXACT | {"init": "mean_of_independent"},
    "exact dynamics, BatchNorm statistics of worker 0": EXACT | {"batch_norm": "worker0"},
    "all as released": dict(zip(EXACT, ("released", 1.0, "mean_of_independent", "worker0"), strict=True)),
}


def released_code(context: Context) -> Table:
    columns = {"ratio": "ratio", "average": "test_accuracy", "workers": "worker_test_accuracy_mean"}
    shown = with_ratio(context.frames, RELEASED_ROWS, "exact dynamics").summary(["row", *EXACT], **columns)
    cells = {
        "distance / exact": RATIO,
        "average (%)": mean_deviation("average"),
        "workers, mean (%)": mean_deviation("workers"),
    }
    notes = (
        "Distance: consensus distance, mean over the training, relative to the first row with the same seed. Average: "
        f"test accuracy of the mean of all workers; workers: mean of their own. {OVER_SEEDS}.",
    )
    return tabulate(shown, "{row}", cells, corner="A²CiD², ring", notes=notes)
