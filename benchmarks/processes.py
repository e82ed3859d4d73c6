"""The longer measurements of the engine of processes: `python benchmarks/processes.py`, ten minutes, machine idle.

Writes `benchmarks/results/processes.json` and `processes.md`: what `unlocked bench processes` measures, and how far
real processes are from the virtual engine's pairing in averagings per gradient and in consensus distance.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import pages

from unlocked import bench
from unlocked.artifact import record, train
from unlocked.artifact.config import Bases, load_scale
from unlocked.bench import processes as bench_processes
from unlocked.items.measures import settled
from unlocked.papers import PAPERS
from unlocked.papers.acid.tables import distributions

WORKERS, GRADIENTS, STRETCH = 4, 896, 12.0
METHODS, GRAPHS, RATES = ("baseline", "acid"), ("ring", "complete"), (0.5, 1.0, 2.0)
ENGINES: dict[str, dict[str, Any]] = {
    "virtual": {"pairing": "availability", "gradient_read": "start", "clock.law": "gamma"},
    "processes": {"engine": "processes", "clock.slow_workers": WORKERS, "clock.slow_factor": STRETCH},
}


def agreement(graph: str, rate: float, seeds: int, results: Path) -> pages.Rows:
    """Both engines, with and without momentum, on the same settings: trainings on the digits."""
    shared = {"graph": graph, "rate": rate, "workers": WORKERS, "evaluation.points": 10}
    shared["optim.epochs"] = (GRADIENTS + 0.5) / (1437 // 8)
    bases = Bases(PAPERS["acid"], load_scale("quick"), {"wandb": "disabled"})
    cases = itertools.product(METHODS, ENGINES.values(), range(seeds))
    runs = [bases.run({**shared, **engine, "method": method, "seed": seed}) for method, engine, seed in cases]
    train.train(runs, results)
    frames = record.frames(record.load(record.folder_of(results, run)) for run in runs)
    talks = 2 * frames.runs["counts.communications"] / frames.runs["counts.gradients"]
    means = frames.runs.assign(talks=talks, distance=settled(frames, "consensus_distance"))
    means = means.groupby(["method", "engine"])[["talks", "distance"]].mean()
    ratio = means.distance.xs("processes", level="engine") / means.distance.xs("virtual", level="engine")
    variation = distributions(frames.runs)["variation"]
    return [
        {
            "method": method,
            "graph": graph,
            "rate": rate,
            "communications per gradient, virtual": means.talks[method, "virtual"],
            "processes": means.talks[method, "processes"],
            "total variation": variation[method, "processes"],
            "consensus distance, processes / virtual": ratio[method],
        }
        for method in METHODS
    ]


def measure(options: argparse.Namespace) -> dict[str, pages.Rows]:
    """All tables."""
    numbers = bench_processes.measure(bench.Options(turns=options.turns))
    with tempfile.TemporaryDirectory() as folder:
        cases = [agreement(*case, options.seeds, Path(folder)) for case in itertools.product(GRAPHS, RATES)]
    return {
        "ratios": pages.ratios(numbers, bench_processes.MEANINGS),
        "agreement": [row for rows in cases for row in rows],
    }


TEXT = f"""# The engine of processes, measured

Written by `python benchmarks/processes.py`. {{environment}}. Wall-clock times.

## Ratios

{{ratios}}

## Against the virtual engine

{WORKERS} workers, the digits, {GRADIENTS} gradients in all, {{seeds}} seeds; every real gradient is stretched by a
factor of {STRETCH:g} (sleeping), so that the workers do not compete for the cores. Virtual time: gradient durations of
a gamma law, coefficient of variation 0.3, pairing by availability. Total variation between the distributions of the
number of averagings from one gradient of a worker to its next: 0 if they are the same. Consensus distance over the
second half.

{{agreement}}
"""

if __name__ == "__main__":
    pages.write("processes", TEXT, measure, turns=7, seeds=3)
