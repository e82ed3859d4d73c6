"""Recorder: one `log` call writes the run record and Weights & Biases, and shows progress. The only wandb import.

Between the trainers, which log, and the record, which it writes. The record is the source of every figure; W&B is its
mirror, offline unless asked otherwise, and never stands between a person and a run.
"""

from __future__ import annotations

import functools
import math
import resource
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import pandas as pd
from omegaconf import DictConfig
from tqdm import tqdm

from unlocked import config, record

SECONDS_TO_ANSWER = 10  # after which a W&B server counts as out of reach
SECONDS_TO_UPLOAD = 120  # at the end of a run; what is left is on disk and can be uploaded later


class Stop:
    """Turns SIGTERM and SIGINT into a flag that a trainer reads between two steps, so that it can checkpoint."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        """Take the signals over."""
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:  # asked twice: do not wait for the checkpoint
            raise KeyboardInterrupt
        self.requested = number


class Interrupted(Exception):
    """Raised after a checkpoint because a stop was requested; `number` is the signal."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class Data(Protocol):
    """What provenance says of the data."""

    name: str
    source: str
    checksum: str


class Recorder:
    """Collects a run's history, mirrors it to W&B, and writes the record at the end."""

    def __init__(
        self,
        folder: Path,
        run: DictConfig,
        *,
        total_steps: int,
        items: Iterable[str] = (),
        code: str = "",
        stop: Stop | None = None,
    ) -> None:
        self.folder, self.run, self.code = folder, run, code
        self.total_steps = total_steps
        self.items = list(items)
        self.rows: list[dict[str, Any]] = []
        self.started = time.perf_counter()
        self.earlier_seconds = 0.0
        self.resumed = 0
        self._stop = stop
        self._wandb: Any = None  # None: not started; False: disabled
        record.partial(folder).mkdir(parents=True, exist_ok=True)
        self._bar = tqdm(total=total_steps, desc=folder.name, unit="grad") if sys.stderr.isatty() else None

    @property
    def checkpoint_path(self) -> Path:
        """Where the unfinished run keeps its state."""
        return record.partial(self.folder) / "checkpoint.pt"

    @property
    def stop_requested(self) -> int | None:
        """The signal by which the process was asked to end, None if it was not."""
        return self._stop.requested if self._stop is not None else None

    @property
    def seconds(self) -> float:
        """Seconds spent on this run, earlier parts included."""
        return self.earlier_seconds + time.perf_counter() - self.started

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the recorder: plain values."""
        return {"rows": self.rows, "seconds": self.seconds, "resumed": self.resumed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint: the history so far is kept, and mirrored anew."""
        self.rows = list(state["rows"])
        self.earlier_seconds, self.resumed = float(state["seconds"]), int(state["resumed"]) + 1
        if self._bar is not None and self.rows:
            self._bar.update(self.rows[-1]["step"])

    def log(
        self,
        metrics: Mapping[str, float | Iterable[float]],
        *,
        step: int,
        epoch: float,
        virtual_time: float = 0.0,
    ) -> None:
        """Record metrics at a step. A sequence is one value per worker or block, in the order of their index."""
        at = {"step": step, "epoch": epoch, "virtual_time": virtual_time, "wall_time": self.seconds}
        rows = []
        for metric, value in metrics.items():
            if isinstance(value, (int, float)):
                rows.append(at | {"metric": metric, "index": -1, "value": float(value)})
            else:
                rows += [at | {"metric": metric, "index": k, "value": float(v)} for k, v in enumerate(value)]
        if self._wandb is None:
            self._wandb = self._start_wandb()
            self._mirror(self.rows)  # what an interrupted run had logged: W&B may have lost it
        self.rows += rows
        self._mirror(rows)
        self._show(rows, step)

    def _start_wandb(self) -> Any:
        """The W&B run, or False: tracking that cannot start says so in one line and does not stop the training."""
        return self._tracked(lambda: start_wandb(self.run, self.folder, self.items))

    def _tracked(self, call: Callable[[], Any]) -> Any:
        """What a call to W&B returns; when it fails one line says so, and the run goes on without W&B."""
        try:
            return call()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"{self.folder.name} is not mirrored to W&B ({reason}); its record is complete")
            self._wandb = False
            return False

    def _show(self, rows: list[dict[str, Any]], step: int) -> None:
        """A moving bar on a terminal, one line otherwise."""
        scalars = {row["metric"]: row["value"] for row in rows if row["index"] < 0}
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in list(scalars.items())[:3]}, refresh=False)
        else:
            text = " ".join(f"{key}={value:.4g}" for key, value in scalars.items())
            print(f"{self.folder.name} {step}/{self.total_steps} {text}", flush=True)

    def _mirror(self, rows: list[dict[str, Any]]) -> None:
        """Send rows to W&B; values of an index appear as `metric/index`."""
        if not self._wandb:
            return
        by_step: dict[int, dict[str, float]] = {}
        for row in rows:
            key = row["metric"] if row["index"] < 0 else f"{row['metric']}/{row['index']}"
            values = by_step.setdefault(row["step"], {"epoch": row["epoch"], "virtual_time": row["virtual_time"]})
            values[key] = row["value"]
        self._tracked(lambda: [self._wandb.log(values, step=step) for step, values in by_step.items()])

    def interrupt(self) -> None:
        """End the process's part in this run; the checkpoint stays and a later call continues."""
        self._close(exit_code=1)

    def finish(self, status: str, counts: Mapping[str, Any], data: Data, reason: str | None = None) -> dict[str, Any]:
        """Write the record and return its summary."""
        history = pd.DataFrame(self.rows, columns=list(record.HISTORY))
        scalars = history[history["index"] < 0]
        metrics = scalars.groupby("metric").tail(1).set_index("metric")["value"]  # the last row, also if it is NaN
        summary = {
            "run_id": self.folder.name,
            "config_hash": config.config_hash(self.run),
            "status": status,
            "metrics": {str(k): (float(v) if math.isfinite(v) else None) for k, v in metrics.items()},
            "counts": dict(counts),
            "durations": {"wall_seconds": round(self.seconds, 3)},
            "peak_memory_mb": peak_memory_mb(self.run.runtime.device),
            "provenance": record.provenance()
            | {
                "threads": self.run.runtime.threads,
                "seed": self.run.seed,
                "code": self.code,
                "data": {"name": data.name, "source": data.source, "checksum": data.checksum},
                "resumed": self.resumed,
            },
        }
        if reason:
            summary["reason"] = reason
        if self._wandb:
            self._tracked(lambda: self._wandb.summary.update({"status": status, **summary["metrics"]}))
        self._close(exit_code=0)
        record.write(self.folder, self.run, history, summary)
        return summary

    def _close(self, exit_code: int) -> None:
        if self._wandb:
            self._tracked(lambda: self._wandb.finish(exit_code=exit_code))
        if self._bar is not None:
            self._bar.close()


