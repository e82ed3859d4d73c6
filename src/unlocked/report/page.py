"""The HTML page of a scale, one file: verdicts, items, runs and where all came from.

Other scales of which there is something stand beside the page's own.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from unlocked.artifact import config
from unlocked.artifact.plan import CLAIMS, Item
from unlocked.items.context import counted, data_titles
from unlocked.items.frames import Frames
from unlocked.items.output import write_text
from unlocked.items.table import NONE
from unlocked.papers import PAPERS
from unlocked.report import claims
from unlocked.report.sources import Sources, origin_of, show
from unlocked.units import human_bytes, human_time, plural

MEDIA = {".png": "image/png", ".pdf": "application/pdf", ".csv": "text/csv;charset=utf-8", ".tex": "application/x-tex"}
TEMPLATES = config.ROOT / "workflow" / "report"
TOOK: dict[str, tuple[str, Callable[[float], str]]] = {  # columns of the list of runs
    "Gradients": ("counts.gradients", "{:.0f}".format),
    "Time": ("wall_seconds", "{:.1f} s".format),
    "Memory": ("memory_mb", lambda megabytes: human_bytes(megabytes * 2**20)),
}


def overview(sources: Sources, built: list[bool]) -> dict[str, str]:
    """Conditions under which everything was made."""
    plan, runs = sources.plan, sources.runs.runs
    origin = origin_of(runs)
    number = counted(runs if origin else sources.frames.runs, len(plan.runs), origin)
    return {
        "Scale": f"{plan.scale.name}: {plan.scale.about}",
        "Seeds": ", ".join(map(str, plan.scale.seeds)),
        "Items": f"{sum(built)} of {len(built)} built",
        "Runs": f"{number}, {human_time(sources.runs.column('wall_seconds').sum())} in all, one after the other",
        "Changed": " ".join(plan.overrides) or "nothing",
        "Data": data_titles(runs[sources.runs.column("data.name").notna()]) or NONE,
        "Numbering": numbering(plan.items.values()),
    }


def numbering(items: Iterable[Item]) -> str:
    """What readers should know of the papers' numbers in titles."""
    checked = [item for item in items if item.config.label and item.config.label_checked]
    seen = ", ".join(f"{item.config.label} of {PAPERS[item.paper].short}" for item in checked)
    return f"The papers' numbers of figures and tables were not checked against the published PDFs, except: {seen}."


def provenance(frames: Frames) -> dict[str, pd.DataFrame]:
    """Tables of commits, versions, machines and data, with the number of runs of each; none without runs."""
    if frames.runs.empty:
        return {}
    column = frames.column
    changed = column("dirty").map({True: " (with local changes)", False: ""})
    machines = column("hardware").map(described)
    data = {"Data set": column("data.name").fillna("none"), "Source": column("data_source")}
    tables = {
        "Code": {"Commit": column("commit").fillna("unknown") + changed},
        "Versions": {"Packages": column("versions").map(listed)},
        "Machine": {"Hardware": machines, "Device": column("runtime.device"), "Threads per run": column("threads")},
        "Data": {**data, "SHA-256": column("data_checksum")},
    }
    return {
        title: pd.DataFrame(columns).groupby(list(columns), sort=False).size().reset_index(name="Runs")
        for title, columns in tables.items()
    }


def described(machine: Mapping[str, Any]) -> str:
    """`Analytical Engine (cores 2, platform Linux)`."""
    more = listed(machine)
    return (machine.get("processor") or "unknown processor") + (f" ({more})" if more else "")


def listed(values: Mapping[str, Any]) -> str:
    """`python 3.11.2, torch 2.14.1`."""
    return ", ".join(f"{key} {value}" for key, value in values.items() if key != "processor")


