"""What the Snakefile asks: settings, targets, and the commands of its rules. Logic that a test can reach.

Beside the road, without torch: imported at every start of Snakemake.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unlocked import budget, config, fingerprint, published, resources
from unlocked.errors import DataError, SettingError, choose, storage_error
from unlocked.items.build import title_of
from unlocked.papers import PAPERS
from unlocked.plan import CLAIMS, Batch, Item, Plan
from unlocked.record import folder_of
from unlocked.resources import Resources

CATEGORIES = {key: paper.title for key, paper in PAPERS.items()} | {
    CLAIMS: "Claims of both papers"
}  # of Snakemake's report
CONFIG_SCHEMA = config.ROOT / "workflow" / "schemas" / "config.schema.json"
STARTED = time.time()
FULL_BYTES = 2**20  # free space below which a disk counts as full
RUNTIME = ("device", "threads", "wandb", "wandb_project", "wandb_entity", "data_root", "reuse", "checkpoint_minutes")
RUNTIME += ("interface", "timeout", "backend", "precision", "channels_last", "compile")


@dataclass(frozen=True)
class Setup:
    """The workflow's settings, and the plan that follows from them."""

    scale: str
    overrides: tuple[str, ...]
    runtime: tuple[tuple[str, Any], ...]
    results: Path
    figures: Path

    @classmethod
    def read_or_exit(cls, settings: Mapping[str, Any]) -> Setup:
        """`read` and plan; a setting that cannot work ends Snakemake with one line."""
        try:
            setup = cls.read(settings)
            setup.plan  # noqa: B018 - read now, so that nothing starts when it cannot be read
            for paper in config.PAPERS:
                published.of_paper(paper)  # refuse a value that cannot be shown, e.g. one without a source
        except (SettingError, DataError) as error:
            sys.exit(f"unlocked: {error}")
        return setup

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Setup:
        """From Snakemake's `config`, checked against its schema."""
        import jsonschema

        schema = json.loads(CONFIG_SCHEMA.read_text())
        for key in settings:
            choose("--config", key, schema["properties"])
        try:
            jsonschema.validate(dict(settings), schema)
        except jsonschema.ValidationError as error:
            raise SettingError(f"--config {error.path[0]}", error.instance, error.message) from None
        overrides = settings.get("set", [])
        return cls(
            scale=settings.get("scale", "quick"),
            overrides=tuple(overrides.split() if isinstance(overrides, str) else overrides),
            runtime=tuple((key, settings[key]) for key in RUNTIME if key in settings),
            results=Path(settings.get("results", "results")),
            figures=Path(settings.get("figures", "paper_figures")),
        )

    @cached_property
    def plan(self) -> Plan:
        """Items, runs and batches."""
        return Plan(self.scale, self.overrides, dict(self.runtime))

    @property
    def options(self) -> str:
        """The settings as options of the `unlocked` command."""
        words = ["--scale", self.scale, "--results", str(self.results)]
        words += ["--set", *self.overrides] * bool(self.overrides)
        words += ["--runtime", *(f"{key}={value}" for key, value in self.runtime)] * bool(self.runtime)
        return shlex.join(words)

    @property
    def item_options(self) -> str:
        """`options`, and where figures go."""
        return f"{self.options} {shlex.join(['--figures', str(self.figures)])}"


