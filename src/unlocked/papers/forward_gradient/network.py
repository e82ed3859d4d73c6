"""The net of a run: its blocks, one auxiliary net per block, and the nets that a guess comes from."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked import seeding
from unlocked.forward_gradient import guesses
from unlocked.forward_gradient.estimator import Estimate, estimate
from unlocked.papers.forward_gradient.settings import ForwardRun, Trained
from unlocked.vision import auxiliary, blocks, evaluate
from unlocked.vision.data.splits import Dataset, Split, StreamedSplit

EVALUATION_BATCH = 500


class Net(nn.Module):
    """K blocks and K auxiliary nets, the last of which is the classifier.

    guess_auxiliaries: K nets of their own for a guess from untrained nets beside a target from trained ones; None where
    the guess comes from `auxiliaries` or from none.
    """

    def __init__(
        self, blocks: nn.ModuleList, auxiliaries: nn.ModuleList, guess_auxiliaries: nn.ModuleList | None = None
    ) -> None:
        super().__init__()
        self.blocks, self.auxiliaries, self.guess_auxiliaries = blocks, auxiliaries, guess_auxiliaries

    def forward(self, features: Tensor) -> Tensor:
        """All auxiliary nets' scores at once: images (N, C, H, W) to (K, N, classes)."""
        scores = []
        for block, head in zip(self.blocks, self.auxiliaries, strict=True):
            features = block(features)
            scores.append(head(features))
        return torch.stack(scores)


def build(run: ForwardRun, data: Dataset, norm: str = "batch") -> Net:
    """The net of `run` with the initialisation of its seed, on its device.

    Blocks, auxiliary nets and guess nets are drawn under names of their own, so methods with the same seed start from
    the same blocks.
    """
    own = None
    if isinstance(run, Trained) and run.method.has_guess_nets:
        own = auxiliaries(run, data, run.heads, seeding.integer(run.seed, "guess auxiliaries"), norm)
    body = _blocks(run, data, norm).modules.to(run.runtime.device)
    return Net(body, auxiliaries(run, data, run.heads, run.seed, norm), own)


def auxiliaries(run: ForwardRun, data: Dataset, name: str, seed: int, norm: str = "batch") -> nn.ModuleList:
    """Auxiliary nets of kind `name` for the run's blocks and the classifier, drawn from `seed`, on the run's device."""
    released = run.model.auxiliaries == "as_released"
    drawn = auxiliary.build_all(name, _blocks(run, data, norm), classes=data.classes, seed=seed, released=released)
    return drawn.to(run.runtime.device)


def _blocks(run: ForwardRun, data: Dataset, norm: str) -> blocks.Blocks:
    model, seed = run.model, run.seed
    return blocks.build(model.name, channels=data.channels, width=model.width, norm=norm, init=model.init, seed=seed)


def execute_as_set_(net: Net, run: Trained) -> None:
    """Lay out and compile the net in place as the run's `runtime` says; its parameters keep names and values."""
    if run.runtime.channels_last:
        net.to(memory_format=torch.channels_last)
    if run.runtime.compile:
        # target and guess go back through one graph, so nothing in it may be given away on the first way
        torch._functorch.config.donated_buffer = False
        for block in net.blocks:
            block.compile()


def redraw_(net: Net, run: Trained, *names: str | int) -> None:
    """Draw the nets of a redrawn guess anew, in place, from the run's seed and `names`; other guesses keep theirs."""
    if run.method.of_guess.redrawn:
        nets = net.auxiliaries if net.guess_auxiliaries is None else net.guess_auxiliaries
        guesses.redraw_(nets, run.seed, *names, init=run.model.init)


def noise(run: ForwardRun, *names: str | int) -> torch.Generator:
    """The generator of a random guess, on the run's device, from the run's seed and `names`."""
    generator = torch.Generator(run.runtime.device)
    return generator.manual_seed(seeding.integer(run.seed, "noise", *names))


def estimated(
    net: Net, run: Trained, images: Tensor, labels: Tensor, *names: str | int, measure: bool = False, **options: Any
) -> Estimate:
    """The estimate by the run's method, with the noise of `names`; measured, it is by projection."""
    method = replace(run.method, mode="projection") if measure else run.method
    return estimate(
        net.blocks, net.auxiliaries, images, labels, method, generator=noise(run, *names),
        guess_auxiliaries=net.guess_auxiliaries, measure=measure, **options,
    )  # fmt: skip


def tested(net: Net, run: Trained, data: Dataset) -> Net:
    """What is evaluated, in evaluation mode: a copy of the net, its BatchNorm statistics as `test_statistics` says."""
    net = copy.deepcopy(net)
    if run.test_statistics == "recalibrate":
        batches, size = run.evaluation.recalibration_batches, run.optim.batch_size
        evaluate.recalibrate_(net, data.train, batches=batches, batch_size=size, seed=run.seed)
    return net.eval()


def accuracy_and_loss(net: Net, split: Split | StreamedSplit) -> tuple[Tensor, Tensor]:
    """Share classified right and mean cross-entropy (nats) of every block's auxiliary net over a split: (K,) each.

    Every sample weighs the same; images are not augmented. net: see `tested`.
    """
    right, loss = [], []
    with torch.no_grad():
        for part in torch.arange(len(split)).split(EVALUATION_BATCH):
            images, labels = split.batch(part)
            scores = net(images).float()
            each = cross_entropy(scores.flatten(0, 1), labels.repeat(len(scores)), reduction="none")
            right.append((scores.argmax(2) == labels).sum(1))
            loss.append(each.view(len(scores), -1).sum(1, dtype=torch.float64))
    return sum(right).double() / len(split), sum(loss) / len(split)
