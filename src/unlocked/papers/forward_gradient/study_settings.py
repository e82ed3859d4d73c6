"""What can be run for forward gradients besides trainings: the error of estimates, and studies on fresh nets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from unlocked.papers.forward_gradient.settings import FACTORS, ForwardRun, Trained
from unlocked.papers.run import Estimate
from unlocked.settings import setting
from unlocked.vision import networks

GRADIENTS = 24  # that a study on a fresh net costs, roughly


@dataclass(frozen=True)
class EstimatorError(Trained):
    """How far estimates of all guesses are from the gradient, before and after a training with the local guess."""

    trainer: ClassVar[str] = "unlocked.papers.forward_gradient.estimator_error.EstimatorError"
    study: str = setting("estimator_error", "error of every guess's estimate", names=("estimator_error",))
    target: str = setting("global", "the net's loss", names=("global",))
    guess: str = setting("local", "of the training", names=("local",))
    auxiliary: str = setting("cnn", "nets that give blocks a loss", names=networks.AUXILIARIES)
    tangents: int = setting(1, "the most random guesses that are averaged", least=1, most=100_000)

    def factor(self) -> float:
        return FACTORS["activity", "head"]

    @property
    def measured_batches(self) -> float:
        return super().measured_batches + 2 * 2 * 2 * self.tangents  # before and after, two spaces, 1 + 2 + 4 + ...


FRESH_NET = ("forward_mode_cost", "batchnorm_coupling", "auxiliary_cost")


@dataclass(frozen=True)
class FreshNetStudy(ForwardRun):
    """A measurement on a net as it was drawn."""

    trainer: ClassVar[str] = "unlocked.papers.forward_gradient.studies.Study"
    study: str = setting(
        "forward_mode_cost",
        "time and memory of forward mode; error of per-sample coefficients from one product, by normalisation; size of "
        "the auxiliary nets",
        names=FRESH_NET,
    )

    def estimate(self) -> Estimate:
        return self.costs(GRADIENTS, 1.0)


STUDIES: dict[str, type[ForwardRun]] = {"estimator_error": EstimatorError, **dict.fromkeys(FRESH_NET, FreshNetStudy)}
