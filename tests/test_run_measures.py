"""Single numbers of one run: which part of a history they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from unlocked import config, measures, record
from unlocked.record import Record


def distances(values: list[float], **settings: Any) -> Record:
    """A record whose consensus distance takes these values at steps 0, 10, 20, ..."""
    base = config.defaults("acid", config.load_scale("quick"))
    run = config.resolve(base, settings)
    rows = [
        {"step": 10 * k, "epoch": float(k), "virtual_time": float(k), "wall_time": 0.0, "metric": "consensus_distance",
         "index": -1, "value": value}
        for k, value in enumerate(values)
    ]  # fmt: skip
    history = pd.DataFrame(rows, columns=list(record.HISTORY)).astype(record.HISTORY)
    return Record(Path("run"), run, history, {"status": "completed", "metrics": {}})


def test_a_training_counts_whole_but_for_its_start() -> None:
    """All evaluations after the start have the same weight."""
    assert measures.consensus(distances([100.0, 8.0, 4.0, 2.0, 2.0])) == pytest.approx(4.0)


def test_a_study_counts_when_it_has_settled() -> None:
    """Its second half: steps 20 to 40."""
    study = distances([100.0, 8.0, 4.0, 2.0, 3.0], study="quadratic")
    assert measures.consensus(study) == measures.settled(study) == pytest.approx(3.0)
