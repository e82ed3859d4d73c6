"""What the papers assert, judged: effect, 95 % interval and verdict of every part of every claim, one row each.

The claims stand in `configs/claims.yaml`. Each has parts, each part a statistic of the claim's runs and a threshold.
The interval decides: without one (one seed, or the same number for all) the verdict is inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from unlocked.artifact.plan import Claim, Part
from unlocked.errors import DataError, SettingError
from unlocked.items.frames import Frames
from unlocked.items.table import NONE, Table
from unlocked.report import statistics
from unlocked.report.statistics import Effect, Evidence, NotRun, Undefined
from unlocked.settings import flatten

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE, NOT_RUN = "supported", "not supported", "inconclusive", "not run"
COLUMNS = (
    "id", "paper", "part", "claim", "source", "statistic", "conditions", "effect", "low", "high", "n", "threshold",
    "verdict", "reason", "claim_verdict", "unit",
)  # fmt: skip
HEADER = ("id", "statement", "effect [95 % interval]", "n", "claimed", "verdict")


def bounds(part: Part) -> tuple[float, float]:
    """Between which values the effect should lie; one of them may be infinite."""
    if part.between is not None:
        return part.between[0], part.between[1]
    return -math.inf if part.above is None else part.above, math.inf if part.below is None else part.below


def threshold(part: Part) -> str:
    """`< 1`, `> 0`, `0.8 to 1.25`."""
    low, high = bounds(part)
    if math.isinf(low):
        return f"< {high:g}"
    return f"> {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def verdict(effect: Effect, low: float, high: float) -> str:
    """Supported if the whole interval lies in (low, high), not supported if wholly outside, else inconclusive."""
    if not (math.isfinite(effect.low) and math.isfinite(effect.high)):
        return INCONCLUSIVE
    if low < effect.low and effect.high < high:
        return SUPPORTED
    return NOT_SUPPORTED if effect.high <= low or effect.low >= high else INCONCLUSIVE


def combined(verdicts: Iterable[str]) -> str:
    """A claim's verdict: refuted by one part; else not run if one is not; supported if all are; else inconclusive."""
    present = set(verdicts)
    return next((word for word in (NOT_SUPPORTED, NOT_RUN, INCONCLUSIVE) if word in present), SUPPORTED)


def measure(part: Part, evidence: Evidence) -> dict[str, Any]:
    """A part of a claim, judged: values by `COLUMNS`."""
    try:
        effect = statistics.measured(part.statistic, evidence, part.arguments)
        word = verdict(effect, *bounds(part))
    except (NotRun, Undefined) as problem:
        effect, word = Effect(note=str(problem)), NOT_RUN if isinstance(problem, NotRun) else INCONCLUSIVE
    about = {"statistic": part.says, "unit": part.unit, "threshold": threshold(part), "reason": effect.note}
    return about | {"effect": effect.value, "low": effect.low, "high": effect.high, "n": effect.n, "verdict": word}


def table(claims: Mapping[str, Claim], frames: Frames) -> pd.DataFrame:
    """Claims, each judged by those runs in the frames that it wants: one row per part, with `COLUMNS`."""
    rows = []
    for name, claim in claims.items():
        evidence, own = Evidence.of(claim.runs, frames), claim.config
        parts = [{"part": key} | measure(part, evidence) for key, part in claim.parts.items()]
        about = {"id": name, "paper": own.paper, "claim": own.claim, "source": own.source}
        about |= {"conditions": conditions(claim), "claim_verdict": combined(part["verdict"] for part in parts)}
        rows += [about | part for part in parts]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def conditions(claim: Claim) -> str:
    """The conditions as stated, and the values of the claim's `settings` in those of its runs that have them."""
    stated, values = " ".join(claim.config.conditions.split()), []
    runs = [flatten(run.identity()) for run in claim.runs.values()]
    for key in claim.config.settings:
        present: set[Any] = {run.get(key) for run in runs} - {None}
        if not present:
            raise SettingError(f"configs/claims.yaml: {claim.id}.settings", key, "is not a setting of the claim's runs")
        texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(present)]
        values.append(f"{key} {', '.join(texts)}")
    return f"{stated} Settings: {'; '.join(values)}." if values else stated


def read(path: Path) -> pd.DataFrame:
    """`table` from its CSV file; no rows if that is not there, `DataError` if it is of another kind."""
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS))
    rows = pd.read_csv(path, keep_default_na=False, na_values=dict.fromkeys(("effect", "low", "high"), ""))
    if missing := [name for name in COLUMNS if name not in rows]:
        raise DataError(f"{path}: has no column {missing[0]}; delete it and build the claims again")
    return rows


def interval_text(effect: float, low: float, high: float) -> str:
    """`0.61 [0.58, 0.64]`: an effect with its interval; a dash where there is none."""
    if math.isnan(effect):
        return NONE
    ends = "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]"
    return f"{effect:.3g}{ends}".replace("-", "−")


def by_claim(rows: pd.DataFrame) -> list[list[dict[str, Any]]]:
    """The rows of `table` for every claim, with effect and threshold as printed: `interval` and `claimed`."""
    intervals = [interval_text(*numbers) for numbers in zip(rows["effect"], rows["low"], rows["high"], strict=True)]
    printed = rows.assign(interval=intervals, claimed=rows["threshold"].str.replace("-", "−"))
    return [own.to_dict("records") for _, own in printed.groupby("id", sort=False)]


def as_table(rows: pd.DataFrame) -> Table:
    """A row per claim, and below it one per part; sources, conditions and reasons are notes."""
    cells: list[tuple[str, ...]] = []
    notes = []
    for parts in by_claim(rows):
        claim = parts[0]
        cells.append((claim["id"], claim["claim"], "", "", "", claim["claim_verdict"]))
        cells += [("", f"· {p['statistic']}", p["interval"], str(p["n"]), p["claimed"], p["verdict"]) for p in parts]
        reasons = "; ".join(f"{part['part']}: {part['reason']}" for part in parts if part["reason"])
        because = f" Note on {reasons}." if reasons else ""
        notes.append(f"{claim['id']}: {claim['source']}. {claim['conditions']}{because}")
    return Table(HEADER, tuple(cells), (False,) * len(HEADER), tuple(notes), "lp{8cm}rrll", rows)


def as_text(rows: pd.DataFrame) -> str:
    """The rows of `table` for a terminal: a claim and its verdict, and a line per part."""
    lines = []
    for parts in by_claim(rows):
        lines.append("{id}  {claim_verdict}: {claim}".format(**parts[0]))
        for part in parts:
            text = "      {verdict}: {statistic}: {interval}, n = {n}, claimed {claimed}".format(**part)
            lines.append(text + f" ({part['reason']})" * bool(part["reason"]))
    return "\n".join(lines)
