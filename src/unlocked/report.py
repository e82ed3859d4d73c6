"""The HTML report: one file that opens from disk, with verdicts, every item of both papers, and what made them.

Last on the road: reads the plan, the items' files, the records and the verdicts; trains and draws nothing. What is not
built yet is said, with the command that builds it. The page holds everything that it shows and needs no script.
"""

from __future__ import annotations

import base64
import collections
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from unlocked import claims, config, record
from unlocked.errors import DataError
from unlocked.items import output
from unlocked.items.build import caption_of, records_there, title_of
from unlocked.papers import PAPERS
from unlocked.plan import CLAIMS, Item, Plan
from unlocked.units import human_bytes, human_time, plural

TEMPLATES = config.ROOT / "workflow" / "report"
MEDIA = {
    "png": "image/png",
    "pdf": "application/pdf",
    "csv": "text/csv;charset=utf-8",
    "tex": "application/x-tex",
}
DOWNLOADS = {"csv": "CSV", "pdf": "PDF", "tex": "LaTeX"}
LARGEST_DOWNLOAD = 300_000  # bytes; a larger file stays beside the page
SCREEN = 120 / 200  # CSS pixels per pixel of a figure that was drawn at 200 dots per inch
TONES = {claims.SUPPORTED: "good", claims.NOT_SUPPORTED: "bad"}  # colours; the word itself is always printed


@dataclass(frozen=True)
class Printed:
    """A table as text, e.g. read back from the Markdown file of an item."""

    columns: list[str]
    rows: list[list[str]]
    notes: list[str]

    @property
    def numeric(self) -> list[bool]:
        """Per column, whether its cells are numbers (or dashes), so that they are aligned to the right."""
        cells = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return [bool(column) and all(re.match(r"[-−–+.\d]", text) for text in column if text) for column in cells]


@dataclass(frozen=True)
class Picture:
    """A figure as the page embeds it."""

    uri: str
    width: int  # CSS pixels
    height: int


@dataclass(frozen=True)
class Download:
    """A file inside the page."""

    label: str
    filename: str
    size: str
    uri: str


@dataclass(frozen=True)
class Shown:
    """What the page shows of one item; `picture` and `table` are both None while it is not built."""

    name: str
    short: str
    title: str
    kind: str
    caption: str
    picture: Picture | None
    table: Printed | None
    downloads: list[Download]
    facts: dict[str, str]
    command: str

    @property
    def built(self) -> bool:
        """Whether its files are there."""
        return self.picture is not None or self.table is not None


@dataclass(frozen=True)
class Judged:
    """A claim of a paper with its verdict; `parts` are the rows of `verdicts.csv`, `effect` with its interval."""

    id: str
    paper: str
    text: str
    source: str
    conditions: str
    verdict: str
    parts: list[dict[str, str]]


@dataclass(frozen=True)
class Sources:
    """Where the report reads, and the plan that says what there should be."""

    plan: Plan
    results: Path
    figures: Path

    @cached_property
    def records(self) -> dict[str, record.Record]:
        """Every finished record of the plan, by run; what is not trained yet is not in it."""
        return {found.run_id: found for found in records_there(self.plan.runs, self.plan, self.results)}

    def items(self, paper: str) -> list[Item]:
        """The items of a paper, or those about the claims, in the order of their configs."""
        return [item for item in self.plan.items.values() if item.paper == paper]

    @property
    def verdicts(self) -> Path:
        """The claims, one row per part."""
        return self.figures / self.plan.scale.name / CLAIMS / "verdicts.csv"

    def stem(self, item: Item) -> Path:
        """Path of an item's files without suffix."""
        return item.stem(self.figures, self.plan.scale.name)

    def of(self, item: Item) -> list[record.Record]:
        """The finished records of an item."""
        return [self.records[name] for name in item.runs if name in self.records]

    def command(self, target: str) -> str:
        """What a reader types to build something: the target at this scale, with the settings that shape results."""
        words = ["python3", "reproduce.py", target, "--config", f"scale={self.plan.scale.name}"]
        words += [f"set={' '.join(self.plan.overrides)}"] * bool(self.plan.overrides)
        device = self.plan.runtime.get("runtime.device", "cpu")
        return shlex.join(words + [f"device={device}"] * (device != "cpu"))


def read_table(path: Path) -> Printed:
    """The table in an item's Markdown file, and the notes under it."""
    lines = path.read_text().splitlines()
    at = [k for k, line in enumerate(lines) if line.startswith("|")]
    cells = [[cell.strip() for cell in lines[k].strip().strip("|").split("|")] for k in at]
    if len(cells) < 2 or any(len(row) != len(cells[0]) for row in cells):
        raise DataError(f"{path}: holds no table; delete it and build the item again")
    after = [line.strip() for line in lines[at[-1] + 1 :]]
    notes = [line for line in after if line and not re.fullmatch(r"\*.*\*", line)]
    return Printed(cells[0], cells[2:], notes)


