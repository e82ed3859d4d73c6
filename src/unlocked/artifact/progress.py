"""What a running workflow says every half minute: runs done, what is being trained, and the time that is left.

All of it is read from the results folder, from records and from the logs of training jobs, so that it is the same on a
laptop and on a cluster. The thread that says it ends with Snakemake, however that ends.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from unlocked.artifact.calls import Call
from unlocked.artifact.folders import folder_of, summary_of
from unlocked.console import say
from unlocked.units import human_time, plural

EVERY = 30.0  # seconds
DRAWING = 1.0  # seconds of a core for an item
LOGGED = re.compile(rb"^(\S+) (\d+)/(\d+) ", re.MULTILINE)  # an evaluation, as `tracking.Recorder` prints it
TAIL = 4000  # bytes of a log in which the last evaluation is looked for
SHOWN = 4  # running runs


class Progress:
    """Of one call; `at_once`: jobs that may run at the same time."""

    def __init__(self, call: Call, at_once: int) -> None:
        self.call, self.at_once, self.started = call, max(1, at_once), time.time()
        self.estimates = {name: run.estimate().seconds for name, run in call.missing.items()}
        wanted = call.wanted.keys()
        self.items = sum(bool(item.runs) and wanted >= {*item.runs} for item in call.plan.items.values())
        self.took: dict[str, float] = {}  # seconds of the runs that were finished since

    def start(self) -> None:
        """Say what is to be done, then how far it is, from a thread that ends with the process."""
        if self.estimates:
            say(self.beginning())
            threading.Thread(target=self._go_on, daemon=True, name="progress").start()

    def _go_on(self) -> None:
        while len(self.took) < len(self.estimates):
            time.sleep(EVERY)
            with suppress(OSError, ValueError):  # a file that is being written: the next time
                say(self.line())

    def beginning(self) -> str:
        """`12 runs to train, about 40 s on 2 cores; 3 of them go on from checkpoints; 8 are there already`."""
        folders = [folder_of(self.call.results, run) for run in self.call.missing.values()]
        begun = sum(any(Path(f"{folder}.partial").glob("checkpoint-*.pt")) for folder in folders)
        there = len(self.call.wanted) - len(folders)
        parts = [
            f"{plural(len(folders), 'run')} to train, about {human_time(self.left({}))} with {self.at_once} at a time",
            f"{begun} of them from checkpoints on" * (begun > 0),
            f"{there} there already" * (there > 0),
        ]
        return "; ".join(filter(None, parts))

    def line(self) -> str:
        """`41 of 305 runs done; running: acid-ring-n64-r1-s0-1a2b3c4d (60 %); about 4 min left`."""
        self.took |= dict(self.finished())
        running = dict(self.running())
        shown = [f"{name} ({part:.0%})" for name, part in running.items()]
        more = f" and {len(shown) - SHOWN} more" * (len(shown) > SHOWN)
        parts = [
            f"{len(self.took)} of {plural(len(self.estimates), 'run')} done",
            f"running: {', '.join(shown[:SHOWN])}{more}" * bool(shown),
            f"about {human_time(self.left(running))} left",
        ]
        return "; ".join(filter(None, parts))

    def finished(self) -> Iterator[tuple[str, float]]:
        """Runs whose record is new, with the seconds that they took."""
        for name, run in self.call.missing.items():
            path = (folder := folder_of(self.call.results, run)) / "summary.json"
            if name not in self.took and path.is_file() and path.stat().st_mtime >= self.started:
                yield name, float(summary_of(folder)["durations"]["wall_seconds"])

    def running(self) -> Iterator[tuple[str, float]]:
        """Runs that were last heard of in the log of a job, with the part of them that is done."""
        for batch in self.call.plan.batches_of(self.estimates):
            log = self.call.index(batch).parent.with_name("logs") / f"{batch.id}.log"
            if not log.is_file() or log.stat().st_mtime < self.started:
                continue
            with log.open("rb") as file:
                file.seek(max(0, log.stat().st_size - TAIL))
                found = LOGGED.findall(file.read())
            for name, step, total in found[-1:]:
                if name.decode() in self.estimates.keys() - self.took.keys():
                    yield name.decode(), min(1.0, int(step) / max(1, int(total)))

    def left(self, running: dict[str, float]) -> float:
        """Seconds: the plan's estimates, scaled by what they were for the runs that are done, and the drawing."""
        expected = sum(self.estimates[name] for name in self.took)
        scale = sum(self.took.values()) / expected if expected else 1.0
        rest = {name: seconds for name, seconds in self.estimates.items() if name not in self.took}
        work = scale * sum(seconds * (1 - running.get(name, 0.0)) for name, seconds in rest.items())
        return (work + DRAWING * self.items) / self.at_once


def what_to_open(call: Call) -> str:
    """The last line of a call: where its results are."""
    targets = list(call.targets() if call.targets else ())
    scale, items = call.plan.scale.name, call.plan.items
    if "report" in targets:
        return f"open {call.results / scale / 'report.html'}"
    if targets and all(target in items for target in targets):
        endings = {"figure": "pdf", "table": "md"}
        files = (f"{items[t].stem(call.figures, scale)}.{endings[items[t].config.kind]}" for t in targets)
        return f"open {' '.join(files)}"
    return f"tables and figures are in {call.figures / scale}; `reproduce.py report` makes one page of all"
