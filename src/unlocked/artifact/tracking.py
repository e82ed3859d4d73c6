"""The recorder, whose `log` feeds a run's record, its mirror and the terminal; and the flag that stops a training."""

from __future__ import annotations

import contextlib
import math
import resource
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from unlocked import fingerprint
from unlocked.artifact import record
from unlocked.artifact.mirror import Mirror
from unlocked.papers.base import Measurement
from unlocked.papers.run import Run

if TYPE_CHECKING:
    from unlocked.vision.data import Dataset

PEAK = Path("/proc/self/clear_refs")  # of Linux: 5 makes the present resident memory the peak
NO_DATA = {"name": "none", "source": "drawn from the run's seed", "checksum": "none"}


class Stop:
    """Turns SIGTERM and SIGINT into a flag that a training reads between two steps, so that it can checkpoint."""

    requested: int | None = None

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:  # asked twice: do not wait for the checkpoint
            raise KeyboardInterrupt
        self.requested = number


class Interrupted(Exception):
    """Raised after a checkpoint because a stop was requested; `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Recorder:
    """Collects a run's history, mirrors it to W&B, and writes the record at the end."""

    def __init__(self, folder: Path, run: Run, items: Iterable[str] = (), stop: Stop | None = None) -> None:
        self.folder, self.run, self.stop = folder, run, stop
        self.code = fingerprint.training(run.trainer)
        self.rows: list[dict[str, Any]] = []
        self.started, self.resumed = time.perf_counter(), 0
        self.total = run.estimate().gradients
        forget_peak_memory(run.runtime.device)
        record.partial(folder).mkdir(parents=True, exist_ok=True)
        self._mirror = Mirror(run, folder, items)

    @property
    def seconds(self) -> float:
        """Seconds spent on this run, earlier parts included."""
        return time.perf_counter() - self.started

    def log(self, measured: Measurement) -> None:
        """Record an evaluation. A sequence is one value per worker or block, in the order of their index."""
        at = {name: getattr(measured, name) for name in ("step", "epoch", "virtual_time")} | {"wall_time": self.seconds}
        rows: list[dict[str, Any]] = []
        for metric, value in measured.metrics.items():
            values = [(-1, value)] if isinstance(value, (int, float)) else enumerate(value)
            rows += [at | {"metric": metric, "index": index, "value": float(one)} for index, one in values]
        self.rows += rows
        self._mirror.send(self.rows)
        text = " ".join(f"{row['metric']}={row['value']:.4g}" for row in rows if row["index"] < 0)
        print(f"{self.folder.name} {measured.step}/{self.total} {text}", flush=True)

    def finish(self, status: str, counts: Mapping[str, Any], data: Dataset | None, reason: str = "") -> None:
        """Write the record."""
        last = {row["metric"]: row["value"] for row in self.rows if row["index"] < 0}
        summary: dict[str, Any] = {
            "run_id": self.folder.name,
            "config_hash": self.run.hash,
            "status": status,
            "metrics": {name: value if math.isfinite(value) else None for name, value in last.items()},
            "counts": dict(counts),
            "durations": {"wall_seconds": round(self.seconds, 3)},
            "peak_memory_mb": peak_memory_mb(self.run.runtime.device),
            "provenance": {
                **record.provenance(),
                "threads": self.run.runtime.threads,
                "seed": self.run.seed,
                "code": self.code,
                "data": {name: getattr(data, name) for name in NO_DATA} if data else NO_DATA,
                "resumed": self.resumed,
            },
        } | ({"reason": reason} if reason else {})
        self.close(0, {"status": status, **summary["metrics"]})
        record.write(self.folder, self.run, pd.DataFrame(self.rows, columns=list(record.HISTORY)), summary)

    def close(self, exit_code: int, final: Mapping[str, Any]) -> None:
        """End the process's part in this run; where it is not finished, a later call continues from the checkpoint."""
        self._mirror.close(exit_code, final)


def forget_peak_memory(device: str) -> None:
    """From here on peaks are of one run, not of all that this process has trained; resident memory's on Linux only."""
    with contextlib.suppress(OSError):
        PEAK.write_text("5")
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: str) -> float:
    """Peak resident memory of this process, plus the peak allocation on the GPU if one is used."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    if device.startswith("cuda"):
        peak += torch.cuda.max_memory_allocated(device) / 2**20
    return round(peak, 1)
