"""What benchmarks share: contestants in turns, data of noise, and pages that say where they were measured.

All contestants of a ratio run in turns on the same work, and a ratio is the median over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

from unlocked.artifact.record import provenance
from unlocked.vision.data import Dataset, Split

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """How thoroughly to measure ratios."""

    turns: int = 7  # timings of every contestant, after one that does not count
    gradients: int = 256  # per turn
    width: float = 1.0  # of the net of forward_gradient


def race(contestants: Mapping[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """CPU seconds of every contestant in every turn. The first turn warms up and does not count."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns + 1):
        for name, go in contestants.items():
            start = time.process_time()
            go()
            times[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in times.items()}


def ratio(one: Iterable[float], other: Iterable[float]) -> float:
    """Median over the turns of how often `other` fits into `one`."""
    return median(a / b for a, b in zip(one, other, strict=True))


def noise(images: int, pixels: int, channels: int, shift: int) -> Dataset:
    """Images and labels drawn at random, cropped and flipped when served as photographs are."""
    draws = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        drawn = torch.randint(256, (count, channels, pixels, pixels), generator=draws, dtype=torch.uint8)
        labels = torch.randint(10, (count,), generator=draws)
        return Split(drawn, labels, (0.5,) * channels, (0.25,) * channels, "crop_flip", shift)

    return Dataset("noise", split(images), split(16), 10, channels, pixels, "drawn at random", "none")


def meant(numbers: Mapping[str, float], meanings: Mapping[str, str]) -> Rows:
    """Ratios with what they mean."""
    return [{"measure": key, "value": value, "meaning": meanings[key]} for key, value in numbers.items()]


def write(name: str, text: str, measure: Callable[[argparse.Namespace], dict[str, Rows]], **options: Any) -> None:
    """Measure, on one thread; write the tables, and the page whose `{places}` they fill, and print it.

    options: defaults of the command line, a list for several values.
    """
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    for option, value in options.items():
        many = isinstance(value, list)
        parser.add_argument(
            f"--{option}", type=type(value[0] if many else value), default=value, nargs="*" * many or None
        )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made, load = provenance(), round(os.getloadavg()[0], 2)
    tables = measure(arguments)
    where = {"commit": made["commit"], **made["hardware"], **made["versions"], "load": load}
    told = "{processor}, {cores} cores, python {python}, torch {torch}; load of the machine before: {load}"
    shown = {key: pd.DataFrame(rows).round(3).fillna("").to_markdown(index=False) for key, rows in tables.items()}
    page = text.format(environment=told.format(**where), **vars(arguments), **shown)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / f"{name}.json").write_text(json.dumps({"environment": where, **tables}, indent=1) + "\n")
    (arguments.results / f"{name}.md").write_text(page)
    print(page)