def data_uri(path: Path) -> str:
    """A file as a `data:` address."""
    return f"data:{MEDIA[path.suffix[1:]]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def read_picture(path: Path) -> Picture | None:
    """A PNG for the page, None if it is not there. PNG, because an SVG's text waits for fonts that readers may lack."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))  # of the PNG's header
    return Picture(data_uri(path), round(width * SCREEN), round(height * SCREEN))


def read_downloads(stem: Path, scale: str) -> list[Download]:
    """The item's files that a reader may want to keep."""
    paths = {label: stem.with_suffix(f".{kind}") for kind, label in DOWNLOADS.items()}
    return [
        Download(label, f"{scale}-{path.parent.name}-{path.name}", human_bytes(path.stat().st_size), data_uri(path))
        for label, path in paths.items()
        if path.is_file() and path.stat().st_size <= LARGEST_DOWNLOAD
    ]


def data_names(records: Iterable[record.Record]) -> str:
    """The data sets of records, as in captions."""
    return ", ".join(sorted({output.DATA_NAMES.get(r.config.data.name, "no data set") for r in records}))


def spent(records: Iterable[record.Record]) -> float:
    """Seconds that the runs took, one after the other."""
    return sum(r.summary["durations"]["wall_seconds"] for r in records)


def count_runs(planned: int, records: Sequence[record.Record]) -> str:
    """`36`, `12 of 36 recorded (1 diverged)`."""
    diverged = sum(r.diverged for r in records)
    text = str(planned) if len(records) == planned else f"{len(records)} of {planned} recorded"
    return text + f" ({diverged} diverged)" * (diverged > 0)


def facts_of(item: Item, sources: Sources) -> dict[str, str]:
    """Scale, data, seeds, number of runs and their cost."""
    scale = sources.plan.scale.name
    if not item.runs:
        return {"Scale": scale, "Runs": "none: computed without training"}
    records = sources.of(item)
    facts = {"Scale": scale, "Data": data_names(records) or "–"}
    facts["Seeds"] = ", ".join(map(str, sorted({int(sources.plan.runs[name].seed) for name in item.runs})))
    facts["Runs"] = count_runs(len(item.runs), records)
    if records:
        memory = max(r.summary["peak_memory_mb"] for r in records)
        facts["Cost"] = f"{human_time(spent(records))} in all, at most {human_bytes(memory * 2**20)} of memory"
    return facts


def show(item: Item, sources: Sources) -> Shown:
    """An item for the page."""
    stem = sources.stem(item)
    table = stem.with_suffix(".md")
    title = title_of(item)
    return Shown(
        name=item.name,
        short=item.config.label or title,
        title=title,
        kind=item.config.kind,
        caption=caption_of(item, sources.plan),
        picture=read_picture(stem.with_suffix(".png")) if item.config.kind == "figure" else None,
        table=read_table(table) if item.config.kind == "table" and table.is_file() else None,
        downloads=read_downloads(stem, sources.plan.scale.name),
        facts=facts_of(item, sources),
        command=sources.command(item.name),
    )


def read_verdicts(path: Path) -> list[Judged]:
    """The claims with their parts, in the order of the file; none if it is not there."""
    if not path.is_file():
        return []
    table = pd.read_csv(path, dtype={"effect": float, "low": float, "high": float, "n": str})
    if missing := [name for name in claims.COLUMNS if name not in table]:
        raise DataError(f"{path}: has no column {missing[0]}; delete it and build the claims again")
    table["effect"] = [claims.interval_text(row) for row in table.itertuples()]
    table = table.drop(columns=["low", "high"]).fillna("")
    return [judged(parts.astype(str).to_dict("records")) for _, parts in table.groupby(["paper", "id"], sort=False)]


def judged(parts: list[dict[str, str]]) -> Judged:
    """A claim from its rows."""
    first = parts[0]
    return Judged(
        id=first["id"],
        paper=first["paper"],
        text=first["claim"],
        source=first["source"],
        conditions=first["conditions"],
        verdict=first["claim_verdict"],
        parts=parts,
    )


def together(text: str) -> str:
    """`n = 4` without a line break in it."""
    return text.replace(" = ", "\u00a0=\u00a0")


