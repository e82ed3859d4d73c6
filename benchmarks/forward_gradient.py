"""What a gradient estimate costs against backpropagation: `python benchmarks/forward_gradient.py`, half an hour idle.

Writes `benchmarks/results/forward_gradient.json` and `forward_gradient.md`: CPU time, wall time and peak memory of a
step in every space, with every guess, in both modes, each as a ratio to backpropagation in the same run; what is to be
reached at best; and where the time of a step goes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pages
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile

from unlocked import bench
from unlocked.bench import forward_gradient as measured
from unlocked.forward_gradient.memory import peak_bytes

PEER = "backpropagation"
# Units of one forward pass, backpropagation being 3: see the text
FLOORS = {"activity": 1.35, "averaged": 1.7, "per_sample": 2.0}
GUESSES = ("local", "ntk", "random")
# In forward mode a tensor takes a Jacobian-vector product, and exact per-sample coefficients one per sample
FORWARD_MODE: dict[str, dict[str, Any]] = {
    "activity, batch level": {"space": "activity", "averaged": True},
    "activity, per sample": {"space": "activity", "averaged": False},
    "averaged": {"space": "weight", "averaged": True},
}
Rows = list[dict[str, Any]]


def contestants(width: float) -> dict[str, dict[str, Any] | None]:
    """Settings of every step by name; None: backpropagation. Forward mode where it does not take hours."""
    found: dict[str, dict[str, Any] | None] = {PEER: None}
    for name, where in measured.SPACES.items():
        found |= {f"{name}, {guess}, projection": {**where, "guess": guess} for guess in GUESSES}
    if width < 1:
        for name, where in FORWARD_MODE.items():
            found[f"{name}, local, forward_mode"] = {**where, "guess": "local", "mode": "forward_mode"}
    return found


def computation(width: float, name: str) -> Callable[[], object]:
    """One step of a contestant on a fresh net."""
    torch.set_num_threads(1)
    settings, batch = contestants(width)[name], measured.fresh(width)
    return partial(measured.backpropagation, *batch) if settings is None else partial(measured.step, *batch, **settings)


def resident(width: float, name: str) -> float:
    """Peak resident bytes of this process when it has taken two steps."""
    compute = computation(width, name)
    for _ in range(2):
        compute()
    # not getrusage: a process inherits its parent's peak there, even through exec
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024.0 * int(line.split()[1])


def alone(width: float, name: str) -> float:
    """`resident` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as own:
        return own.submit(resident, width, name).result()


def timed(width: float, turns: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of every contestant in every turn; the slow forward mode takes one turn."""
    steps = {name: computation(width, name) for name in contestants(width)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for turn in range(turns + 1):
        for name, compute in steps.items():
            if turn > 1 and name.endswith("forward_mode"):
                continue
            start = time.process_time(), time.perf_counter()
            compute()
            times[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return {name: values[1:] for name, values in times.items()}


def table(width: float, turns: int) -> Rows:
    """One row per contestant, everything but the first row a ratio to it."""
    times = timed(width, turns)
    rows, peer = [], {}
    for name in contestants(width):
        absolute = {"peak tensors": float(peak_bytes(computation(width, name))), "peak resident": alone(width, name)}
        if name == PEER:
            peer = absolute
        pairs = list(zip(times[name], times[PEER], strict=False))
        rows.append(
            {
                "width": width,
                "step": name,
                "CPU": median(one[0] / other[0] for one, other in pairs),
                "wall": median(one[1] / other[1] for one, other in pairs),
                **{key: value / peer[key] for key, value in absolute.items()},
                "floor (CPU)": FLOORS.get(name.split(",")[0]) if name.endswith("local, projection") else None,
                "CPU seconds": median(one[0] for one in times[name]),
                "MB of tensors": absolute["peak tensors"] / 2**20,
            }
        )
    return rows


def profiled(width: float, name: str) -> Rows:
    """The operations that take most of a step's time."""
    compute = computation(width, name)
    compute()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        compute()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [
        {"step": name, "operation": event.key, "calls": event.count, "share": event.self_cpu_time_total / whole}
        for event in events[:8]
    ]


TEXT = """# A gradient estimate, measured

Written by `python benchmarks/forward_gradient.py`. {environment}. ResNet-18 in 8 blocks, cnn auxiliary nets, batch 128,
32×32 pixels, global target. All columns but the last two are ratios to backpropagation in the same run: CPU and wall
time the median over turns in which the contestants alternate, on one thread; peak tensors the most that the step's
tensors take beyond what was there before, counted operation by operation; peak resident that of a fresh process that
takes two steps, of which Python and torch take half a gigabyte.

The floor, with a forward pass costing 1, gradients for inputs 1 and for weights 1, and backpropagation 3. Activity: one
forward, the target's input gradients, one backward inside every block, auxiliary nets: 4. Averaged: 5, for target and
guess both need weight gradients. Per sample: 6.

{table}

Forward mode at width 1 is left out: it takes a Jacobian-vector product per tensor, and per sample one per sample.

## Where the time goes

Share of a step's CPU time at width 1.

{profile}
"""


def markdown(found: dict[str, Any]) -> str:
    """All tables for a person."""
    tables = {
        key: pd.DataFrame(found[key]).round(2).fillna("").to_markdown(index=False) for key in ("table", "profile")
    }
    return TEXT.format(environment=pages.sentence(found["environment"]), **tables)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=bench.Options().turns)
    parser.add_argument("--widths", type=float, nargs="*", default=[0.125, 1.0])
    parser.add_argument("--results", type=Path, default=pages.RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {
        "environment": pages.environment(),
        "table": [row for width in arguments.widths for row in table(width, arguments.turns)],
        "profile": [
            row
            for name in (PEER, *(f"{space}, local, projection" for space in measured.SPACES))
            for row in profiled(arguments.widths[-1], name)
        ],
    }
    pages.write(arguments.results, "forward_gradient", found, markdown(found))


if __name__ == "__main__":
    main()
