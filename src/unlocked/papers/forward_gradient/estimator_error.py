"""How far the estimates of all guesses are from the gradient, and how guess and target lie, at the same weights.

Metrics carry what they compare in their name, as `metric/guess/space`; their values are one per block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlocked import seeding
from unlocked.forward_gradient import passes
from unlocked.forward_gradient.estimator import Estimate, estimate
from unlocked.forward_gradient.method import Method
from unlocked.papers.base import Measurement
from unlocked.papers.forward_gradient import network
from unlocked.papers.forward_gradient import study_settings as settings
from unlocked.papers.forward_gradient.network import Net
from unlocked.papers.forward_gradient.studies import Metrics, first_batch
from unlocked.papers.forward_gradient.training import ForwardTraining
from unlocked.vision.data.splits import Dataset

SPACES = {"weight": ("weight", True), "weight_per_sample": ("weight", False), "activity": ("activity", False)}
DRAWS = 64  # random guesses in the activities over which their error is averaged
FEW = 4  # random guesses in every sample's weights, which take long to draw


class EstimatorError(ForwardTraining):
    """A training with the local guess that compares, at its start and end, the estimates of all guesses.

    At its start the auxiliary nets are as drawn; at its end they are trained.
    """

    run: settings.EstimatorError

    def measure(self, spans: int) -> Measurement:
        found = super().measure(spans)
        if spans in (0, self.spans):
            found.metrics.update(Comparison(self.run, self.data, self.net, found.step).metrics())
        return found


class Comparison:
    """Estimates of the global target at the weights of `net`, on one batch.

    `alignment/<guess>/<space>`: cosine between target and guess, mean over coefficients. `error_cosine`,
    `relative_error`: of the estimate to the true gradient, for every guess from auxiliary nets and for
    `random/<space>/<tangents>`, means of 1, 2, 4 ... random guesses. `expected_error/random/<space>`: root mean square
    of the relative error of one random guess. `dimension/<space>`: numbers that a guess has: in all weights of a block,
    or in one sample's output.
    """

    def __init__(self, run: settings.EstimatorError, data: Dataset, net: Net, step: int) -> None:
        self.run, self.net, self.step = run, net, step
        self.batch = first_batch(run, data)
        anew = seeding.integer(run.seed, "ntk of the error study", step)
        self.heads = {
            "local": net.auxiliaries,
            "ntk": network.auxiliaries(run, data, run.auxiliary, anew),
            "fixed_ntk": network.auxiliaries(run, data, run.auxiliary, run.seed),  # as the net's own were drawn
        }
        self.truth = self.estimate("global").gradients

    def estimate(
        self,
        guess: str,
        space: str = "weight",
        number: int = 0,
        *,
        measure: bool = False,
        normalise: bool | None = None,
    ) -> Estimate:
        """An estimate; of random guesses that of a `number`."""
        kind, averaged = SPACES[space]
        return estimate(
            self.net.blocks, self.heads.get(guess, self.net.auxiliaries), *self.batch,
            Method("global", guess, kind, averaged=averaged, normalise=normalise),
            generator=network.noise(self.run, "error study", self.step, number), measure=measure,
        )  # fmt: skip

    def metrics(self) -> Metrics:
        """All metrics."""
        parameters = [sum(p.numel() for p in block.parameters()) for block in self.net.blocks[:-1]]
        outputs = [features[0].numel() for features in passes.chain(self.net.blocks, self.batch[0])[1:]]
        found: Metrics = {f"dimension/{name}": outputs if name == "activity" else parameters for name in SPACES}
        for space in SPACES:
            for guess in self.heads:
                one = self.estimate(guess, space, measure=True)
                found |= aligned(f"{guess}/{space}", one) | compare(f"{guess}/{space}", one.gradients, self.truth)
            found |= self.of_random(space)
        return found

    def of_random(self, space: str) -> Metrics:
        """The metrics of random guesses in a space."""
        found, squares = aligned(f"random/{space}", self.estimate("random", space, 1, measure=True)), []
        total: dict[str, Tensor] = {}
        most = min(self.run.tangents, FEW) if space == "weight_per_sample" else self.run.tangents
        for number in range(1, (max(most, DRAWS) if space == "activity" else most) + 1):
            one = self.estimate("random", space, number).gradients
            squares.append(compare("", one, self.truth)["relative_error/"])
            total = {key: total[key] + value if total else value for key, value in one.items()}
            if number <= most and number & (number - 1) == 0:
                mean = {key: value / number for key, value in total.items()}
                found |= compare(f"random/{space}/{number}", mean, self.truth)
        of_one = torch.tensor(squares).square().mean(0) if space == "activity" else self.in_closed_form(space)
        return found | {f"expected_error/random/{space}": of_one.sqrt().tolist()}

    def in_closed_form(self, space: str) -> Tensor:
        """Mean square of the relative error of a random guess in the weights, by block.

        Of a gaussian guess v in d dimensions `E‖<T, v> v - T‖²` is `(d + 1) ‖T‖²`: the estimate is unbiased, and
        `E <T, v>² ‖v‖²` is `(d + 2) ‖T‖²`. Every coefficient has a guess of its own, so that their errors add.
        """
        squares = self.estimate("global", space, normalise=False).coefficients  # <T, T>
        relative = []
        for block, shapes in enumerate(map(dict, (b.named_parameters() for b in self.net.blocks[:-1]))):
            error = sum(((p.numel() + 1) * squares[f"blocks.{block}.{name}"]).sum() for name, p in shapes.items())
            relative.append(error / sum(self.truth[f"blocks.{block}.{name}"].square().sum() for name in shapes))
        return torch.stack(relative)


def aligned(case: str, found: Estimate) -> Metrics:
    """Cosine of target and guess by block."""
    return {f"alignment/{case}": [found.measures["cosine", block] for block in range(len(found.losses) - 1)]}


def compare(case: str, found: dict[str, Tensor], truth: dict[str, Tensor]) -> Metrics:
    """Cosine and relative error of the gradients of all blocks but the last, all tensors of a block joined."""
    cosine, error = [], []
    for block in range(len({name.split(".")[1] for name in truth if name.startswith("blocks.")}) - 1):
        names = [name for name in truth if name.startswith(f"blocks.{block}.")]
        estimated, true = (torch.cat([side[name].flatten() for name in names]) for side in (found, truth))
        cosine.append(float(torch.cosine_similarity(estimated, true, dim=0)))
        error.append(float((estimated - true).norm() / true.norm()))
    return {f"error_cosine/{case}": cosine, f"relative_error/{case}": error}
