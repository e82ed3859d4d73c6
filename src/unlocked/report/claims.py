"""What the papers assert, judged: effect, 95 % interval and verdict of every part of every claim, one row each.

The claims stand in `configs/claims.yaml`. Each has parts, each part a statistic of the claim's runs and a threshold.
All parts must hold: each is tested for itself, and Holm's correction stands on what would refute the claim, which one
part can do.
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
from unlocked.report import inference, statistics
from unlocked.report.inference import FEWEST, LEVEL, Effect, Undefined
from unlocked.report.statistics import Evidence, NotRun
from unlocked.settings import flatten

SUPPORTED, NOT_SUPPORTED, INCONCLUSIVE, NOT_RUN = "supported", "not supported", "inconclusive", "not run"
NO_DIFFERENCE = "no difference"  # beyond the margin
PIPELINE_CHECK = "pipeline check"  # too few seeds for a verdict: that it was computed is all that it shows
COLUMNS = (
    "id", "paper", "kind", "part", "claim", "source", "statistic", "conditions", "effect", "low", "high", "n",
    "threshold", "p", "verdict", "reason", "claim_verdict", "unit",
)  # fmt: skip
HEADER = ("id", "statement", "effect [95 % interval]", "n", "claimed", "verdict")
KINDS = {"published": "", "ours": "(ours) ", "check": "(check) "}  # before the sentence
WORST_FIRST = (NOT_SUPPORTED, NOT_RUN, PIPELINE_CHECK, NO_DIFFERENCE, INCONCLUSIVE, SUPPORTED)


def bounds(part: Part) -> tuple[float, float]:
    """Between which values the effect should lie; one of them may be infinite."""
    if part.between is not None:
        return part.between[0], part.between[1]
    return -math.inf if part.above is None else part.above, math.inf if part.below is None else part.below


def threshold(part: Part) -> str:
    """`< 1`, `> 0 (margin 0.3)`, `0.8 to 1.25`."""
    low, high = bounds(part)
    if math.isfinite(low) and math.isfinite(high):
        return f"{low:g} to {high:g}"
    side = f"< {high:g}" if math.isinf(low) else f"> {low:g}"
    return side if part.margin is None else f"{side} (margin {part.margin:g})"


def margins(part: Part) -> tuple[float, float] | None:
    """Between which values an effect is no difference: around the threshold, by a factor where it is a ratio."""
    if part.margin is None:
        return None
    edge = next(filter(math.isfinite, bounds(part)))
    if part.unit == "ratio":
        return edge / (1 + part.margin), edge * (1 + part.margin)
    return edge - part.margin, edge + part.margin


def verdict(effect: Effect, part: Part, holds: float, fails: float) -> str:
    """Of a part, by the (corrected) p-values of the tests that it holds and that it fails."""
    if effect.n < FEWEST:
        return PIPELINE_CHECK
    if min(holds, fails) < LEVEL:
        return SUPPORTED if holds < fails else NOT_SUPPORTED
    return NO_DIFFERENCE if alike(effect, part) else INCONCLUSIVE


def alike(effect: Effect, part: Part) -> bool:
    """Whether an effect is no difference, by the part's margin."""
    same = margins(part)
    return effect.n >= FEWEST and same is not None and effect.inside(*same) < LEVEL


def combined(verdicts: Iterable[str]) -> str:
    """A claim's verdict: that of its worst part."""
    return min(verdicts, key=WORST_FIRST.index)


def effect_of(part: Part, evidence: Evidence) -> tuple[Effect, str | None]:
    """The effect of a part, and the verdict where there is none."""
    try:
        return statistics.measured(part.statistic, evidence, part.arguments), None
    except NotRun as problem:
        return Effect(note=str(problem)), NOT_RUN
    except Undefined as problem:
        return Effect(note=str(problem)), INCONCLUSIVE


def judged(claim: Claim, evidence: Evidence) -> list[dict[str, Any]]:
    """The parts of a claim: values by `COLUMNS`."""
    known = [(name, part, *effect_of(part, evidence)) for name, part in claim.parts.items()]
    refuted = inference.holm([effect.outside(*bounds(part)) for _, part, effect, _ in known])
    rows = []
    for (name, part, effect, none), fails in zip(known, refuted, strict=True):
        holds = effect.inside(*bounds(part))
        about: dict[str, Any] = {"part": name, "statistic": part.says, "unit": part.unit, "threshold": threshold(part)}
        about |= {"effect": effect.value, "low": effect.low, "high": effect.high, "n": effect.n, "p": holds}
        rows.append(about | {"verdict": none or verdict(effect, part, holds, fails), "reason": reason(effect, part)})
    return rows


