"""A²CiD² as the artifact sees it: its kinds of run, and what a scale says of its items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlocked.errors import choose
from unlocked.papers.acid import settings as runs
from unlocked.papers.acid import study_settings as studies
from unlocked.papers.acid.settings import AcidRun
from unlocked.papers.run import MOST, Paper, PaperScale
from unlocked.settings import Settings, setting
from unlocked.vision.partition import PARTITIONS

KINDS: dict[tuple[str, str, str], type[AcidRun]] = {
    ("training", "virtual", "allreduce"): runs.AllReduce,
    ("training", "virtual", "baseline"): runs.Baseline,
    ("training", "virtual", "acid"): runs.Acid,
    ("training", "processes", "allreduce"): runs.ProcessAllReduce,
    ("training", "processes", "baseline"): runs.ProcessBaseline,
    ("training", "processes", "acid"): runs.ProcessAcid,
    ("averaging", "virtual", "baseline"): studies.AveragingBaseline,
    ("averaging", "virtual", "acid"): studies.AveragingAcid,
    ("quadratic", "virtual", "baseline"): studies.QuadraticBaseline,
    ("quadratic", "virtual", "acid"): studies.QuadraticAcid,
}


def kind_of(settings: Mapping[str, Any]) -> type[AcidRun]:
    """The kind of run that `study`, `engine` and `method` name."""
    study = choose("study", settings.get("study", "training"), dict.fromkeys(key[0] for key in KINDS))
    engine = settings.get("engine", "virtual")
    choose("engine", engine, dict.fromkeys(key[1] for key in KINDS if key[0] == study))
    method = settings.get("method", "acid")
    choose("method", method, [key[2] for key in KINDS if key[:2] == (study, engine)])
    return KINDS[study, engine, method]


@dataclass(frozen=True)
class Large(Settings):
    """What stands in ImageNet's place; a scale without a second data set takes the first with a larger net."""

    data: str = setting("imagenet", "the data set")
    size: int | None = setting(None, "pixels to which the images are resized", least=1, most=4096)
    model: str = setting("resnet50", "the network")
    workers: tuple[int, ...] = setting((16, 32, 64), "numbers of workers", least=1, most=1_000_000, nonempty=True)
    most_workers: int = setting(64, "the largest of them", least=1, most=1_000_000)
    epochs: float = setting(90.0, "the budget", above=0, most=1e6)
    milestones: tuple[float, ...] = setting((0.3, 0.6, 0.8), "steps of the learning rate", above=0, below=1)


@dataclass(frozen=True)
class AcidScale(PaperScale):
    """A scale's values for this paper's items."""

    workers: tuple[int, ...] = setting(
        (4, 8, 16, 32, 64), "in tables and figures", least=1, most=1_000_000, nonempty=True
    )
    largest: int = setting(64, "of items that have one number of workers", least=1, most=1_000_000)
    plain_lr: float | None = setting(
        0.1, "learning rate of runs without SGD momentum; null: each method's own, from the pilot", above=0, most=1e6
    )
    rates: tuple[float, ...] = setting(
        (1.0, 2.0, 4.0), "the baseline's, to compare the momentum with", above=0, most=1e6, nonempty=True
    )
    partitions: tuple[str, ...] = setting(PARTITIONS, "of the item on where the momentum helps", nonempty=True)
    learning_rates: tuple[float, ...] = setting(
        (0.025, 0.05, 0.1, 0.2, 0.4), "those compared", above=0, most=1e6, nonempty=True
    )
    strengths: tuple[float, ...] = setting(
        (1.0, 0.25, 0.0625, 0.015625), "of the momentum, those compared", above=0, most=1e6, nonempty=True
    )
    weaker: float = setting(0.25, "strength of the momentum where one that is weaker is shown", above=0, most=1e6)
    strength_workers: tuple[int, ...] = setting(
        (16, 64), "of the item on the strength", least=2, most=1_000_000, nonempty=True
    )
    disagreement: int = setting(4096, "images on which the workers' differences are measured", least=1, most=MOST)
    deep_disagreement: int = setting(1024, "the same for the net with BatchNorm", least=1, most=MOST)
    points: int = setting(20, "evaluations of runs that measure them", least=1, most=100_000)
    straggler_workers: int = setting(16, "workers of the item on stragglers", least=1, most=1_000_000)
    variations: tuple[float, ...] = setting(
        (0.1, 0.5, 1.0), "spreads of gradient times there", above=0, most=100, nonempty=True
    )
    slow_factors: tuple[float, ...] = setting(
        (2.0, 4.0), "slowdowns of one worker there", least=1, most=1e6, nonempty=True
    )
    horizon: float = setting(1000.0, "gradient times of the studies", above=0, most=1e9)
    engine_workers: int = setting(4, "of the item that runs both engines", least=2, most=1_000_000)
    engine_epochs: float = setting(1.0, "its budget", above=0, most=1e6)
    engine_stretch: float = setting(
        1.0, "factor on real gradient times there: workers without a core of their own", least=1, most=1e6
    )
    released_workers: int = setting(16, "of the item on the released code's behaviours", least=2, most=1_000_000)
    released_width: float = setting(1.0, "width of its ResNet-18", above=0, most=64)
    released_epochs: float = setting(300.0, "its budget", above=0, most=1e6)
    large: Large = setting(Large(), "what stands in ImageNet's place")


PAPER = Paper(
    key="acid",
    short="A²CiD²",
    title="A²CiD²: Accelerating Asynchronous Communication in Decentralized Deep Learning",
    venue="NeurIPS 2023",
    scale=AcidScale,
    kinds=tuple(KINDS.values()),
    kind_of=kind_of,
)
