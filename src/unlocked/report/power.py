"""How many seeds each part of a claim needs, from the spread of the effects that are there: a pilot's, say.

A part is tested for two things: on which side of its threshold the effect is, and, with a margin, that it makes no
difference. Numbers are by the distance that the effect has now, or by half the margin's width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from unlocked.artifact.config import ScaleHead
from unlocked.artifact.plan import Claim, Part
from unlocked.items.frames import Frames
from unlocked.report import claims, inference
from unlocked.report.inference import POWER, Effect
from unlocked.report.statistics import Evidence

HEADER = ("claim", "part", "seeds", "effect", "deviation", "seeds: effect", "seeds: no difference", "detectable")


def table(all_claims: Mapping[str, Claim], frames: Frames, head: ScaleHead) -> pd.DataFrame:
    """A row per part that has runs: seeds for a power of .8, and what those of the scale detect."""
    rows = []
    for name, claim in all_claims.items():
        evidence = Evidence.of(claim.runs, frames)
        known = [(key, part, effect_so_far(part, evidence)) for key, part in claim.parts.items()]
        seeds = len(head.seeds_of(name))
        rows += [(name, key, *needed(part, effect, seeds)) for key, part, effect in known if effect.seeds]
    return pd.DataFrame(rows, columns=list(HEADER))


def effect_so_far(part: Part, evidence: Evidence) -> Effect:
    """Of the seeds whose runs are there: this is no verdict."""

    def of(seeds: list[int]) -> Effect:
        return claims.effect_of(part, Evidence(evidence.frames.select(seed=seeds)))[0]

    seeds = [seed for seed in evidence.frames.values("seed") if of([seed]).seeds]
    return of(seeds) if seeds else Effect()


def needed(part: Part, effect: Effect, seeds: int) -> tuple[object, ...]:
    """Seeds, effect, deviation (of ratios: of logarithms); what it takes to find the effect, and to find none."""
    deviation = effect.error * math.sqrt(effect.n)
    if not deviation > 0:
        return effect.n, effect.value, None, None, None, None
    edges = [effect.tested(edge) for edge in claims.bounds(part) if math.isfinite(edge)]
    distance = min(abs(effect.tested(effect.value) - edge) for edge in edges)
    find = inference.seeds_for(distance, deviation)
    ends = [effect.tested(end) for end in claims.margins(part) or ()]
    none = inference.seeds_for(np.ptp(ends) / 2, deviation, inference.power_of_equivalence) if ends else None
    return effect.n, effect.value, deviation, find, none, inference.detectable(deviation, seeds)


def as_markdown(powers: pd.DataFrame) -> str:
    """The table, and what its columns mean."""
    note = (
        f"Seeds for a power of {POWER:g} of one-sided tests at {inference.LEVEL:.1%}: to find the effect as it is now, "
        "and to find no difference where there is none. Detectable: the distance from the threshold that the "
        "scale's seeds find with that power. Of ratios, deviation and distance are of logarithms."
    )
    return f"{powers.to_markdown(index=False, floatfmt='.3g', missingval='–')}\n\n{note}"