def reason(effect: Effect, part: Part) -> str:
    """What is to be said of an effect: how it came about, and that a difference is smaller than the margin."""
    few = f"{effect.n} seeds, and a verdict needs {FEWEST}" if 1 < effect.n < FEWEST else ""
    return "; ".join(filter(None, [effect.note, few, "smaller than the margin" * alike(effect, part)]))


def table(claims: Mapping[str, Claim], frames: Frames) -> pd.DataFrame:
    """Claims, each judged by those runs in the frames that it wants: one row per part, with `COLUMNS`."""
    rows = []
    for name, claim in claims.items():
        own, parts = claim.config, judged(claim, Evidence.of(claim.runs, frames))
        about = {"id": name, "conditions": conditions(claim)}
        about |= {key: getattr(own, key) for key in ("paper", "kind", "claim", "source")}
        about["claim_verdict"] = combined(part["verdict"] for part in parts)
        rows += [about | part for part in parts]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def conditions(claim: Claim) -> str:
    """The conditions as stated, and the values of the claim's `settings` in those of its runs that have them."""
    stated, values = " ".join(claim.config.conditions.split()), []
    runs = [flatten(run.identity()) for run in claim.runs.values()]
    for key in claim.config.settings:
        present: set[Any] = {run[key] for run in runs if key in run}
        if not present:
            raise SettingError(f"configs/claims.yaml: {claim.id}.settings", key, "is not a setting of the claim's runs")
        texts = ["none"] * (None in present) + [
            f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(present - {None})
        ]
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
    # by way of six digits, which is what files keep: a tie is rounded the same before and after
    effect, low, high = (float(f"{value:.6g}") for value in (effect, low, high))
    ends = "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]"
    return f"{effect:.3g}{ends}".replace("-", "−")


def by_claim(rows: pd.DataFrame) -> list[list[dict[str, Any]]]:
    """The rows of `table` for every claim, with effect and threshold as printed: `interval` and `claimed`."""
    intervals = [interval_text(*numbers) for numbers in zip(rows["effect"], rows["low"], rows["high"], strict=True)]
    printed = rows.assign(interval=intervals, claimed=rows["threshold"].str.replace("-", "−"))
    return [own.to_dict("records") for _, own in printed.groupby("id", sort=False)]


def statement(part: dict[str, Any]) -> str:
    """A claim's sentence, behind whose it is if not the paper's."""
    return str(KINDS[part["kind"]] + part["claim"])


def deciding(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a claim's parts the first that has its verdict."""
    return next((part for part in parts if part["verdict"] == part["claim_verdict"]), parts[0])


def as_table(rows: pd.DataFrame) -> Table:
    """A row per claim, and below it one per part; sources, conditions and reasons are notes."""
    cells: list[tuple[str, ...]] = []
    notes = []
    for parts in by_claim(rows):
        claim = parts[0]
        cells.append((claim["id"], statement(claim), "", "", "", claim["claim_verdict"]))
        cells += [("", f"· {p['statistic']}", p["interval"], str(p["n"]), p["claimed"], p["verdict"]) for p in parts]
        reasons = "; ".join(f"{part['part']}: {part['reason']}" for part in parts if part["reason"])
        because = f" Note on {reasons}." if reasons else ""
        how = " All parts must hold." * (len(parts) > 1)
        notes.append(f"{claim['id']}: {claim['source']}. {claim['conditions']}{how}{because}")
    return Table(HEADER, tuple(cells), (False,) * len(HEADER), tuple(notes), rows)


def as_text(rows: pd.DataFrame) -> str:
    """The rows of `table` for a terminal: a claim and its verdict, and a line per part."""
    lines = []
    for parts in by_claim(rows):
        lines.append(f"{parts[0]['id']}  {parts[0]['claim_verdict']}: {statement(parts[0])}")
        for part in parts:
            text = "      {verdict}: {statistic}: {interval}, n = {n}, claimed {claimed}".format(**part)
            lines.append(text + f" ({part['reason']})" * bool(part["reason"]))
    return "\n".join(lines)