def enter_environment(snakemake_python: str) -> None:
    """Let rules call `python -m unlocked`: this package, in the environment that Snakemake itself runs in.

    With `--software-deployment-method conda` the environment that a rule names comes before it.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(config.ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    os.environ["PATH"] = os.pathsep.join([str(Path(snakemake_python).parent), os.environ.get("PATH", "")])


def files_of(setup: Setup, item: Item) -> dict[str, str]:
    """The files of an item by suffix."""
    return {suffix: f"{item.stem(setup.figures, setup.scale)}.{suffix}" for suffix in item.suffixes}


def table_of_runs(setup: Setup) -> str:
    """The file that lists every run of the scale."""
    return str(setup.figures / setup.scale / "runs.csv")


def files_of_items(setup: Setup, paper: str | None = None) -> list[str]:
    """All files of all items, of one paper, of the claims, or of all three."""
    items = [item for item in setup.plan.items.values() if paper in (None, item.paper)]
    return [file for item in items for file in files_of(setup, item).values()]


def index_of(setup: Setup, batch: Batch) -> Path:
    """The file that a training job writes when all its records are there."""
    return setup.results / setup.scale / batch.paper / "batches" / f"{batch.id}.txt"


def indexes_of(setup: Setup, item: Item) -> list[str]:
    """Training jobs that an item waits for, by their index files."""
    return [str(index_of(setup, setup.plan.batches[key])) for key in setup.plan.batches_of(item)]


def drop_stale_indexes(setup: Setup) -> list[Path]:
    """Remove the index of every job one of whose records is gone, so that the job runs again; returns what went."""
    stale = []
    for batch in setup.plan.batches.values():
        index = index_of(setup, batch)
        records = [folder_of(setup.results, setup.plan.runs[name]) / "summary.json" for name in batch.runs]
        if index.is_file() and not all(path.is_file() for path in records):
            with suppress(OSError):  # a folder that cannot be written: `check_folders` says so
                index.unlink()
            stale.append(index)
    return stale


def resources_of(setup: Setup, batch: Batch, attempt: int = 1) -> Resources:
    """What a training job asks of the machine or the scheduler."""
    return resources.of_job([setup.plan.runs[name] for name in batch.runs], attempt)


def batches_of_processes(setup: Setup) -> str:
    """A pattern that the training jobs whose runs have one process per worker match, and no other."""
    jobs = [key for key, batch in setup.plan.batches.items() if resources_of(setup, batch).tasks > 1]
    return "|".join(jobs) or "none"


def check_folders(setup: Setup) -> None:
    """End Snakemake with one line, before any job, if results or figures cannot be written."""
    for folder in (setup.results, setup.figures):
        if not os.access(existing := existing_part(folder), os.W_OK):
            sys.exit(f"unlocked: {existing} cannot be written: make it writable, or --config results=... figures=...")


def existing_part(folder: Path) -> Path:
    """The folder, or the closest one above it that is there."""
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def explain_failure(setup: Setup) -> None:
    """Repeat, as Snakemake's last words, what failed jobs ended with in their logs, each line once."""
    logs = (path for path in setup.results.rglob("logs/**/*.log") if path.stat().st_mtime >= STARTED)
    last = [path.read_text(errors="replace").rstrip().rpartition("\n")[2] for path in logs]
    lines = [line for line in dict.fromkeys(last) if line.startswith("unlocked: ")]
    if not lines and shutil.disk_usage(existing_part(setup.results)).free < FULL_BYTES:  # logs could not be written
        lines = [f"unlocked: {storage_error(OSError(errno.ENOSPC, ''), setup.results)}"]
    print(*lines, sep="\n", file=sys.stderr)


def data_files(setup: Setup, batch: Batch) -> list[str]:
    """Descriptions of the data sets that a job reads."""
    runs = [setup.plan.runs[name] for name in batch.runs]
    names = sorted({str(run.data.name) for run in runs if budget.has_data(run)})
    return [str(setup.results / "data" / f"{name}.json") for name in names]


def item_code(item: Item) -> str:
    """Fingerprint of what draws an item: its function, what that uses, how results are written, its config, and the
    published values beside it.
    """
    parts = [
        fingerprint.function(item.config.build),
        fingerprint.function("unlocked.items.output.save"),
        item.config.title,
        item.config.caption,
    ]
    if item.config.kind == "table":
        parts += [fingerprint.function("unlocked.published.beside"), published.digest(item.paper, item.id)]
    if item.paper == CLAIMS:
        parts.append((config.CONFIGS / "claims.yaml").read_text())
    return fingerprint.digest(*parts)


def outputs(setup: Setup, item: Item, report: Callable[..., Any]) -> dict[str, Any]:
    """An item's files by suffix; the one that the report shows is wrapped in Snakemake's `report`."""
    files = files_of(setup, item)
    shown = "png" if item.config.kind == "figure" else "csv"
    files[shown] = report(
        files[shown],
        caption="../report/item.rst",
        category=CATEGORIES[item.paper],
        subcategory=f"{item.config.kind}s",
        labels={"item": title_of(item), "kind": item.config.kind},
    )
    return files


def as_options(settings: Mapping[str, Any]) -> str:
    """Snakemake's `config` as its own command-line option, for a nested call."""
    if not settings:
        return ""
    return shlex.join(["--config", *(f"{key}={json.dumps(value)}" for key, value in settings.items())])
