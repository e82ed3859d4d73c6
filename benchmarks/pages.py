"""What all benchmarks write: where they ran, and their tables as one JSON and one Markdown file in `results/`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from unlocked.artifact.record import provenance

Rows = list[dict[str, Any]]


def ratios(numbers: Mapping[str, float], meanings: Mapping[str, str]) -> Rows:
    """The numbers of an `unlocked bench`."""
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
