"""Forward gradients as the artifact sees them: the kinds of run, and what a scale says of the items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlocked.errors import choose
from unlocked.forward_gradient.method import Method
from unlocked.papers.forward_gradient.settings import (
    Backpropagation,
    ForwardRun,
    FrozenBlocks,
    GlobalNoise,
    HeadGuess,
    LocalLearning,
    LocalNoise,
)  # fmt: skip
from unlocked.papers.forward_gradient.study_settings import STUDIES, EstimatorError, FreshNetStudy
from unlocked.papers.run import Paper, PaperScale
from unlocked.settings import Settings, setting


def kind_of(settings: Mapping[str, Any]) -> type[ForwardRun]:
    """The kind of run that `study`, `target` and `guess` name."""
    study = choose("study", settings.get("study", "training"), ["training", *STUDIES])
    if study != "training":
        return STUDIES[study]
    method = Method(settings.get("target", "global"), settings.get("guess", "local"))
    if not method.is_projected:
        return {"target": Backpropagation, "nothing": FrozenBlocks}.get(method.of_guess.source, LocalLearning)
    if method.of_guess.source == "noise":
        return LocalNoise if method.of_target.uses_heads else GlobalNoise
    return HeadGuess


KINDS: tuple[type[ForwardRun], ...] = (
    Backpropagation, FrozenBlocks, LocalLearning, GlobalNoise, LocalNoise, HeadGuess, EstimatorError, FreshNetStudy,
)  # fmt: skip


@dataclass(frozen=True)
class Large(Settings):
    """What stands in ImageNet32's place; a scale without a second data set takes the first with a larger net."""

    data: str = setting("imagenet32", "the data set")
    width: float = setting(1.0, "of the net", above=0, most=64)
    auxiliaries: tuple[str, ...] = setting(("cnn", "mlp", "linear"), "auxiliary nets", nonempty=True)
    guesses: tuple[str, ...] = setting(("ntk", "fixed_ntk", "local"), "guesses from auxiliary nets", nonempty=True)


@dataclass(frozen=True)
class ForwardScale(PaperScale):
    """A scale's values for this paper's items."""

    auxiliary: str = setting("cnn", "auxiliary nets of items that have one kind")
    auxiliaries: tuple[str, ...] = setting(("cnn", "mlp", "linear"), "of the tables of accuracy", nonempty=True)
    widths: tuple[float, ...] = setting(
        (0.25, 0.5, 1.0), "in the items on width and error", above=0, most=64, nonempty=True
    )
    learning_rates: tuple[float, ...] = setting(
        (0.005, 0.01, 0.02, 0.05, 0.1, 0.2), "in the item on them", above=0, most=1e6, nonempty=True
    )
    cost_width: float = setting(1.0, "of the net whose forward mode is timed", above=0, most=64)
    tangents: int = setting(
        64, "most random guesses that are averaged in the item on the estimator's error", least=1, most=100_000
    )
    large: Large = setting(Large(), "what stands in ImageNet32's place")


PAPER = Paper(
    key="forward_gradient",
    short="Forward gradients",
    title="Can Forward Gradient Match Backpropagation?",
    venue="ICML 2023",
    scale=ForwardScale,
    kinds=KINDS,
    kind_of=kind_of,
)
