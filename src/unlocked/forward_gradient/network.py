"""The net of a run of paper B: its blocks, one auxiliary net per block, and the nets that a guess comes from.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `trainer` and `studies`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked import seeding
from unlocked.forward_gradient import guesses
from unlocked.vision import auxiliary, blocks, evaluate
from unlocked.vision.data import Dataset, Split, StreamedSplit

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Net:
    """K blocks and K auxiliary nets, the last of which is the classifier.

    guess_auxiliaries: K nets of their own for the guess `ntk` or `fixed_ntk` of a local target, whose auxiliary nets
    are trained; None where the guess comes from `auxiliaries` or from none.
    """

    blocks: nn.ModuleList
    auxiliaries: nn.ModuleList
    guess_auxiliaries: nn.ModuleList | None

    @property
    def parts(self) -> nn.ModuleDict:
        """Everything under its name in a checkpoint; blocks and auxiliary nets as in `Estimate.gradients`."""
        named = {"blocks": self.blocks, "auxiliaries": self.auxiliaries}
        if self.guess_auxiliaries is not None:
            named["guess_auxiliaries"] = self.guess_auxiliaries
        return nn.ModuleDict(named)

    @property
    def guessing(self) -> nn.ModuleList:
        """The nets that an `ntk` guess comes from."""
        return self.auxiliaries if self.guess_auxiliaries is None else self.guess_auxiliaries

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names, as in `Estimate.gradients`, and parameters of blocks and auxiliary nets."""
        for name, part in (("blocks", self.blocks), ("auxiliaries", self.auxiliaries)):
            yield from part.named_parameters(prefix=name)


def build(run: DictConfig, data: Dataset, norm: str | None = None) -> Net:
    """The net of `run` with the initialisation of its seed, on its device.

    Blocks, auxiliary nets and guess nets are drawn under names of their own, so methods with the same seed start from
    the same blocks. norm: in place of the run's.
    """
    own = None
    if run.target == "local" and run.guess in ("ntk", "fixed_ntk"):
        own = auxiliaries(run, data, run.auxiliary, seeding.integer(run.seed, "guess auxiliaries"), norm)
    return Net(
        _blocks(run, data, norm).modules.to(run.runtime.device),
        auxiliaries(run, data, run.auxiliary, run.seed, norm),
        own,
    )


def auxiliaries(run: DictConfig, data: Dataset, name: str, seed: int, norm: str | None = None) -> nn.ModuleList:
    """Auxiliary nets of kind `name` for the run's blocks and the classifier, drawn from `seed`, on the run's device."""
    drawn = auxiliary.build_all(name, _blocks(run, data, norm), classes=data.classes, seed=seed)
    return drawn.to(run.runtime.device)


def _blocks(run: DictConfig, data: Dataset, norm: str | None) -> blocks.Blocks:
    return blocks.build(
        run.model.name, channels=data.channels, size=data.size, width=run.model.width, norm=norm or run.norm,
        seed=run.seed,
    )  # fmt: skip


def execute_as_set_(net: Net, run: DictConfig) -> None:
    """Lay out and compile the net in place as the run's `runtime` says; its parameters keep names and values."""
    if run.runtime.channels_last:
        net.parts.to(memory_format=torch.channels_last)
    if run.runtime.compile:
        # target and guess go back through one graph, so nothing in it may be given away on the first way
        torch._functorch.config.donated_buffer = False
        for block in net.blocks:
            block.compile()


def redraw_(net: Net, run: DictConfig, *names: str | int) -> None:
    """Draw the nets of an `ntk` guess anew, in place, from the run's seed and `names`; other guesses keep theirs."""
    if run.guess == "ntk":
        guesses.redraw_(net.guessing, run.seed, *names)


def tangents(run: DictConfig) -> int:
    """Random guesses per step; `estimator_error` trains with a local guess, and its setting is for what it measures."""
    return run.tangents if run.guess == "random" else 1


def noise(run: DictConfig, *names: str | int) -> torch.Generator:
    """The generator of a random guess, on the run's device, from the run's seed and `names`."""
    generator = torch.Generator(run.runtime.device)
    return generator.manual_seed(seeding.integer(run.seed, "noise", *names))


class Scores(nn.Module):
    """All auxiliary nets' scores at once: images (N, C, H, W) to (K, N, classes)."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.blocks, self.auxiliaries = net.blocks, net.auxiliaries

    def forward(self, features: Tensor) -> Tensor:
        scores = []
        for block, head in zip(self.blocks, self.auxiliaries, strict=True):
            features = block(features)
            scores.append(head(features))
        return torch.stack(scores)


def tested(net: Net, run: DictConfig, data: Dataset) -> nn.Module:
    """What is evaluated, in evaluation mode: a copy of the net, its BatchNorm statistics as `test_statistics` says."""
    scores = copy.deepcopy(Scores(net))
    if run.test_statistics == "recalibrate":
        evaluate.recalibrate_(
            scores, data.train, batches=run.evaluation.recalibration_batches, batch_size=run.optim.batch_size,
            seed=run.seed,
        )  # fmt: skip
    return scores.eval()


def accuracy_and_loss(scores: nn.Module, split: Split | StreamedSplit) -> tuple[Tensor, Tensor]:
    """Share classified right and mean cross-entropy (nats) of every block's auxiliary net over a split: (K,) each.

    Every sample weighs the same; images are not augmented. scores: see `tested`.
    """
    right, loss = 0, 0.0
    with torch.no_grad():
        for part in torch.arange(len(split)).split(EVALUATION_BATCH):
            images, labels = split.batch(part)
            found = scores(images).float()
            right += (found.argmax(2) == labels).sum(1)
            each = cross_entropy(found.flatten(0, 1), labels.repeat(len(found)), reduction="none")
            loss += each.view(len(found), -1).sum(1, dtype=torch.float64)
    return right.double() / len(split), loss / len(split)
