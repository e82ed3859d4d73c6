"""What the Snakefile asks: settings, targets, and the commands of its rules. Logic that a test can reach.

Imported at every start of Snakemake, so without torch or pandas.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlocked import fingerprint
from unlocked.artifact import config, drawing, published, targets
from unlocked.artifact.calls import Call
from unlocked.artifact.folders import existing_part, refuse_impossible
from unlocked.artifact.plan import CLAIMS, Batch, Item, Plan, runtime_names
from unlocked.artifact.progress import Progress as Progress
from unlocked.artifact.progress import what_to_open as what_to_open
from unlocked.artifact.resources import Resources, of_job
from unlocked.console import say as say
from unlocked.errors import DataError, SettingError, StorageError, choose, storage_error
from unlocked.papers import PAPERS
from unlocked.papers.run import Run
from unlocked.settings import Settings, build, dotted, setting

STARTED = time.time()
FULL_BYTES = 2**20  # free space below which a disk counts as full
NO_BRACES = r"[^{}]+"  # of the folders in Snakemake's patterns, where they stand for wildcards
TRUTH = {"true": True, "false": False}  # as command lines write it; Snakemake passes these on as text


@dataclass(frozen=True)
class WorkflowSettings(Settings):
    """What `--config` may say besides how runs are executed."""

    scale: str = setting("quick", "a file of `configs/scales`: quick, reduced, gpu, paper")
    set: tuple[str, ...] = setting((), "changes to that file: 'seeds=[0] acid.training.optim.lr=0.05'")
    results: str = setting("results", "folder of the run records, without braces", pattern=NO_BRACES)
    figures: str = setting("paper_figures", "folder of the tables and figures, without braces", pattern=NO_BRACES)
    wandb_upload: bool = setting(False, "`wandb_report` uploads runs and reports, if a key is set")


@dataclass(frozen=True)
class Setup:
    """What the workflow does, and where it leaves things."""

    plan: Plan
    results: Path
    figures: Path
    wandb_upload: bool

    @classmethod
    def read_or_exit(cls, values: Mapping[str, Any]) -> Setup:
        """From Snakemake's `config`; a setting or a published value that cannot stand ends Snakemake with one line."""
        values = {key: TRUTH.get(value, value) if isinstance(value, str) else value for key, value in values.items()}
        runtime = {key: value for key, value in values.items() if key not in dotted(WorkflowSettings)}
        given = {key: value for key, value in values.items() if key not in runtime}
        if isinstance(given.get("set"), str):
            given["set"] = given["set"].split()
        try:
            for key in runtime:
                choose("--config", key, sorted(dotted(WorkflowSettings).union(*map(runtime_names, PAPERS))))
            own = build(WorkflowSettings, given)
            for paper in PAPERS:
                published.of_paper(paper)
            results, figures = Path(own.results), Path(own.figures)
            for folder in (results, figures):
                refuse_impossible(folder)
            return cls(Plan(own.scale, own.set, runtime), results, figures, own.wandb_upload)
        except (SettingError, DataError, StorageError) as error:
            sys.exit(f"unlocked: {error}")

    def options(self, *more: object, runtime: bool = True) -> str:
        """Options of the `unlocked` command: the settings, with `runtime` how runs are executed, and `more` words."""
        values = [f"{key}={value}" for key, value in self.plan.runtime.items() if runtime]
        words = ["--scale", self.plan.scale.name, "--results", self.results]
        words += ["--set", *self.plan.overrides] if self.plan.overrides else []
        words += ["--runtime", *values] if values else []
        return shlex.join(map(str, [*words, *more]))

    def runs(self, batch: Batch) -> list[Run]:
        return [self.plan.runs[name] for name in batch.runs]

    def call(self, workflow: Any) -> Call:
        """What Snakemake was called for, from its `workflow`."""
        asked = (lambda: workflow.dag_settings.targets) if workflow.is_main_process else None
        dry = lambda: workflow.executor_plugin is None or workflow.dryrun  # noqa: E731 - or --dag, --summary, --report
        return Call(self.plan, self.results, self.figures, asked, dry)


def refuse_unknown_targets(arguments: Sequence[str]) -> None:
    """End Snakemake with one line, if its command line names a target that there is not."""
    program, *words = arguments
    if "snakemake" in program and (line := targets.unknown(words, config.ROOT)):
        sys.exit(f"unlocked: {line}")


