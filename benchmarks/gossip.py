"""The longer measurements of the simulator: `python benchmarks/gossip.py`, under ten minutes on one core.

Writes `benchmarks/results/gossip.json` and `gossip.md`: the simulator against bare gradients, its growth with the
number of workers, the effect of the momentum on a quadratic problem, and trainings over a wide-area link.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import pages
import pandas as pd
import psutil
import scipy.stats
import torch
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy

from unlocked.artifact.config import Bases, load_scale
from unlocked.artifact.train import data_key, load_data, training_of
from unlocked.papers import PAPERS
from unlocked.papers.acid.common import build_model
from unlocked.papers.acid.settings import Acid, Evaluation, LargeBatch, Network, PartitionedData, SimulatorRuntime
from unlocked.papers.acid.training import GossipTraining
from unlocked.papers.base import Measurement
from unlocked.papers.run import Run
from unlocked.vision.data import Dataset


def run_of(settings: dict[str, Any]) -> Run:
    """A run of paper A at the quick scale (the digits, a multilayer perceptron), with these settings."""
    return Bases(PAPERS["acid"], load_scale("quick"), {}).run(settings)


def measurements(settings: dict[str, Any]) -> Iterator[Measurement]:
    """Train such a run to the end, measuring where it says so."""
    run = run_of(settings)
    training = training_of(run, load_data(data_key(run)))
    for span in range(training.spans):
        for _ in training.advance(span, 0):
            pass
        yield training.measure(span + 1)


# Against bare gradients

RING = 64
IMAGES, SIZE, BATCH = 4096, 14, 16
MEANINGS = {
    "engine_overhead": "time of a run's events one worker at a time / of the bare gradients (small convolutional net)",
    "engine_overhead_mlp": "the same, multilayer perceptron",
    "batched_speedup_conv_64": "time one worker at a time / with the workers of a level batched, n = 64",
    "batched_speedup_mlp_64": "the same, multilayer perceptron",
    "autograd_slowdown_mlp": "time one worker at a time by autograd / without it, multilayer perceptron",
    "milliseconds_per_gradient_conv": "of the bare gradients",
    "milliseconds_per_gradient_mlp": "of the bare gradients",
}


def ratios(options: pages.Options) -> dict[str, float]:
    """On a 64-ring: the simulator's overhead over bare gradients, and what batching the workers gains."""
    numbers: dict[str, float] = {}
    for network, suffix in (("conv", ""), ("mlp", "_mlp")):
        times = pages.race(contestants(network, options), options.turns)
        numbers[f"engine_overhead{suffix}"] = pages.ratio(times["loop"], times["bare"])
        numbers[f"batched_speedup_{network}_{RING}"] = pages.ratio(times["loop"], times["batched"])
        if "autograd" in times:
            numbers[f"autograd_slowdown_{network}"] = pages.ratio(times["autograd"], times["loop"])
        numbers[f"milliseconds_per_gradient_{network}"] = 1e3 * median(times["bare"]) / options.gradients
    return numbers


def contestants(network: str, options: pages.Options) -> dict[str, Callable[[], object]]:
    """Bare gradients, the engine's loop, of a chain also by autograd, and the engine batched; each does
    `options.gradients` gradients in a turn.
    """
    torch.set_num_threads(1)
    data, turns = pages.noise(IMAGES, SIZE, 1, 1), options.turns + 1
    run = Acid(
        data=PartitionedData(name="fashion_mnist", train_limit=IMAGES),  # in whose place the noise stands
        model=Network(name=network),
        workers=RING,
        optim=LargeBatch(lr=0.02, batch_size=BATCH, epochs=turns * options.gradients * BATCH / IMAGES),
        evaluation=Evaluation(points=turns),
    )
    ways = {way: replace(run, runtime=SimulatorRuntime(execution=way)) for way in ("loop", "batched")}
    trainings = {way: GossipTraining(own, data) for way, own in ways.items()}
    if trainings["loop"].networks.chain is not None:
        trainings["autograd"] = GossipTraining(ways["loop"], data)
        trainings["autograd"].networks.chain = None
    spans = {way: engine_turns(training) for way, training in trainings.items()}
    return {
        name: partial(next, own) for name, own in {"bare": bare_turns(run, data, options.gradients), **spans}.items()
    }


