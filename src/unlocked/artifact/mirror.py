"""The Weights & Biases run beside a record: offline unless asked otherwise, and never in the way of a run.

The only import of wandb. Whatever fails there costs one line, and the run goes on without.
"""

from __future__ import annotations

import functools
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unlocked.artifact.record import partial, provenance
from unlocked.console import say
from unlocked.papers.run import Run

SECONDS_TO_UPLOAD = 120  # at the end of a run; what is left is on disk and can be uploaded later
# W&B's own settings. To list the installed packages would take .2 s per run.
OWN = {"x_disable_stats": True, "x_save_requirements": False, "console": "off", "silent": True}


class Mirror:
    """Sends a history to W&B as it grows."""

    def __init__(self, run: Run, folder: Path, items: Iterable[str]) -> None:
        self.name, self.sent = folder.name, 0
        self._wandb: Any = None
        with self._tracked():
            self._wandb = start_wandb(run, folder, items)

    def send(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send what is new in a history; of a continued run all, because W&B may have lost what it had."""
        if self._wandb is None:
            return
        by_step: dict[int, dict[str, float]] = {}
        for row in rows[self.sent :]:
            key = row["metric"] if row["index"] < 0 else f"{row['metric']}/{row['index']}"
            values = by_step.setdefault(row["step"], {"epoch": row["epoch"], "virtual_time": row["virtual_time"]})
            values[key] = row["value"]
        self.sent = len(rows)
        with self._tracked():
            for step, values in by_step.items():
                self._wandb.log(values, step=step)

    def close(self, exit_code: int, final: Mapping[str, Any]) -> None:
        """Set the run's final values, and end it."""
        with self._tracked():
            if self._wandb is not None:
                self._wandb.summary.update(dict(final))
                self._wandb.finish(exit_code=exit_code)

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        """What fails in here costs one line, and W&B is not called again."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            say(f"{self.name} is not mirrored to W&B ({reason}); its record is complete")
            self._wandb = None


def start_wandb(run: Run, folder: Path, items: Iterable[str]) -> Any:
    """Open the W&B run of `run`, None if it is disabled. Its id is the run's name, so that a person finds it."""
    runtime = run.runtime
    if runtime.wandb == "disabled":
        return None
    import wandb

    online = runtime.wandb == "online" and reachable()
    if not online:
        shutil.rmtree(partial(folder) / "wandb", ignore_errors=True)
    settings = run.identity()
    commit = provenance()["commit"]
    tags = [run.paper, run.scale, f"seed {run.seed}", *items]
    tags += [str(settings[key]) for key in ("method", "target", "guess") if key in settings]
    return wandb.init(
        project=runtime.wandb_project,
        entity=runtime.wandb_entity,
        mode="online" if online else "offline",
        dir=partial(folder),
        id=folder.name,
        name=folder.name,
        group=f"{run.scale}/{run.paper}",
        tags=[*tags, commit[:12]] if commit else tags,
        config=settings,
        resume="allow" if online else None,
        reinit="finish_previous",
        settings=wandb.Settings(finish_timeout=SECONDS_TO_UPLOAD, **OWN),
    )


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