def start_wandb(run: DictConfig, folder: Path, items: Iterable[str]) -> Any:
    """Open the W&B run of `run`, False if it is disabled. Its id is the run's name, so that a person finds it."""
    runtime = run.runtime
    if runtime.wandb == "disabled":
        return False
    import wandb

    working = record.partial(folder)
    mode = mode_within_reach(runtime.wandb)
    if mode == "offline":
        shutil.rmtree(working / "wandb", ignore_errors=True)
    settings = config.identity(run)
    commit = record.provenance()["commit"]
    tags = [run.paper, run.scale, f"seed {run.seed}", *items]
    tags += [str(settings[key]) for key in ("method", "target", "guess") if key in settings]
    tags += [commit[:12]] if commit else []
    return wandb.init(
        project=runtime.wandb_project,
        entity=runtime.wandb_entity,
        mode=mode,
        dir=working,
        id=folder.name,
        name=folder.name,
        group=f"{run.scale}/{run.paper}",
        job_type=str(settings.get("method", settings.get("guess", "train"))),
        tags=tags,
        config=settings,
        resume="allow" if mode == "online" else None,
        reinit="finish_previous",
        settings=wandb.Settings(**known_settings()),
    )


def known_settings() -> dict[str, Any]:
    """Settings of W&B's own, those that the installed version knows."""
    import wandb

    # the list of installed packages would take .2 s per run: versions are in the record and in the config
    wanted = {"x_disable_stats": True, "x_save_requirements": False}
    wanted |= {"console": "off", "silent": True, "finish_timeout": SECONDS_TO_UPLOAD}
    return {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}


@functools.cache
def mode_within_reach(mode: str) -> str:
    """`mode`, or `offline` where it is `online` and the server does not answer; asked once per process.

    W&B itself would try for a minute and a half, for every run, and then keep nothing.
    """
    if mode != "online":
        return mode
    import wandb

    url = wandb.setup().settings.base_url
    try:
        urllib.request.urlopen(url, timeout=SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError:  # an answer
        return mode
    except (OSError, ValueError) as error:
        say(f"W&B at {url} cannot be reached ({error}); runs are kept offline, upload them later with `wandb sync`")
        return "offline"
    return mode


def say(text: str) -> None:
    """One line to the terminal or the job's log."""
    print(f"unlocked: {text}", file=sys.stderr, flush=True)


def peak_memory_mb(device: str) -> float:
    """Peak resident memory of this process, plus the peak allocation on the GPU if one is used."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    if device.startswith("cuda"):
        import torch

        peak += torch.cuda.max_memory_allocated(device) / 2**20
    return round(peak, 1)
