"""What the Snakefile asks: settings, targets, and the commands of its rules. Logic that a test can reach.

Beside the road, without torch: imported at every start of Snakemake.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from unlocked import budget, config, fingerprint
from unlocked.errors import DataError, SettingError, choose
from unlocked.items.build import caption_of, title_of
from unlocked.plan import Batch, Estimate, Item, Plan, estimate
from unlocked.record import folder_of

CONFIG_SCHEMA = config.ROOT / "workflow" / "schemas" / "config.schema.json"
RUNTIME = ("device", "threads", "wandb", "wandb_project", "wandb_entity", "data_root", "reuse", "checkpoint_minutes")


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


def stem(setup: Setup, item: Item) -> Path:
    """Path of an item's files without suffix."""
    return setup.figures / setup.scale / item.paper / item.id


def files_of_items(setup: Setup, paper: str | None = None) -> list[str]:
    """All files of all items, of one paper or both."""
    items = [item for item in setup.plan.items.values() if paper in (None, item.paper)]
    return [f"{stem(setup, item)}.{suffix}" for item in items for suffix in item.suffixes]


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
            index.unlink()
            stale.append(index)
    return stale


def cost_of(setup: Setup, batch: Batch) -> Estimate:
    """Time of all runs of a job, and memory of the largest."""
    costs = [estimate(setup.plan.runs[name]) for name in batch.runs]
    return Estimate(sum(c.gradients for c in costs), sum(c.seconds for c in costs), max(c.memory_mb for c in costs))


def data_files(setup: Setup, batch: Batch) -> list[str]:
    """Descriptions of the data sets that a job reads."""
    runs = [setup.plan.runs[name] for name in batch.runs]
    names = sorted({str(run.data.name) for run in runs if budget.has_data(run)})
    return [str(setup.results / "data" / f"{name}.json") for name in names]


def item_code(item: Item) -> str:
    """Fingerprint of what draws an item: its function, what that uses, how results are written, its config."""
    return fingerprint.digest(
        fingerprint.function(item.config.build),
        fingerprint.function("unlocked.items.output.save"),
        item.config.title,
        item.config.caption,
    )


def outputs(setup: Setup, item: Item, report: Callable[..., Any]) -> dict[str, Any]:
    """An item's files by suffix; the one that the report shows is wrapped in Snakemake's `report`."""
    files = {suffix: f"{stem(setup, item)}.{suffix}" for suffix in item.suffixes}
    shown = "png" if item.config.kind == "figure" else "csv"
    files[shown] = report(
        files[shown],
        caption="../report/item.rst",
        category=PAPER_TITLES[item.paper],
        subcategory=f"{item.config.kind}s",
        labels={"item": title_of(item), "kind": item.config.kind},
    )
    return files


def caption(setup: Setup, item: Item) -> str:
    """The caption for the report."""
    return caption_of(item, setup.plan)


PAPER_TITLES: dict[str, str] = {
    "acid": "A²CiD²: accelerating asynchronous communication",
    "forward_gradient": "Can forward gradient match backpropagation?",
}


def as_options(settings: Mapping[str, Any]) -> str:
    """Snakemake's `config` as its own command-line option, for a nested call."""
    if not settings:
        return ""
    return shlex.join(["--config", *(f"{key}={json.dumps(value)}" for key, value in settings.items())])


assert set(PAPER_TITLES) == set(config.PAPERS)