def list_of_runs(paper: str, sources: Sources) -> pd.DataFrame:
    """All runs of a paper that are planned or known: how each ended, what it took, and the items that read it."""
    plan, known = sources.plan, sources.runs
    planned = pd.Index([name for name, run in plan.runs.items() if run.paper == paper], dtype=object)
    names = planned.append(known.runs.index[known.column("paper") == paper]).unique()
    runs = Frames(known.runs.reindex(names), known.history)
    took = {
        title: runs.column(key).map(form, na_action="ignore").astype(object).fillna(NONE)
        for title, (key, form) in TOOK.items()
    }
    origin = runs.column("origin").fillna("").str.removesuffix(" with this version")
    status = (runs.column("status").fillna("not trained") + ", " + origin).str.removesuffix(", ")
    readers = [plan.items_of(name) if name in plan.runs else known.runs.at[name, "items"] for name in names]
    return pd.DataFrame({"Run": names, "Status": status, **took, "Items": readers})


def verdict_rows(scales: Mapping[str, Sources]) -> list[dict[str, Any]]:
    """Every claim, and by scale its parts as judged there, and the one that decided."""
    read = {scale: claims.by_claim(claims.read(own.verdicts)) for scale, own in scales.items()}
    judged = {scale: {parts[0]["id"]: parts for parts in own} for scale, own in read.items()}
    claimed = dict.fromkeys(name for own in judged.values() for name in own)
    rows = []
    for name in claimed:
        by_scale = {scale: own[name] for scale, own in judged.items() if name in own}
        first = next(iter(by_scale.values()))[0]
        decided = {scale: claims.deciding(parts) for scale, parts in by_scale.items()}
        row = {
            "id": name,
            "claim": claims.statement(first),
            "paper": first["paper"],
            "scales": by_scale,
            "decided": decided,
        }
        rows.append(row)
    return rows


def links_of_claims(sources: Sources) -> dict[str, dict[str, list[str]]]:
    """By claim: its runs, and the items that show them."""
    plan = sources.plan
    return {
        name: {
            "runs": list(claim.runs),
            "items": list(
                dict.fromkeys(item.name for run in claim.runs for item in plan.wanted_by[run] if item.paper != CLAIMS)
            ),
        }
        for name, claim in plan.claims.items()
    }


def data_uri(path: Path) -> str:
    """A file as a `data:` address."""
    return f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def render(sources: Sources) -> str:
    """The page, which holds everything that it shows and fetches nothing; its one script filters what is shown."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    scales, scale = {own.plan.scale.name: own for own in sources.beside()}, sources.plan.scale.name
    shown = {group: [columns_of(item, scales, sources) for item in sources.items(group)] for group in (*PAPERS, CLAIMS)}
    matrix = verdict_rows(scales)
    verdicts = Counter(row["scales"][scale][0]["claim_verdict"] for row in matrix if scale in row["scales"])
    script = (TEMPLATES / "page.js").read_text()
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, **options)
    environment.filters |= {f.__name__: f for f in (data_uri, human_bytes, plural)}
    return environment.get_template("page.html.j2").render(
        papers=PAPERS,
        scale=scale,
        scales=list(scales),
        overview=overview(sources, [item["own"]["built"] for group in shown.values() for item in group]),
        claims=verdicts.total(),
        matrix=matrix,
        verdicts=", ".join(f"{count} {word}" for word, count in verdicts.most_common()),
        links=links_of_claims(sources),
        shown=shown,  # by paper, and about the claims
        titles={item["own"]["name"]: item["own"]["title"] for group in shown.values() for item in group},
        provenance=provenance(sources.runs),
        runs={paper: list_of_runs(paper, sources) for paper in PAPERS},
        build_all=sources.command("all"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def columns_of(item: Item, scales: Mapping[str, Sources], sources: Sources) -> dict[str, Any]:
    """An item at the page's own scale, and at every scale where it is built: side by side."""
    columns = {scale: show(there.plan.items[item.name], there) for scale, there in scales.items()}
    built = [shown for shown in columns.values() if shown["built"]]
    claimed = [name for name, claim in sources.plan.claims.items() if not set(claim.runs).isdisjoint(item.runs)]
    return {"own": columns[sources.plan.scale.name], "columns": built, "claims": claimed}


def write(sources: Sources, out: Path) -> Path:
    return write_text(out, render(sources))
