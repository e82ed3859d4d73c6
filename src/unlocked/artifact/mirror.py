"""The Weights & Biases run beside a record: offline unless asked otherwise, and never in the way of a run.

The only import of wandb. Whatever fails there costs one line, and the run goes on without.
"""

from __future__ import annotations

import functools
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from unlocked.artifact.record import partial, provenance
from unlocked.console import say
from unlocked.errors import one_line
from unlocked.papers.run import Run

THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="wandb")  # in which W&B is imported, started and called
SECONDS_TO_UPLOAD = 120  # at the end of a run; what is left is on disk and can be uploaded later
# W&B's own settings. To list the installed packages would take .2 s per run.
OWN = {"x_save_requirements": False, "console": "off", "silent": True}
TAGGED = ("method", "target", "guess")  # settings that a run is tagged with


class Mirror:
    """Sends a history to W&B as it grows, from a thread that all runs of a process share: no training waits for it."""

    def __init__(self, run: Run, folder: Path, items: Iterable[str]) -> None:
        self.name, self.sent = folder.name, 0
        self._wandb: Any = None
        self._wanted = run.runtime.wandb != "disabled"
        self._later(self._start, run, folder, items)

    def send(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send what is new in a history; of a continued run all, because W&B may have lost what it had."""
        self._later(self._log, rows[self.sent :])
        self.sent = len(rows)

    def close(self, exit_code: int, final: Mapping[str, Any]) -> None:
        """Set the run's final values, and end it; returns when W&B has written everything."""
        if (last := self._later(self._finish, exit_code, final)) is not None:
            last.result()

    def _later(self, call: Callable[..., None], *arguments: Any) -> Future[None] | None:
        return THREAD.submit(self._tracked, call, *arguments) if self._wanted else None

    def _tracked(self, call: Callable[..., None], *arguments: Any) -> None:
        """What fails in here costs one line, and W&B is not called again."""
        try:
            if self._wanted:
                call(*arguments)
        except Exception as error:
            say(f"{self.name} is not mirrored to W&B ({one_line(error)}); its record is complete")
            self._wanted = False

    def _start(self, run: Run, folder: Path, items: Iterable[str]) -> None:
        self._wandb = start_wandb(run, folder, items)

    def _log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        by_step: dict[int, dict[str, float]] = {}
        for row in rows:
            key = row["metric"] if row["index"] < 0 else f"{row['metric']}/{row['index']}"
            values = by_step.setdefault(row["step"], {"epoch": row["epoch"], "virtual_time": row["virtual_time"]})
            values[key] = row["value"]
        for step, values in by_step.items():
            self._wandb.log(values, step=step)

    def _finish(self, exit_code: int, final: Mapping[str, Any]) -> None:
        self._wandb.summary.update(dict(final))
        self._wandb.finish(exit_code=exit_code)


def start_wandb(run: Run, folder: Path, items: Iterable[str]) -> Any:
    """Open the W&B run of `run`. Its id is the run's name, so that a person finds it."""
    import wandb

    runtime = run.runtime
    online = runtime.wandb == "online" and reachable()
    if not online:
        shutil.rmtree(partial(folder) / "wandb", ignore_errors=True)
    settings = run.identity()
    opened = wandb.init(
        project=runtime.wandb_project,
        entity=runtime.wandb_entity,
        mode="online" if online else "offline",
        dir=partial(folder),
        id=os.environ["WANDB_RUN_ID"] if "WANDB_SWEEP_ID" in os.environ else folder.name,  # an agent has named it
        name=folder.name,
        group=f"{run.scale}/{run.paper}",
        tags=tags_of(run, items),
        config=settings,
        resume="allow" if online else None,
        reinit="finish_previous",
        settings=wandb.Settings(finish_timeout=SECONDS_TO_UPLOAD, x_disable_stats=not runtime.wandb_system, **OWN),
    )
    axis = "epoch" if "epochs" in settings.get("optim", {}) else "virtual_time"
    for name, more in {"epoch": {}, "virtual_time": {}, "*": {"step_metric": axis}}.items():
        opened.define_metric(name, **more)
    return opened


def tags_of(run: Run, items: Iterable[str]) -> list[str]:
    """`paper:acid`, `scale:quick`, `seed:0`, `method:acid`, `item:acid_figure_1`, `commit:0123abcd`."""
    settings, commit = run.identity(), provenance()["commit"] or "unknown"
    tags = {"paper": run.paper, "scale": run.scale, "seed": run.seed}
    tags |= {key: settings[key] for key in TAGGED if key in settings}
    own = [f"{key}:{value}" for key, value in tags.items()]
    return [*own, *(f"item:{name}" for name in items), f"commit:{commit[:12]}"]


@functools.cache
def reachable() -> bool:
    """Whether the W&B server answers; where it does not, W&B itself would try for long and then keep nothing."""
    import wandb

    url = wandb.setup().settings.base_url
    try:
        with suppress(urllib.error.HTTPError):  # an answer
            urllib.request.urlopen(url, timeout=10).close()
    except (OSError, ValueError) as error:
        say(f"W&B at {url} cannot be reached ({error}); runs are kept offline, upload them later with `wandb sync`")
        return False
    return True
