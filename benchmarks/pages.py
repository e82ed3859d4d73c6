"""What all benchmarks write: where they ran, their ratios with meanings, and one JSON and one Markdown file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from unlocked import record

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Commit, hardware and versions, and how busy the machine was when the benchmark began."""
    found = record.provenance()
    hardware = {key: found["hardware"][key] for key in ("processor", "cores")}
    return {"commit": found["commit"], **hardware, **found["versions"], "load": round(os.getloadavg()[0], 2)}


def sentence(where: Mapping[str, Any]) -> str:
    """The environment in one line."""
    return (
        f"{where['processor']}, {where['cores']} cores, python {where['python']}, torch {where['torch']}; "
        f"load of the machine before: {where['load']}"
    )


def ratios(found: Mapping[str, float], meanings: Mapping[str, str]) -> str:
    """The numbers of an `unlocked bench` as a Markdown table."""
    rows = [(key, round(value, 3), meanings.get(key, "")) for key, value in found.items()]
    return pd.DataFrame(rows, columns=["measure", "value", "meaning"]).to_markdown(index=False)


def write(folder: Path, name: str, found: Mapping[str, Any], text: str) -> None:
    """Write the numbers and the page, and print the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    print(text)
