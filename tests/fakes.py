"""Made-up records, item files and verdicts, so that reports are tested without training."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure as Canvas

from unlocked.artifact import record
from unlocked.artifact.build import context_of
from unlocked.artifact.plan import Plan
from unlocked.items import output
from unlocked.items.table import Table
from unlocked.papers.run import Run
from unlocked.report import claims
from unlocked.report.sources import Sources

SMALL = ["seeds=[0,1]", "acid.workers=[4]", "acid.largest=4"]
BUILT = ("acid_figure_1", "acid_table_4", "forward_gradient_width", "forward_gradient_noise", "claims_effects")


def fake_record(run: Run, results: Path, metrics: list[str]) -> None:
    """A record as training writes it, with made-up numbers."""
    folder = record.folder_of(results, run)
    rows = [(step, step / 10, step / 4, 1.0, name, -1, 0.5) for step in (1, 2) for name in metrics]
    summary = {
        "run_id": folder.name,
        "config_hash": run.hash,
        "status": "diverged" if run.seed == 1 and getattr(run, "method", "") == "allreduce" else "completed",
        "metrics": dict.fromkeys(metrics, 0.5),
        "counts": {"gradients": 1234},
        "durations": {"wall_seconds": 30.0},
        "peak_memory_mb": 700.0,
        "provenance": {
            "commit": "c0ffee" * 6 + "c0ff",
            "dirty": run.seed == 1,
            "versions": {"python": "3.12.1", "torch": "2.11.0"},
            "hardware": {"processor": "Analytical Engine", "cores": 2, "platform": "Linux"},
            "threads": 1,
            "seed": run.seed,
            "code": "0123456789abcdef",
            "data": {"name": "digits", "source": "a <b>source</b>", "checksum": "f" * 64},
            "resumed": 0,
        },
    }
    record.write(folder, run, pd.DataFrame(rows, columns=list(record.HISTORY)), summary)


def fake_files(sources: Sources, name: str) -> None:
    """An item's files, drawn and written as items are, with made-up content."""
    item = sources.plan.item(name)
    numbers = pd.DataFrame({"x": [1, 2], "y": [0.5, 0.25]})
    canvas = Canvas(figsize=(6.8, 2.2))
    canvas.subplots().plot(numbers["x"], numbers["y"])
    cells = (("one", "96.2 ± 0.2", "1.0 < 2"), ("two & more", "–", "3.5"))
    header = (f"accuracy of {name} (%)", "n = 4", "n = 16")
    table = Table(header, cells, (False, True, True), ("A note.",), numbers=numbers)
    made = output.Figure(canvas, numbers) if item.config.kind == "figure" else table
    stem = item.stem(sources.figures, sources.plan.scale.name)
    output.save(made, stem, context_of(item, sources.plan, sources.results))


def fake_verdicts(sources: Sources) -> None:
    """Verdicts as the claims' item writes them: two claims, the second with two parts."""
    about = {"kind": "published", "source": "the abstract", "conditions": "Ring.", "part": "p"}
    about |= {"n": 2, "threshold": "< 1", "unit": "ratio"}
    a1 = {"id": "A1", "paper": "acid", "claim": "It helps.", "claim_verdict": claims.SUPPORTED}
    b1 = {"id": "B1", "paper": "forward_gradient", "claim": "It is close.", "claim_verdict": claims.NOT_RUN}
    good = {"verdict": claims.SUPPORTED, "reason": "", "effect": 0.36, "low": 0.138, "high": 0.952}
    none = {"verdict": claims.NOT_RUN, "reason": "no record of <x>"}
    cases = ((a1, good, "ratio of a to b"), (b1, good, "gap in weights"), (b1, none, "gap in outputs"))
    rows = [{**about, **claim, **part, "statistic": statistic} for claim, part, statistic in cases]
    sources.verdicts.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=list(claims.COLUMNS)).to_csv(sources.verdicts, index=False)


def fake_sources(folder: Path) -> Sources:
    """The quick plan; records and files of a few of its items, and verdicts."""
    sources = Sources(Plan("quick", SMALL, {"wandb": "disabled"}), folder / "results", folder / "figures")
    panels = [item.config.panels for item in sources.plan.items.values()]
    plotted = {metric for own in panels for metrics in own.values() for metric in metrics}
    for name in dict.fromkeys(run for item in BUILT for run in sources.plan.item(item).runs):
        fake_record(sources.plan.runs[name], sources.results, sorted(plotted))
    for name in BUILT:
        fake_files(sources, name)
    fake_verdicts(sources)
    return sources


class WandbServer:
    """As much of W&B's server as reports need: who asks, which projects there are, and reports, saved and listed.

    Answers are those that W&B's own client checks; `saved` holds the reports by id.
    """

    def __init__(self) -> None:
        self.projects: list[str] = []
        self.saved: dict[str, dict[str, Any]] = {}

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """The data of one GraphQL call."""
        end = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        if "GetProjects" in query:
            more = {
                "__typename": "Project",
                "entityName": "team",
                "createdAt": "2026",
                "isBenchmark": False,
                "user": None,
            }
            edges = [{"node": {"id": name, "name": name, **more}} for name in self.projects]
            return {"models": {"pageInfo": end, "edges": edges}}
        if "ProjectViews" in query:
            views = [{"node": one, "cursor": key} for key, one in self.saved.items()]
            return {"project": {"allViews": {"edges": views, "pageInfo": end}}}
        if "upsertView" in query:
            return {"upsertView": {"view": self.save(given), "inserted": given["id"] is None}}
        if "internalId" in query:
            return {"project": {"internalId": "1"} if given["projectName"] in self.projects else None}
        own = {"id": "1", "entity": "team", "username": "u", "email": "e", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": own} if "viewer" in query else {}

    def save(self, given: dict[str, Any]) -> dict[str, Any]:
        """A report, in place of that with its id."""
        key = given["id"] or f"view{len(self.saved)}"
        kept = {key: given[key] for key in ("name", "displayName", "description", "type", "spec")}
        project = {"id": "1", "name": given["projectName"], "entityName": given["entityName"]}
        self.saved[key] = {"id": key, **kept, "project": project, "user": None, "createdAt": None, "updatedAt": None}
        return self.saved[key]


@contextmanager
def wandb_server() -> Iterator[tuple[str, WandbServer]]:
    """Address and content of such a server, in this process."""
    fake = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["content-length"]))
            asked = json.loads(text) if self.path == "/graphql" else {}
            data = fake.answer(asked["query"], asked.get("variables") or {}) if asked else {}
            reply = json.dumps({"data": data}).encode()
            self.send_response(200)
            for key, value in (("content-type", "application/json"), ("content-length", str(len(reply)))):
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", fake
    server.shutdown()