def tally(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Distinct rows in their first order, each with the number of runs that have it."""
    counted = collections.Counter(tuple(row.items()) for row in rows)
    return [{**dict(key), "Runs": count} for key, count in counted.items()]


def listed(values: Mapping[str, Any]) -> str:
    """`python 3.11.2, torch 2.14.1`."""
    return ", ".join(f"{key} {value}" for key, value in values.items())


def machine(hardware: Mapping[str, Any]) -> str:
    """`Xeon (cores 8, platform Linux)`."""
    rest = {key: value for key, value in hardware.items() if key != "processor"}
    return f"{hardware.get('processor') or 'unknown processor'} ({listed(rest)})"


def provenance_of(records: Iterable[record.Record]) -> dict[str, list[dict[str, Any]]]:
    """Tables of commits, versions, machines and data, with the number of runs of each."""
    rows: dict[str, list[dict[str, Any]]] = {"Code": [], "Versions": [], "Machine": [], "Data": []}
    for one in records:
        known = one.summary["provenance"]
        commit = (known["commit"] or "unknown") + " (with local changes)" * known["dirty"]
        rows["Code"].append({"Commit": commit})
        rows["Versions"].append({"Packages": listed(known["versions"])})
        rows["Machine"].append({"Hardware": machine(known["hardware"]), "Threads per run": known["threads"]})
        data = known["data"]
        rows["Data"].append({"Data set": data["name"], "Source": data["source"], "SHA-256": data["checksum"]})
    return {title: tally(found) for title, found in rows.items()}


def run_row(name: str, sources: Sources, wanted_by: Sequence[str]) -> dict[str, str]:
    """A run in the list of runs."""
    one = sources.records.get(name)
    row = {"Run": name, "Status": "not trained", "Gradients": "–", "Time": "–", "Memory": "–"}
    if one is not None:
        row["Status"] = one.summary["status"]
        row["Gradients"] = f"{one.summary['counts']['gradients']}"
        row["Time"] = f"{one.summary['durations']['wall_seconds']:.1f} s"
        row["Memory"] = human_bytes(one.summary["peak_memory_mb"] * 2**20)
    return row | {"Items": ", ".join(wanted_by)}


def runs_of(paper: str, sources: Sources) -> list[dict[str, str]]:
    """The list of a paper's runs, with the items that read each."""
    wanted_by: dict[str, list[str]] = {}
    for item in sources.plan.items.values():
        for name in item.runs:
            wanted_by.setdefault(name, []).append(item.name.removeprefix(f"{paper}_"))
    own = [name for name, run in sources.plan.runs.items() if run.paper == paper]
    return [run_row(name, sources, wanted_by[name]) for name in own]


def overview(sources: Sources, shown: Mapping[str, Sequence[Shown]]) -> dict[str, str]:
    """Conditions under which everything on the page was made."""
    plan, records = sources.plan, list(sources.records.values())
    items = [item for part in shown.values() for item in part]
    built = sum(item.built for item in items)
    facts = {
        "Scale": f"{plan.scale.name}: {plan.scale.about}",
        "Seeds": ", ".join(map(str, plan.scale.seeds)),
        "Items": f"{built} of {len(items)} built",
        "Runs": f"{count_runs(len(plan.runs), records)}, {human_time(spent(records))} in all, one after the other",
    }
    if plan.overrides:
        facts["Changed"] = " ".join(plan.overrides)
    machines = {r.summary["provenance"]["hardware"].get("processor") or "unknown" for r in records}
    devices = {str(r.config.runtime.device) for r in records}
    commits = collections.Counter(r.summary["provenance"]["commit"] or "unknown" for r in records)
    if records:
        facts["Data"] = data_names(r for r in records if r.config.data.name in output.DATA_NAMES)
        facts["Hardware"] = f"{', '.join(sorted(machines))} ({', '.join(sorted(devices))})"
        facts["Commit"] = ", ".join(commit[:12] for commit, _ in commits.most_common())
    return facts


def verdict_counts(found: Iterable[Judged]) -> str:
    """`5 supported, 2 not supported`, most frequent first."""
    counted = collections.Counter(claim.verdict for claim in found)
    return ", ".join(f"{count} {verdict}" for verdict, count in counted.most_common())


def content(sources: Sources) -> dict[str, Any]:
    """Everything that the template needs."""
    shown = {paper: [show(item, sources) for item in sources.items(paper)] for paper in (*PAPERS, CLAIMS)}
    verdicts = read_verdicts(sources.verdicts)
    return {
        "papers": PAPERS,
        "scale": sources.plan.scale.name,
        "overview": overview(sources, shown),
        "verdicts": verdicts,
        "verdict_counts": verdict_counts(verdicts),
        "everything_command": sources.command("all"),
        "items": shown,
        "provenance": provenance_of(sources.records.values()),
        "runs": {paper: runs_of(paper, sources) for paper in PAPERS},
    }


def render(values: Mapping[str, Any]) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"tone": lambda verdict: TONES.get(verdict, "open"), "together": together, "plural": plural}
    return environment.get_template("page.html.j2").render(values)


def write(sources: Sources, out: Path) -> Path:
    """Write the report to `out`, whole or not at all; returns its path."""
    page = render(content(sources))
    output.atomically(out, lambda path: path.write_text(page, encoding="utf-8"))
    return out
