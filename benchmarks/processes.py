"""The longer measurements of the engine of processes: `python benchmarks/processes.py`, ten minutes, machine idle.

Writes `benchmarks/results/processes.json` and `processes.md`: what `unlocked bench processes` measures, and how far
real processes are from the virtual engine's pairing in averagings per gradient and in consensus distance.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pages
import pandas as pd
import torch

from unlocked import bench, config, record, train
from unlocked.bench import processes as bench_processes
from unlocked.items.acid_beyond import averagings_between_gradients, pooled, total_variation
from unlocked.measures import settled

WORKERS, GRADIENTS, STRETCH = 4, 896, 12.0
CASES = [(method, graph, rate) for method in ("baseline", "acid") for graph in ("ring", "complete")
         for rate in (0.5, 1.0, 2.0)]  # fmt: skip
ENGINES: dict[str, dict[str, Any]] = {
    "virtual": {"pairing": "availability", "gradient_read": "start", "clock.law": "gamma"},
    "processes": {"engine": "processes", "clock.slow_workers": WORKERS, "clock.slow_factor": STRETCH},
}


def records_of(engine: str, method: str, graph: str, rate: float, seeds: int, results: Path) -> list[record.Record]:
    """Trainings on the digits with an engine, one per seed."""
    base = config.defaults("acid", config.load_scale("quick"))
    settings = ENGINES[engine] | {"method": method, "graph": graph, "rate": rate, "workers": WORKERS}
    settings |= {"optim.epochs": (GRADIENTS + 0.5) / (1437 // 8), "evaluation.points": 10, "runtime.wandb": "disabled"}
    runs = [config.resolve(base, settings | {"seed": seed}) for seed in range(seeds)]
    train.train(runs, results)
    return [record.load(record.folder_of(results, run)) for run in runs]


def agreement(seeds: int, results: Path) -> list[dict[str, Any]]:
    """Both engines on the same settings."""
    rows = []
    for case in CASES:
        found = {engine: records_of(engine, *case, seeds, results) for engine in ENGINES}
        shares = {engine: pooled([averagings_between_gradients(r) for r in rs]) for engine, rs in found.items()}
        distance = {engine: sum(map(settled, rs)) / seeds for engine, rs in found.items()}
        counts = {engine: [r.summary["counts"] for r in rs] for engine, rs in found.items()}
        rates = {e: sum(2 * c["communications"] / c["gradients"] for c in cs) / seeds for e, cs in counts.items()}
        rows.append(
            {
                **dict(zip(("method", "graph", "rate"), case, strict=True)),
                "communications per gradient, virtual": round(rates["virtual"], 3),
                "processes": round(rates["processes"], 3),
                "total variation": round(total_variation(*shares.values()), 3),
                "consensus distance, processes / virtual": round(distance["processes"] / distance["virtual"], 3),
            }
        )
    return rows


TEXT = """# The engine of processes, measured

Written by `python benchmarks/processes.py`. {environment}. Wall-clock times.

## Ratios

{ratios}

## Against the virtual engine

{workers} workers, the digits, {gradients} gradients in all, {seeds} seeds; every real gradient is stretched by a factor
of {stretch:g} (sleeping), so that the workers do not compete for the cores. Virtual time: gradient durations of a gamma
law, coefficient of variation 0.3, pairing by availability. Total variation between the distributions of the number of
averagings from one gradient of a worker to its next: 0 if they are the same. Consensus distance over the second half.

{agreement}
"""


def markdown(found: dict[str, Any], seeds: int) -> str:
    """All tables for a person."""
    return TEXT.format(
        environment=pages.sentence(found["environment"]),
        ratios=pages.ratios(found["ratios"], bench_processes.MEANINGS),
        agreement=pd.DataFrame(found["agreement"]).to_markdown(index=False),
        workers=WORKERS,
        gradients=GRADIENTS,
        seeds=seeds,
        stretch=STRETCH,
    )


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="of every contestant")
    parser.add_argument("--seeds", type=int, default=3, help="of the comparison of the engines")
    parser.add_argument("--results", type=Path, default=pages.RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"environment": pages.environment()}
    found["ratios"] = bench_processes.measure(bench.Options(turns=arguments.turns))
    with tempfile.TemporaryDirectory() as folder:
        found["agreement"] = agreement(arguments.seeds, Path(folder))
    pages.write(arguments.results, "processes", found, markdown(found, arguments.seeds))


if __name__ == "__main__":
    main()
