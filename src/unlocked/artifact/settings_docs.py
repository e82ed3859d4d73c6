"""All settings as Markdown tables and as a JSON schema, made from the fields that declare them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unlocked.artifact.config import ROOT, ScaleHead, first_line
from unlocked.artifact.workflow import WorkflowSettings
from unlocked.papers import PAPERS
from unlocked.papers.run import Run
from unlocked.settings import Spec, names, specs

SCHEMA = ROOT / "workflow" / "schemas" / "config.schema.json"
PAGE = ROOT / "docs" / "settings.md"
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string", dict: "object"}
BOUNDS = {"above": "exclusiveMinimum", "least": "minimum", "below": "exclusiveMaximum", "most": "maximum"}
KINDS = [kind for paper in PAPERS.values() for kind in paper.kinds]
RUNTIMES = [*dict.fromkeys(spec.kind for kind in KINDS for spec in specs(kind) if spec.name == "runtime")]
HEAD = ("setting", "type", "default", "allowed", "meaning", "of")
Declared = Iterable[tuple[str, Spec]]  # settings by dotted name


def table(*owners: Declared) -> str:
    """In Markdown; a setting that means the same to several owners has one row, which numbers them."""
    having: dict[tuple[str, ...], list[str]] = {}
    for number, declared in enumerate(owners, 1):
        for name, spec in declared:
            kind = "list of " * spec.many + TYPES.get(spec.kind, "settings") + " or null" * spec.optional
            allowed = ", ".join(spec.rule.allowed() or ()) or spec.rule.range() or spec.rule.pattern or ""
            cells = f"`{name}`", kind, f"`{json.dumps(default(spec))}`", allowed.replace("|", "\\|"), spec.rule.says
            having.setdefault(cells, []).append(str(number))
    rows = [(*cells, "all" if len(who) == len(owners) else ", ".join(who)) for cells, who in having.items()]
    columns = len(HEAD) - (len(owners) == 1)
    return "".join(f"| {' | '.join(row[:columns])} |\n" for row in (HEAD, ["---"] * len(HEAD), *rows))


def default(spec: Spec) -> Any:
    return {} if spec.default is dataclasses.MISSING else spec.default


def fixed(spec: Spec) -> bool:
    """Whether a setting can have one value only, by which a kind of run is chosen."""
    return len(spec.rule.allowed() or ()) == 1


def about(kind: type[Run]) -> str:
    chosen = ", ".join(f"{spec.name} = {spec.default}" for spec in specs(kind) if fixed(spec))
    return f"`{kind.__name__}`: {first_line(kind)} ({chosen})"


def free(kind: type[Run]) -> list[tuple[str, Spec]]:
    """What makes a run of this kind what it is, and can be chosen."""
    return [(name, spec) for name, spec in names(kind) if not name.startswith("runtime.") and not fixed(spec)]


def page() -> str:
    parts = [ABOUT]
    for key, paper in PAPERS.items():
        kinds = "".join(f"{number}. {about(kind)}\n" for number, kind in enumerate(paper.kinds, 1))
        parts.append(f"## {paper.title}\n\n`paper: {key}`. Kinds of run:\n\n{kinds}")
        parts.append(table(*map(free, paper.kinds)))
    runtimes = "".join(f"{number}. {first_line(cls)}\n" for number, cls in enumerate(RUNTIMES, 1))
    parts += [RUNTIME, runtimes, table(*map(names, RUNTIMES))]
    scales = [pair for key, paper in PAPERS.items() for pair in names(paper.scale, f"{key}.")]
    return "\n".join([*parts, SCALES, table([*names(ScaleHead), *scales]), WORKFLOW, table(names(WorkflowSettings))])


ABOUT = """# Settings

Written by `unlocked settings --write` from the fields that declare them. A run is one of the kinds below and has the
settings of its kind, no others; which kind it is follows from the settings in brackets. Values come from the defaults
here, then `configs/<paper>/training.yaml`, then the scale's `training`, then an item's grid; a point of a grid may name
no setting that its kind does not have.
"""
RUNTIME = """## How runs are executed

Not part of what a run is: the same run on another device has the same id. `runtime.<setting>` in a run's file,
`--runtime <setting>=<value>` on the command line, `--config <setting>=<value>` for Snakemake.
"""
SCALES = """## Scales

`configs/scales/<name>.yaml`; change single values by `--set key=value`, for Snakemake `--config set="key=value ..."`.
"""
WORKFLOW = "## The workflow\n\n`snakemake --config key=value`, besides how runs are executed.\n"


def schema() -> dict[str, Any]:
    """Of Snakemake's config."""
    known = dict(pair for cls in (WorkflowSettings, *RUNTIMES) for pair in names(cls))
    title = "settings of the workflow: snakemake --config key=value"
    properties = {name: property_of(spec) for name, spec in known.items()}
    return {"title": title, "type": "object", "additionalProperties": False, "properties": properties}


def property_of(spec: Spec) -> dict[str, Any]:
    """One setting in the schema. A list may be given as text with spaces."""
    one: dict[str, Any] = {"type": [TYPES[spec.kind], *["null"] * spec.optional]}
    one |= {key: bound for name, key in BOUNDS.items() if (bound := getattr(spec.rule, name)) is not None}
    one |= {"enum": [*known, *[None] * spec.optional]} if (known := spec.rule.allowed()) else {}
    one |= {"pattern": f"^({spec.rule.pattern})$"} if spec.rule.pattern else {}
    one = {"type": ["array", "string"], "items": one} if spec.many else one
    return one | {"default": default(spec), "description": spec.rule.says}


def files() -> dict[Path, str]:
    """What is made from the settings, by path."""
    return {SCHEMA: json.dumps(schema(), indent=2) + "\n", PAGE: page()}
