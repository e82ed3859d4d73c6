"""What one call of the workflow trains: the runs that its targets want and that have no record that holds.

Jobs are large and always the same (`Plan.batches`), so that a call starts few processes; what a job trains is in a list
that the call writes, so that one item costs its own runs and no others. The list is an input of the job: Snakemake runs
the job when it is newer than the index, which the job writes when all is there. Without torch or pandas.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from unlocked.artifact import config
from unlocked.artifact.folders import current, folder_of, locked, summary_of
from unlocked.artifact.plan import Batch, Plan
from unlocked.papers.run import Run
from unlocked.units import human_time, plural

PILOT = "pilot"  # the target that wants the runs which choose learning rates


@dataclass
class Call:
    """One call, by its targets: names of rules, or files. Asked for them late: Snakemake knows them after its rules.

    targets: None in the process of a job on another machine, which only reads what the call has written. dry: whether
    nothing will run, as with `snakemake -n`; then nothing is written.
    """

    plan: Plan
    results: Path
    figures: Path
    targets: Callable[[], Iterable[str]] | None = tuple
    dry: Callable[[], bool] = lambda: False

    def index(self, batch: Batch) -> Path:
        """The file that a job writes when all its records are there: its runs, and what is in their records."""
        return self.results / self.plan.scale.name / batch.paper / "batches" / f"{batch.id}.txt"

    def list_of(self, batch: Batch) -> Path:
        """The file that says what a job trains."""
        return self.index(batch).with_suffix(".json")

    def wanted_for(self, target: str) -> Iterator[str]:
        """The runs that a target wants: those of an item, a group, a file of an item, the pilot; else those of all."""
        if target == PILOT:
            yield from (name for cells in self.plan.pilot.values() for runs in cells.values() for name in runs)
            return
        stem, scale, items = Path(target).absolute().with_suffix(""), self.plan.scale.name, self.plan.items.values()
        own = [i for i in items if target in (i.name, i.paper) or stem == i.stem(self.figures, scale).absolute()]
        yield from (name for item in own or items for name in item.runs)

    @cached_property
    def wanted(self) -> dict[str, Run]:
        """The runs that the targets want, by name."""
        targets = [*(self.targets() if self.targets else ())] or ["all"]
        return {name: self.plan.runs[name] for target in targets for name in self.wanted_for(target)}

    @cached_property
    def missing(self) -> dict[str, Run]:
        """The wanted runs without a record that holds."""
        if self.targets is None:
            return {}
        return {name: run for name, run in self.wanted.items() if not current(folder_of(self.results, run), run)}

    def runs_of(self, batch: Batch) -> list[Run]:
        """What a job trains for this call."""
        if self.targets is None:
            return [run for run, _ in read_list(self.list_of(batch))]
        return [self.missing[name] for name in batch.runs if name in self.missing]

    def indexes_of(self, runs: Iterable[str]) -> list[str]:
        """The jobs that somebody waits for who reads these runs, by the files that they write."""
        _ = self.lists
        return [str(self.index(batch)) for batch in self.plan.batches_of(runs)]

    def lists_of(self, batch: Batch) -> list[str]:
        """A job's list as its input: newer than its index if it has something to train, else of no account.

        None where nothing can be written and nothing was.
        """
        runs, path = self.runs_of(batch), self.list_of(batch)
        if runs and self.dry():
            return [self._now.name]
        _ = self.lists
        from snakemake.io import ancient  # here, because jobs come past this module without Snakemake

        return [str(path) if runs else ancient(str(path))] if path.exists() else []

    @cached_property
    def _now(self) -> IO[bytes]:
        """A file newer than every index, while this process lives: what jobs wait for in a dry run."""
        return tempfile.NamedTemporaryFile()

    @cached_property
    def lists(self) -> IO[str] | None:
        """Written at the first look, before Snakemake compares times; with them a lock, until this process ends."""
        jobs = self.plan.batches_of(self.wanted)
        if self.targets is None or not jobs or self.dry():
            return None
        with suppress(OSError):  # in a folder that cannot be written: `check_folders` says so
            for batch in jobs:
                self.list_of(batch).parent.mkdir(parents=True, exist_ok=True)
            calls = (self.results / self.plan.scale.name / ".calls").open("a")
            alone = locked(calls) is not False
            for batch in jobs:
                self._write(batch, alone)
            locked(calls, fcntl.LOCK_SH)
            return calls
        return None

    def _write(self, batch: Batch, alone: bool) -> None:
        """List what a job is to train, or else what it has, with this call's settings: it may run for another reason.

        While another call works on the same results, what that wants, too.
        """
        path = self.list_of(batch)
        runs = {run.id: run for run in self.runs_of(batch) or map(self.wanted.get, batch.runs) if run}
        if not alone and path.exists():
            runs |= {run.id: run for run, _ in read_list(path)}
        entries = [{"settings": run.settings(), "items": self.plan.items_of(name)} for name, run in runs.items()]
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(json.dumps({"written": time.time_ns(), "runs": entries}))  # a new time: Snakemake also compares
        new.replace(path)

    def __format__(self, batch: str) -> str:
        """Snakemake's message on a job, as rules can write it: `{call:<id of the batch>}`."""
        runs = self.runs_of(self.plan.batches[batch])
        return about(runs) if runs else f"nothing to train in {batch}: all records are there"


def read_list(path: Path) -> Iterator[tuple[Run, list[str]]]:
    """The runs of a job, each with the items that want it."""
    for entry in json.loads(path.read_text())["runs"]:
        yield config.run_from(entry["settings"]), entry["items"]


def index_text(runs: Iterable[Run], results: Path) -> str:
    """The content of an index: it changes when a record does, and Snakemake redraws what depends on it."""
    return "".join(f"{run.id} {summary_of(folder_of(results, run)).get('digest')}\n" for run in runs)


def about(runs: list[Run]) -> str:
    """What a job trains, in a line: `8 runs of acid, seed 0: ring n64 r1; baseline, acid; about 40 s`."""
    words = [run.slug().split("-") for run in runs]
    common = [word for word in words[0] if all(word in others for others in words)]
    several = list(dict.fromkeys(word for own in words for word in own if word not in common))
    shown = ", ".join(several[:8]) + ", ..." * (len(several) > 8)
    seeds = " and ".join(map(str, sorted({run.seed for run in runs})))
    what = "; ".join(filter(None, (" ".join(common), shown)))
    seconds = sum(run.estimate().seconds for run in runs)
    return f"{plural(len(runs), 'run')} of {runs[0].paper}, seed {seeds}: {what}; about {human_time(seconds)}"