def engine_turns(training: GossipTraining) -> Iterator[None]:
    """A span of the training per turn."""
    for span in range(training.spans):
        for _ in training.advance(span, 0):
            pass
        yield


def bare_turns(run: Acid, data: Dataset, gradients: int) -> Iterator[None]:
    """The floor: networks of their own and a batch that lies ready; forward and backward and nothing else."""
    networks = [build_model(run, data).train() for _ in range(run.workers)]
    images, labels = torch.randn(BATCH, 1, SIZE, SIZE), torch.arange(BATCH) % 10
    for _ in range(run.evaluation.points):
        for number in range(gradients):
            network = networks[number % run.workers]
            network.zero_grad()
            cross_entropy(network(images), labels).backward()
        yield


# Growth with the number of workers

WORKERS = (64, 256, 1024)
GRADIENTS = 10  # per worker
GROWTH: dict[str, dict[str, Any]] = {
    "averaging": {"study": "averaging", "quadratic.dimension": 8970, "quadratic.horizon": 10.0},
    "training": {},
}


def growth_cell(study: str, workers: int) -> dict[str, Any]:
    """Time and memory of one run, without its evaluation; to be called in a process of its own."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    settings = {"workers": workers, "evaluation.points": 1, **GROWTH[study]}
    if study == "training":
        settings["optim.epochs"] = GRADIENTS * workers / (1437 // 8)
    run = run_of(settings)
    data = load_data(data_key(run))
    before, start = psutil.Process().memory_info().rss, time.process_time()
    training: Any = training_of(run, data)
    prepared = time.process_time()
    for _ in training.advance(0, 0):
        pass
    took = time.process_time() - prepared
    events = training.counts()
    return {
        "study": study,
        "workers": workers,
        "gradients": events["gradients"],
        "averagings": events["communications"],
        "seconds to prepare": round(prepared - start, 2),
        "seconds": round(took, 2),
        "microseconds per event": round(1e6 * took / (events["gradients"] + events["communications"]), 1),
        "MB": round((psutil.Process().memory_info().rss - before) / 2**20),
        "MB of all vectors": round(training.engine.x.nbytes * (3 if study == "training" else 2) / 2**20),
    }


def growth() -> pages.Rows:
    """Pure averaging (float64) and a short training (float32) on rings of growing size."""
    rows = []
    for cell in itertools.product(GROWTH, WORKERS):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own:
            rows.append(own.submit(growth_cell, *cell).result())
    return rows


# The effect of the momentum

SETTINGS = {
    "lr .005, momentum .9, iid": (0.005, 0.9, False),
    "lr .005, momentum .9, heterogeneous": (0.005, 0.9, True),
    "lr .05, no momentum, heterogeneous": (0.05, 0.0, True),
    "lr .05, no momentum, iid": (0.05, 0.0, False),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "baseline rate 2": {"method": "baseline", "rate": 2.0},
    "exact": {"method": "acid"},
    "released": {"method": "acid", "dynamics": "released"},
}


def distance(lr: float, momentum: float, heterogeneous: bool, seed: int, variant: dict[str, Any]) -> float:
    """Consensus distance over the second half of a run on the quadratic problem."""
    settings = {"study": "quadratic", "workers": 64, "seed": seed, "evaluation.points": 40}
    problem = {"optim.lr": lr, "optim.momentum": momentum, "quadratic.heterogeneous": heterogeneous}
    measured = measurements(settings | problem | variant)
    half = [one.metrics for one in measured if one.virtual_time >= 500]
    return float(np.mean([m.get("consensus_distance_stored", m["consensus_distance"]) for m in half]))


def quadratic_table(seeds: int) -> pages.Rows:
    """Consensus distance relative to the rate-1 baseline of the same seed: mean and 95 % interval over seeds."""
    rows = []
    for name, problem in SETTINGS.items():
        reference = np.array([distance(*problem, seed, {"method": "baseline"}) for seed in range(seeds)])
        row: dict[str, Any] = {"setting": name, "seeds": seeds}
        for variant, changes in VARIANTS.items():
            distances = np.array([distance(*problem, seed, changes) for seed in range(seeds)])
            ratios = distances / reference
            row[variant] = round(distances.mean() / reference.mean(), 3)
            row[f"± {variant}"] = round(scipy.stats.t.ppf(0.975, seeds - 1) * scipy.stats.sem(ratios), 3)
        rows.append(row)
    return rows


# A wide-area link

LINKS: dict[str, dict[str, Any]] = {"perfect": {}, "slow link": {"clock.latency": 0.05, "clock.bandwidth": 1e6}}
METHODS = ("allreduce", "baseline", "acid")


def link_cell(method: str, link: str, seed: int) -> pd.DataFrame:
    """History of a training of 16 workers on a ring: virtual seconds, test accuracy, training loss."""
    settings = {
        "method": method,
        "workers": 16,
        "seed": seed,
        "optim.schedule": "constant",
        "optim.lr": 0.02,
        "optim.epochs": 30,
        "evaluation.points": 60,
        "evaluation.workers": "never",
        "evaluation.train_limit": 500,
        "clock.law": "gamma",
        **LINKS[link],
    }
    if method != "allreduce":
        settings["pairing"] = "availability"
    kept = ("virtual_seconds", "test_accuracy", "average_train_loss")
    rows = [measured.metrics for measured in measurements(settings)]
    return pd.DataFrame([{key: row[key] for key in kept} for row in rows])


def wide_area(seeds: int) -> pages.Rows:
    """For every link and method: what is reached in the time that the asynchronous runs take, and how fast."""
    rows = []
    for link in LINKS:
        histories = {m: [link_cell(m, link, seed) for seed in range(seeds)] for m in METHODS}
        until = min(h.virtual_seconds.iloc[-1] for m in ("baseline", "acid") for h in histories[m])
        for method, runs in histories.items():
            accuracy = [h[h.virtual_seconds <= until].test_accuracy.iloc[-1:].mean() for h in runs]
            reached = [h[h.average_train_loss < 0.5].virtual_seconds.min() for h in runs]
            rows.append(
                {
                    "link": link,
                    "method": method,
                    "seeds": seeds,
                    "virtual seconds": round(until, 1),
                    "test accuracy then": round(float(np.nanmean(accuracy)), 3)
                    if np.isfinite(accuracy).any()
                    else None,
                    "virtual seconds to a training loss of 0.5": round(float(np.mean(reached)), 1),
                    "virtual seconds for all gradients": round(np.mean([h.virtual_seconds.iloc[-1] for h in runs]), 1),
                }
            )
    return rows


def measure(options: argparse.Namespace) -> dict[str, pages.Rows]:
    """All tables; `seeds` of the quadratic problem, `link_seeds` of the trainings over a link."""
    return {
        "engine": pages.meant(ratios(pages.Options()), MEANINGS),
        "growth": growth(),
        "wide_area": wide_area(options.link_seeds),
        "quadratic": quadratic_table(options.seeds),
    }


TEXT = f"""# The simulator, measured

Written by `python benchmarks/gossip.py`. {{environment}}. Times are CPU times of one thread.

## Against bare gradients

Every ratio is the median of turns in which the contestants alternate; `benchmarks/ratios.py gossip`.

{{engine}}

## Growth with the number of workers

Rings; one averaging and, in a training, one gradient per worker and unit of time, {GRADIENTS} units. Averaging: vectors
of 8970 entries in float64. Training: the digits, a multilayer perceptron of 8970 parameters, batch 8, float32.

{{growth}}

## The effect of the momentum

64-ring, the quadratic problem of `unlocked.gossip.quadratic`, 1000 gradient times; consensus distance of x as it lies
in memory, averaged over the second half, relative to the baseline at rate 1. ± is half a 95 % interval over seeds.

{{quadratic}}

## A wide-area link

16 workers on a ring, the digits, 30 epochs in all, gradients of 0.1 s (gamma law, variation 0.3), pairing by
availability. Slow link: 50 ms and 1 MB/s, a message of 36 kB. Accuracy is that of the averaged model at the end of the
faster gossip run.

{{wide_area}}
"""


if __name__ == "__main__":
    threadpool_limits(1)
    pages.write("gossip", TEXT, measure, seeds=20, link_seeds=3)