def enter_environment(snakemake_python: str) -> None:
    """Let rules call `python -m unlocked`: this package, in the environment that Snakemake itself runs in.

    With `--software-deployment-method conda` the environment that a rule names comes before it.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(config.ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    os.environ["PATH"] = os.pathsep.join([str(Path(snakemake_python).parent), os.environ.get("PATH", "")])


def files_of(setup: Setup, item: Item) -> dict[str, str]:
    return {suffix: f"{item.stem(setup.figures, setup.plan.scale.name)}.{suffix}" for suffix in item.suffixes}


def files_of_items(setup: Setup, group: str | None = None) -> list[str]:
    """All files of all items, or of one group: a paper, the claims."""
    items = [item for item in setup.plan.items.values() if group in (None, item.paper)]
    return [file for item in items for file in files_of(setup, item).values()]


def as_it_is(value: Any) -> Callable[[Any], Any]:
    """A parameter of a rule whose braces are no wildcards."""
    return lambda wildcards: value


def waits_for(call: Call, item: Item) -> Callable[[Any], list[str]]:
    """The input of an item's rule."""
    return lambda wildcards: call.indexes_of(item.runs)


def offer_drawing(setup: Setup) -> None:
    """Let the jobs of this call have their items drawn by one process's forks."""
    options = shlex.split(setup.options("--figures", setup.figures, runtime=False))
    drawing.listen([sys.executable, "-m", "unlocked", "item", *setup.plan.items, *options, "--serve"])


def priority_of(call: Call, batch: Batch) -> int:
    """The longest job begins first."""
    return round(sum(run.estimate().seconds for run in call.runs_of(batch)))


def data_files(setup: Setup, batch: Batch) -> list[str]:
    """Descriptions of the data sets that a job reads."""
    data = {run.data_set.name for run in setup.runs(batch) if run.data_set is not None}
    return [str(setup.results / "data" / f"{name}.json") for name in sorted(data)]


def resources_of(setup: Setup, batch: Batch, attempt: int = 1) -> Resources:
    """What a training job asks of the machine or the scheduler."""
    return of_job(setup.runs(batch), attempt)


def batches_of_processes(setup: Setup) -> str:
    """A pattern that the training jobs whose runs have one process per worker match, and no other."""
    jobs = [key for key, batch in setup.plan.batches.items() if any(run.processes > 1 for run in setup.runs(batch))]
    return "|".join(jobs) or "none"


def item_code(item: Item) -> str:
    """Fingerprint of what draws an item: its function, how results are written, its config, its published values."""
    own = item.config
    parts = [*map(fingerprint.function, (own.build, "unlocked.items.output.save")), own.title, own.caption]
    if own.kind == "table":
        parts += [fingerprint.function("unlocked.artifact.published.beside"), published.digest(item.paper, item.id)]
    if item.paper == CLAIMS:
        parts.append((config.CONFIGS / "claims.yaml").read_text())
    return fingerprint.digest(*parts)


def outputs(setup: Setup, item: Item, report: Callable[..., Any]) -> dict[str, Any]:
    """An item's files by suffix; the one that Snakemake's report shows is wrapped in its `report`."""
    files, kind = files_of(setup, item), item.config.kind
    shown = "png" if kind == "figure" else "csv"
    about = {"category": PAPERS[item.paper].title if item.paper in PAPERS else "Claims of both papers"}
    about |= {"caption": "../report/item.rst", "subcategory": f"{kind}s"}
    return {**files, shown: report(files[shown], labels={"item": item.title, "kind": kind}, **about)}


def check_folders(setup: Setup) -> None:
    """End Snakemake with one line, before any job, if results or figures cannot be written."""
    for folder in (setup.results, setup.figures):
        if not os.access(existing := existing_part(folder), os.W_OK):
            sys.exit(f"unlocked: {existing} cannot be written: make it writable, or --config results=... figures=...")


def tell_unsettled(setup: Setup) -> None:
    """Say that methods have the scale's own learning rate where the pilot has not chosen theirs."""
    if line := setup.plan.scale.unsettled:
        print(f"unlocked: {line}", file=sys.stderr)


def explain_failure(setup: Setup) -> None:
    """Repeat, as Snakemake's last words, the errors that logs of failed jobs end with, each once."""
    logs = [path for path in setup.results.rglob("logs/**/*.log") if path.stat().st_mtime >= STARTED]
    last = [path.read_text(errors="replace").rstrip().rpartition("\n")[2] for path in logs]
    lines = [line for line in dict.fromkeys(last) if line.startswith("unlocked: ")]
    if not lines and shutil.disk_usage(existing_part(setup.results)).free < FULL_BYTES:  # logs could not be written
        lines = [f"unlocked: {storage_error(OSError(errno.ENOSPC, ''), setup.results)}"]
    print(*lines, sep="\n", file=sys.stderr)
