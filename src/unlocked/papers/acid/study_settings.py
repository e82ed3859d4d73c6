"""What can be run for A²CiD² without a network: averaging alone, and a quadratic problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlocked.gossip.clock import Clock
from unlocked.gossip.schedule import PAIRINGS
from unlocked.papers.acid.settings import AcidRun, Gossip, Momentum, bookkeeping
from unlocked.papers.run import PROCESS_MB, Estimate, Points
from unlocked.settings import Settings, inside, setting

STUDY_EVENT, STUDY_NUMBER = 3.0e-5, 2.0e-9  # seconds per event, and per coordinate of it
VECTORS = 8  # of every worker, in memory


@dataclass(frozen=True)
class Averaging(Settings):
    """Vectors that are averaged."""

    dimension: int = setting(50, "coordinates of every worker's vector", least=1, most=10_000_000)
    horizon: float = setting(1000.0, "length of the run in gradient times", above=0, most=1e9)


@dataclass(frozen=True)
class Quadratic(Averaging):
    """Worker i minimises `1/2 sum_k a_k (x_k - b_ik)^2` from noisy gradients."""

    noise: float = setting(1.0, "standard deviation of a gradient's noise per coordinate", least=0, most=1e6)
    heterogeneous: bool = setting(False, "whether workers have optima of their own")


@dataclass(frozen=True)
class PlainSgd(Settings):
    """SGD at a constant rate."""

    lr: float = setting(0.005, "learning rate", above=0, most=1e6)
    momentum: float = setting(0.9, "of the SGD buffer", least=0, most=1)


@dataclass(frozen=True)
class QuadraticPoints(Points):
    """What is measured of a quadratic problem."""

    disagreement: bool = setting(False, "also the workers' mean loss over that of their average", later=True)


@dataclass(frozen=True)
class AveragingBaseline(Gossip, AcidRun):
    """Averaging alone, without gradients."""

    trainer: ClassVar[str] = "unlocked.papers.acid.training.StudyTraining"
    study: str = setting("averaging", "no gradients at all", names=("averaging",))
    method: str = setting("baseline", "gossip without momentum", names=("baseline",))
    quadratic: Averaging = setting(Averaging(), "the vectors")
    evaluation: Points = setting(Points(), "what is measured")
    pairing: str = setting("poisson", "poisson: clocks on edges (theory); availability: who is free", names=PAIRINGS)
    clock: Clock = setting(Clock(), "how long gradients take, which availability counts by")

    def check(self) -> None:
        super().check()
        with inside("clock"):
            self.clock.refuse_links("has no effect in a study, where averaging takes no time")

    @property
    def total_gradients(self) -> int:
        return 0

    @property
    def averagings(self) -> float:
        return self.quadratic.horizon * self.workers * self.rate / 2

    def estimate(self) -> Estimate:
        gossip = bookkeeping(self, self.quadratic.horizon * self.workers)
        events, dimension = self.averagings + self.total_gradients, self.quadratic.dimension
        numbers = dimension * (events + 4 * self.workers * self.evaluation.points)
        seconds = gossip.seconds + events * STUDY_EVENT + numbers * STUDY_NUMBER
        memory = gossip.memory_mb + round(8 * VECTORS * self.workers * dimension / 2**20)
        return Estimate(self.total_gradients, round(seconds, 1), PROCESS_MB + memory)


@dataclass(frozen=True)
class AveragingAcid(Momentum, AveragingBaseline):
    """Averaging alone, with momentum."""


@dataclass(frozen=True)
class QuadraticBaseline(AveragingBaseline):
    """The quadratic problem without momentum."""

    trainer: ClassVar[str] = "unlocked.papers.acid.training.StudyTraining"
    study: str = setting("quadratic", "a quadratic problem", names=("quadratic",))
    quadratic: Quadratic = setting(Quadratic(), "the problem")
    optim: PlainSgd = setting(PlainSgd(), "the optimiser")
    evaluation: QuadraticPoints = setting(QuadraticPoints(), "what is measured")
    gradient_read: str = setting("event", "x that a gradient is taken at: event, start", names=("event", "start"))

    @property
    def total_gradients(self) -> int:
        return int(self.quadratic.horizon * self.workers)


@dataclass(frozen=True)
class QuadraticAcid(Momentum, QuadraticBaseline):
    """The quadratic problem with momentum."""
