"""A quadratic problem for workers that gossip: what the momentum does, without a network in the way."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unlocked import seeding
from unlocked.gossip.stationary import CURVATURES
from unlocked.gossip.workers import Source

BLOCK = 128  # steps whose noise is drawn at a time


class Quadratic(Source):
    """Worker i minimises `1/2 sum_k a_k (x_k - b_ik)^2` from gradients `a (x - b_i) + noise`, in float64.

    `a` runs evenly from .1 to 1 over the `dimension` coordinates. `b` is 0, or if `heterogeneous` standard normal with
    mean zero over workers. `noise` is the standard deviation per coordinate; a worker's k-th gradient has the same
    noise in every method.
    """

    def __init__(
        self, workers: int, dimension: int, *, seed: int, noise: float = 1.0, heterogeneous: bool = False
    ) -> None:
        self.seed, self.noise, self.dimension = seed, noise, dimension
        self.a = torch.linspace(*CURVATURES, dimension, dtype=torch.float64)
        self.b = torch.zeros(workers, dimension, dtype=torch.float64)
        if heterogeneous:
            drawn = seeding.generator(seed, "optima").standard_normal((workers, dimension))
            self.b = torch.from_numpy(drawn - drawn.mean(0))
        self._blocks: dict[int, tuple[int, np.ndarray]] = {}  # of every worker the last one drawn

    def _noise(self, worker: int, step: int) -> np.ndarray:
        number, position = divmod(step, BLOCK)
        if self._blocks.get(worker, (-1,))[0] != number:
            draws = seeding.generator(self.seed, "gradient noise", worker, number)
            self._blocks[worker] = number, draws.standard_normal((BLOCK, self.dimension))
        return self._blocks[worker][1][position]

    def stacked(self, workers: list[int], steps: list[int], vectors: Tensor) -> tuple[Tensor, Tensor]:
        drawn = np.stack([self._noise(*who) for who in zip(workers, steps, strict=True)])
        away = vectors - self.b[workers]
        pull = self.a * away
        return pull + torch.from_numpy(self.noise * drawn), (pull * away).sum(1) / 2
