"""The longer measurements of the gossip engine: `python benchmarks/gossip.py`, under ten minutes on one core.

Writes `benchmarks/results/gossip.json` and `gossip.md`: the engine against bare gradients, its growth with the number
of workers, the effect of the momentum on a written-down problem, and trainings over a wide-area link.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pages
import pandas as pd
import psutil
import scipy.stats
import torch
from omegaconf import DictConfig
from threadpoolctl import threadpool_limits

from unlocked import bench, config, train
from unlocked.bench import gossip as bench_gossip
from unlocked.gossip import allreduce, quadratic, virtual
from unlocked.loop import Measurement

Rows = list[dict[str, Any]]


def resolved(settings: dict[str, Any]) -> DictConfig:
    """A run of paper A at the quick scale (the digits, a multilayer perceptron), with these settings."""
    return config.resolve(config.defaults("acid", config.load_scale("quick")), settings)


def measurements(training: Any) -> Iterator[Measurement]:
    """Train to the end, measuring where the run says so."""
    for span in range(training.spans):
        for _ in training.advance(span, 0):
            pass
        yield training.measure(span + 1)


# Growth with the number of workers

WORKERS = (64, 256, 1024)
GRADIENTS = 10  # per worker
GROWTH: dict[str, dict[str, Any]] = {
    "averaging": {"study": "averaging", "data.name": "none", "quadratic.dimension": 8970, "quadratic.horizon": 10.0},
    "training": {"runtime.execution": "auto"},
}


def growth_cell(study: str, workers: int) -> dict[str, Any]:
    """Time and memory of one run, without its evaluation; to be called in a process of its own."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    settings = {"workers": workers, "evaluation.points": 1, **GROWTH[study]}
    if study == "training":
        settings["optim.epochs"] = GRADIENTS * workers / (1437 // 8)
    run = resolved(settings)
    data = train.load_data(train.data_key(run))
    before, start = psutil.Process().memory_info().rss, time.process_time()
    training = (virtual if study == "training" else quadratic).Training(run, data)
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


def growth() -> Rows:
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
    settings = {"study": "quadratic", "data.name": "none", "workers": 64, "seed": seed, "evaluation.points": 40}
    problem = {"optim.lr": lr, "optim.momentum": momentum, "quadratic.heterogeneous": heterogeneous}
    training = quadratic.Training(resolved(settings | problem | variant), None)
    half = [found.metrics for found in measurements(training) if found.virtual_time >= 500]
    return float(np.mean([m.get("consensus_distance_stored", m["consensus_distance"]) for m in half]))


def quadratic_table(seeds: int) -> Rows:
    """Consensus distance relative to the rate-1 baseline of the same seed: mean and 95 % interval over seeds."""
    rows = []
    for name, problem in SETTINGS.items():
        reference = np.array([distance(*problem, seed, {"method": "baseline"}) for seed in range(seeds)])
        row: dict[str, Any] = {"setting": name, "seeds": seeds}
        for variant, changes in VARIANTS.items():
            found = np.array([distance(*problem, seed, changes) for seed in range(seeds)])
            ratios = found / reference
            row[variant] = round(found.mean() / reference.mean(), 3)
            row[f"± {variant}"] = round(scipy.stats.t.ppf(0.975, seeds - 1) * scipy.stats.sem(ratios), 3)
        rows.append(row)
    return rows


# A wide-area link

LINKS: dict[str, dict[str, Any]] = {
    "perfect": {},
    "slow link": {"clock.latency": 0.05, "clock.bandwidth": 1e6},
    "slow link, absences": {
        "clock.latency": 0.05,
        "clock.bandwidth": 1e6,
        "clock.away_share": 0.2,
        "clock.away_time": 20.0,
    },
}
METHODS = ("allreduce", "baseline", "acid")


def link_cell(method: str, link: str, seed: int) -> pd.DataFrame:
    """History of a training of 16 workers on a ring: virtual seconds, test accuracy, training loss."""
    settings = {
        "method": method,
        "workers": 16,
        "seed": seed,
        "pairing": "availability",
        "optim.schedule": "constant",
        "optim.lr": 0.02,
        "optim.epochs": 30,
        "evaluation.points": 60,
        "evaluation.workers": "never",
        "evaluation.train_limit": 500,
        "clock.law": "gamma",
        **LINKS[link],
    }
    run = resolved(settings)
    module = allreduce if method == "allreduce" else virtual
    training = module.Training(run, train.load_data(train.data_key(run)))
    kept = ("virtual_seconds", "test_accuracy", "average_train_loss")
    return pd.DataFrame([{key: found.metrics[key] for key in kept} for found in measurements(training)])


def wide_area(seeds: int) -> Rows:
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


# Results

TEXT = """# The gossip engine, measured

Written by `python benchmarks/gossip.py`. {environment}. Times are CPU times of one thread.

## Against bare gradients

`unlocked bench gossip`: every ratio is the median of turns in which the contestants alternate.

{engine}

## Growth with the number of workers

Rings; one averaging and, in a training, one gradient per worker and unit of time, {gradients} units. Averaging: vectors
of 8970 entries in float64. Training: the digits, a multilayer perceptron of 8970 parameters, batch 8, float32.

{growth}

## The effect of the momentum

64-ring, the quadratic problem of `unlocked.gossip.quadratic`, 1000 gradient times; consensus distance of x as it lies
in memory, averaged over the second half, relative to the baseline at rate 1. ± is half a 95 % interval over seeds.

{quadratic}

## A wide-area link

16 workers on a ring, the digits, 30 epochs in all, gradients of 0.1 s (gamma law, variation 0.3), pairing by
availability. Slow link: 50 ms and 1 MB/s, a message of 36 kB. Absences: every worker is away a fifth of the time, 2 s
each. Accuracy is that of the averaged model at the end of the faster gossip run.

{wide_area}
"""


def markdown(found: dict[str, Any]) -> str:
    """All tables for a person."""
    tables = {key: pd.DataFrame(found[key]).to_markdown(index=False) for key in ("growth", "quadratic", "wide_area")}
    engine = pages.ratios(found["engine"], bench_gossip.MEANINGS)
    return TEXT.format(environment=pages.sentence(found["environment"]), engine=engine, gradients=GRADIENTS, **tables)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="of the quadratic problem")
    parser.add_argument("--link-seeds", type=int, default=3, help="of the trainings over a link")
    parser.add_argument("--results", type=Path, default=pages.RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    found = {
        "environment": pages.environment(),
        "engine": bench_gossip.measure(bench.Options()),
        "growth": growth(),
        "wide_area": wide_area(arguments.link_seeds),
        "quadratic": quadratic_table(arguments.seeds),
    }
    pages.write(arguments.results, "gossip", found, markdown(found))


if __name__ == "__main__":
    main()
