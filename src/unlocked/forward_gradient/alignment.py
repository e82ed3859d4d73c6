"""How target, guess, estimate and true gradient lie to each other in a run, on batches that never change.

Stands inside `train` on the road configs -> plan -> train -> record -> item, beside `trainer`. Nothing here touches the
training: `estimate` is pure, redrawn guess nets are copies, and noise comes from generators of its own.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
from omegaconf import DictConfig

from unlocked import seeding
from unlocked.forward_gradient import measures, network
from unlocked.forward_gradient.estimator import estimate
from unlocked.forward_gradient.network import Net
from unlocked.vision.data import Dataset


class Alignment:
    """The measures of a run: `measure.batches` batches of `measure.batch_size` training images, not augmented."""

    def __init__(self, run: DictConfig, data: Dataset) -> None:
        self.run, self.split = run, data.train
        count, size = run.measure.batches, run.measure.batch_size
        order = seeding.generator(run.seed, "measured batches").permutation(len(data.train))
        self.indices = [np.sort(order[k * size : (k + 1) * size]) for k in range(count)]

    def measure(self, net: Net, step: int) -> dict[str, Any]:
        """Metrics by name: one value per estimated block (the last block has its true gradient, and none).

        Means over the batches. `net_…` are those of all estimated blocks joined.
        """
        found: dict[tuple[str, int], list[float]] = {}
        for number, indices in enumerate(self.indices):
            for key, value in self._on_batch(net, step, number, indices).items():
                if self.run.measure.tensors or "/" not in key[0]:
                    found.setdefault(key, []).append(value)
        metrics: dict[str, Any] = {}
        for (name, block), values in found.items():
            mean = sum(values) / len(values)
            if block == measures.WHOLE:
                metrics[f"net_{name}"] = mean
            else:
                # a block without the value (a zero norm, or no such tensor) keeps its place in the list
                metrics.setdefault(name, [math.nan] * (len(net.blocks) - 1))[block] = mean
        return metrics

    def _on_batch(self, net: Net, step: int, number: int, indices: np.ndarray) -> measures.Measures:
        run = self.run
        images, labels = self.split.batch(indices)
        if run.guess == "ntk":
            net = copy.deepcopy(net)
            network.redraw_(net, run, "measure", step, number)
        return estimate(
            net.blocks, net.auxiliaries, images, labels, target=run.target, guess=run.guess, space=run.space,
            averaged=run.averaged, distribution=run.distribution, tangents=network.tangents(run),
            generator=network.noise(run, "measure", step, number), guess_auxiliaries=net.guess_auxiliaries,
            measure=True,
        ).measures  # fmt: skip
