"""What trainings by gossip make of a run's settings: its constants, and what is measured of workers that differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from unlocked import seeding
from unlocked.gossip import topology
from unlocked.gossip.disagreement import Disagreement
from unlocked.gossip.momentum import Constants
from unlocked.gossip.simulator import Engine, consensus
from unlocked.papers.acid import common
from unlocked.papers.acid.settings import AcidRun, Gossip, Momentum, NetworkRun
from unlocked.vision.data import Dataset
from unlocked.vision.evaluate import has_batch_norm


def constants_of(run: AcidRun) -> Constants:
    """The method's constants on the run's graph."""
    if not (isinstance(run, Momentum) and isinstance(run, Gossip)):
        return Constants.baseline()
    graph = topology.build(run.graph, run.workers, run.seed)
    return Constants.accelerated(*topology.chi(graph, run.rate), run.strength)


def dynamics_of(run: AcidRun) -> str:
    """Of the averaging; without momentum both are the same."""
    return run.dynamics if isinstance(run, Momentum) else "exact"


def disagreement_of(run: NetworkRun, model: nn.Module, data: Dataset) -> Disagreement | None:
    """What measures the workers' differences, if the run asks for it: on training images that are not augmented, in
    whole batches as in training where BatchNorm makes a batch matter."""
    if not run.evaluation.disagreement:
        return None
    order = seeding.generator(run.seed, "training images for disagreement").permutation(len(data.train))
    size = count = min(run.evaluation.disagreement, len(order))
    if has_batch_norm(model) and count > run.optim.batch_size:
        size = run.optim.batch_size
    return Disagreement(model, [data.train.batch(order[k : k + size]) for k in range(0, count // size * size, size)])


class Measures:
    """What is measured of the workers of a run, with `model` at their parameters."""

    def __init__(self, run: NetworkRun, model: nn.Module, data: Dataset) -> None:
        self.run, self.gossips = run, isinstance(run, Gossip)
        self.evaluator = common.evaluator_of(run, model, data)
        self.disagreement = disagreement_of(run, model, data) if self.gossips else None

    def of(
        self, engine: Engine, time: float, buffers: Sequence[dict[str, Tensor]], own: dict[str, Any], final: bool
    ) -> dict[str, Any]:
        """Of an engine's workers at `time`, who have these `buffers`: their average and how far they are from it, then
        `own` metrics, then, where they gossip and the run wants it, each of them and what their differences cost."""
        mean, distances = consensus(engine, time)
        mean, evaluated = mean.to(self.run.runtime.device), self.run.evaluation.workers
        metrics = {**distances, **self.evaluator.averaged(mean, buffers), **own}

        def workers() -> Iterator[Tensor]:
            return (engine.now(i, time)[0].to(mean.device) for i in range(len(engine.x)))

        if self.gossips and (evaluated == "always" or (evaluated == "final" and final)):
            metrics |= self.evaluator.workers(workers(), buffers, self.run.evaluation.worker_images)
        if self.disagreement is not None:
            metrics |= self.disagreement.measure(mean, workers())
        return metrics
