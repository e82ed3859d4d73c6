"""What can be run for forward gradients: a training for every cell of target, guess and space, and four studies.

Classes are built up by what a run has: backpropagation has no space, local learning nothing to project, a study on a
fresh net no budget.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from unlocked.errors import SettingError
from unlocked.forward_gradient import guesses, targets
from unlocked.forward_gradient.guesses import DISTRIBUTIONS
from unlocked.forward_gradient.method import MODES, PRECISIONS, SPACES, Method
from unlocked.papers.base import total_gradients
from unlocked.papers.run import (
    MOST,
    PROCESS_MB,
    THROUGHPUT,
    Batch,
    Budget,
    Data,
    Estimate,
    Model,
    NetworkEvaluation,
    Run,
    Runtime,
    number,
)  # fmt: skip
from unlocked.settings import Settings, inside, setting
from unlocked.vision import networks

# An estimate's time by (space, source of the guess), backpropagation's being 1, without auxiliary nets; measured on one
# core with the 8-block net at width 1/2. A global target costs a way back.
FACTORS = {
    ("activity", "noise"): 1.0,
    ("activity", "head"): 1.05,
    ("weight", "noise"): 0.9,
    ("weight", "head"): 1.4,
    ("weight_per_sample", "noise"): 2.8,
    ("weight_per_sample", "head"): 3.8,
}
LOCAL_TARGET = 0.75  # of the time with a global target
FROZEN = 0.4
FORWARD_MODE = 1.0  # of the time by projection, per Jacobian-vector product that goes through the whole net
TENSORS = 8  # parameters of a block, roughly
PER_BLOCK = {"cpu": 2.5e-3, "cuda": 1.5e-3}  # seconds per step and block that do not depend on the width
COMPARISON = 2.0  # the time of a batch that is measured, a gradient's being 1


@dataclass(frozen=True)
class BlockNet(Model):
    """A net in blocks."""

    name: str = setting("resnet18_8", "the network; the number is that of its blocks", names=networks.IN_BLOCKS)
    init: str = setting(
        "default",
        "of all layers: torch's own, or as_released, √6 times larger, with biases .01",
        names=networks.VARIANTS,
        later=True,
    )
    auxiliaries: str = setting(
        "default",
        "auxiliary nets: mlp without normalisation, copy with weights of its own; as_released: mlp with BatchNorm and "
        "without biases, copy with the weights of the blocks that it copies",
        names=networks.VARIANTS,
        later=True,
    )


@dataclass(frozen=True)
class StepSgd(Budget):
    """Plain SGD with steps of the learning rate; weight decay of all parameters that are stepped."""

    schedule: str = setting(
        "step",
        "of the learning rate; proportional: step_every hundredths of the run between two reductions, as of 100 epochs",
        names=("step", "proportional", "constant"),
    )
    step_every: int = setting(30, "epochs between two reductions", least=1, most=1_000_000)
    step_gamma: float = setting(0.2, "factor of each reduction", above=0, most=1)


@dataclass(frozen=True)
class Measure(Settings):
    """What is measured of the estimates at every evaluation, besides accuracy and loss."""

    batches: int = setting(
        2, "fixed batches on which target, guess and true gradient are compared", least=0, most=10_000
    )
    batch_size: int = setting(128, "samples in each of them", least=1, most=MOST)
    tensors: bool = setting(False, "cosine, norm ratio and coefficient also of every single parameter tensor")


@dataclass(frozen=True)
class BlockRuntime(Runtime):
    """How the blocks are executed."""

    precision: str = setting("float32", "of the blocks' layers; bfloat16: autocast", names=PRECISIONS)
    channels_last: bool = setting(True, "memory layout of nets and images; faster on CPUs and GPUs")
    compile: bool = setting(False, "torch.compile of the blocks; needs a C++ compiler")


@dataclass(frozen=True)
class ForwardRun(Run):
    """What all runs of this paper have."""

    paper: ClassVar[str] = "forward_gradient"
    data: Data = setting(Data(), "what is learned")
    model: BlockNet = setting(BlockNet(), "the net")
    optim: Batch = setting(Batch(), "the batch")

    def check(self) -> None:
        self.optim.refuse_small_data(self.data)

    @property
    def heads(self) -> str:
        """The kind of auxiliary nets; the cheapest where nothing but their accuracy comes from them."""
        return getattr(self, "auxiliary", "linear")

    def what(self) -> list[str]:
        """What it is, in a name."""
        return [self.study]

    def slug(self) -> str:
        width = [f"w{number(self.model.width)}"] * (self.model.width != 1)
        return "-".join([*self.what(), f"b{networks.NETWORKS[self.model.name].blocks}", *width])

    def costs(self, steps: int, factor: float, measured: float = 0, tested: int = 0) -> Estimate:
        """The blocks' passes by a factor, and three forward passes of every auxiliary net; as much for every batch that
        is `measured`, and one forward pass of all for every image that is `tested`."""
        shape = self.data.shape
        net = networks.cost(self.model.name, None, **shape, width=self.model.width)
        heads = networks.cost(self.model.name, self.heads, **shape, width=self.model.width)
        kind = self.runtime.kind
        macs = 3 * net.forward_macs * factor + 3 * heads.forward_macs
        each = (
            PER_BLOCK[kind] * networks.NETWORKS[self.model.name].blocks
            + macs * self.optim.batch_size / THROUGHPUT[kind]
        )
        numbers = 4 * (net.parameters + heads.parameters)  # weights, gradients, guess and SGD buffer
        numbers += (net.activations + heads.activations) * self.optim.batch_size + self.extra_numbers()
        memory = PROCESS_MB + round((4 * numbers + self.data.bytes) / 2**20)
        seconds = (steps + measured) * each + tested * (net.forward_macs + heads.forward_macs) / THROUGHPUT[kind]
        return Estimate(steps, round(seconds, 1), memory)

    def extra_numbers(self) -> float:
        """Numbers in memory beyond weights, gradients, guess, SGD buffer and activations."""
        return 0


@dataclass(frozen=True)
class Trained(ForwardRun):
    """A training, whatever its gradients are."""

    trainer: ClassVar[str] = "unlocked.papers.forward_gradient.training.ForwardTraining"
    target: str = setting("global", "gradient to follow: of the net's loss, or of the block's own", names=targets.names)
    guess: str = setting("global", "direction on which the target is projected", names=guesses.names)
    optim: StepSgd = setting(StepSgd(), "the optimiser")
    evaluation: NetworkEvaluation = setting(NetworkEvaluation(), "what is measured")
    measure: Measure = setting(Measure(), "what is measured of the estimates")
    test_statistics: str = setting(
        "running",
        "BatchNorm at test time: averages kept in training, or (short runs) averages at the weights that are tested",
        names=("running", "recalibrate"),
    )
    runtime: BlockRuntime = setting(BlockRuntime(), "where and how it is executed")

    def check(self) -> None:
        super().check()
        wanted = self.measure.batches * self.measure.batch_size
        if wanted > self.data.images:
            right = f"needs {wanted} images of {self.data.images}"
            raise SettingError("measure.batches", self.measure.batches, right)
        with inside("runtime"):
            self.method.check_precision(self.runtime.precision)
        per_sample = self.method.space == "weight" and not self.method.is_averaged
        if self.runtime.compile and (self.method.mode == "forward_mode" or per_sample):
            right = "needs mode = projection, and no coefficients per sample in the weights"
            raise SettingError("runtime.compile", True, right)

    @property
    def method(self) -> Method:
        """The cell of the table."""
        return Method(self.target, self.guess)

    @property
    def total_gradients(self) -> int:
        return total_gradients(self.optim.epochs, self.data.images, self.optim.batch_size)

    def factor(self) -> float:
        """Time of an estimate's passes through the blocks, backpropagation's being 1."""
        return 1.0 if self.target == "global" else LOCAL_TARGET

    @property
    def evaluations(self) -> int:
        """How often it is measured."""
        return min(self.evaluation.points, self.total_gradients)

    @property
    def measured_batches(self) -> float:
        """Batches on which estimates are compared with the gradient, over the whole run."""
        return COMPARISON * self.evaluations * self.measure.batches * self.measure.batch_size / self.optim.batch_size

    def estimate(self) -> Estimate:
        images = self.data.test_images
        if self.test_statistics == "recalibrate":
            images += self.evaluation.recalibration_batches * self.optim.batch_size
        return self.costs(self.total_gradients, self.factor(), self.measured_batches, self.evaluations * images)


@dataclass(frozen=True)
class Backpropagation(Trained):
    """The true gradient of the whole net."""

    target: str = setting("global", "the net's loss", names=("global",))
    guess: str = setting("global", "the target itself", names=("global",))

    def what(self) -> list[str]:
        return ["backpropagation"]


@dataclass(frozen=True)
class FrozenBlocks(Trained):
    """The control: blocks stay as they were drawn, but for the last, which is trained with the classifier."""

    target: str = setting("global", "of the last block", names=("global",))
    guess: str = setting("frozen", "none", names=("frozen",))

    def what(self) -> list[str]:
        return ["frozen-blocks"]

    def factor(self) -> float:
        return FROZEN


@dataclass(frozen=True)
class LocalLearning(Trained):
    """Every block follows its own loss."""

    target: str = setting("local", "the block's own loss", names=("local",))
    guess: str = setting("local", "the target itself", names=("local",))
    auxiliary: str = setting("cnn", "nets that give blocks a loss", names=networks.AUXILIARIES)

    def what(self) -> list[str]:
        return [self.target, self.guess, self.auxiliary]


@dataclass(frozen=True)
class Projected(Trained):
    """A guess that is not the target."""

    space: str = setting("activity", "where target and guess live: a block's output, or its weights", names=SPACES)
    averaged: bool | None = setting(None, "one coefficient per tensor, not per sample; null: in the space weight")
    per_block: bool = setting(False, "one coefficient for all tensors of a block, in the weights, averaged", later=True)
    mode: str = setting(
        "projection", "how <T, G> is found: backpropagating the target, or Jacobian-vector products", names=MODES
    )

    def check(self) -> None:
        if self.averaged is None:
            object.__setattr__(self, "averaged", self.space == "weight")
        super().check()

    @property
    def method(self) -> Method:
        return Method(
            self.target, self.guess, self.space, averaged=self.averaged, per_block=self.per_block, mode=self.mode
        )

    @property
    def place(self) -> str:
        """Space and kind of coefficient, e.g. `weight_per_sample`."""
        usual = self.averaged == (self.space == "weight")
        kind = "" if usual else "_averaged" if self.averaged else "_per_sample"
        return self.space + kind + "_per_block" * self.per_block

    def what(self) -> list[str]:
        tangents = [f"{self.method.tangents}tangents"] * (self.method.tangents > 1)
        special = [value for value in (self.method.distribution, self.mode) if value not in ("gaussian", "projection")]
        heads = [self.heads] * hasattr(self, "auxiliary")
        return [self.target, self.guess, self.place, *tangents, *special, *heads]

    def factor(self) -> float:
        space = "activity" if self.space == "activity" else self.place
        factor = FACTORS[space.removesuffix("_per_block"), guesses.get(self.guess).source] * self.method.tangents
        factor *= LOCAL_TARGET if self.target == "local" else 1.0
        if self.mode == "forward_mode":
            samples = 1 if self.averaged else self.optim.batch_size
            tensors = TENSORS if self.space == "weight" and not self.per_block else 1
            factor += FORWARD_MODE * networks.NETWORKS[self.model.name].blocks / 2 * samples * tensors
        return factor

    def extra_numbers(self) -> float:
        if self.place != "weight_per_sample":
            return 0
        net = networks.cost(self.model.name, None, **self.data.shape, width=self.model.width)
        return 3 * networks.NETWORKS[self.model.name].largest_block * net.parameters * self.optim.batch_size


@dataclass(frozen=True)
class GlobalNoise(Projected):
    """The global target on fresh noise; no auxiliary net has a part in it."""

    guess: str = setting("random", "fresh noise in every step", names=lambda: guesses_from("noise"))
    distribution: str = setting("gaussian", "of the noise", names=DISTRIBUTIONS)
    tangents: int = setting(1, "random guesses per step, averaged", least=1, most=100_000)

    @property
    def method(self) -> Method:
        return replace(super().method, tangents=self.tangents, distribution=self.distribution)


@dataclass(frozen=True)
class LocalNoise(GlobalNoise):
    """A target that comes from auxiliary nets on fresh noise."""

    target: str = setting("local", "the block's own loss", names=targets.names)
    auxiliary: str = setting("cnn", "nets that give blocks a loss", names=networks.AUXILIARIES)


@dataclass(frozen=True)
class HeadGuess(Projected):
    """A target on a guess that comes from auxiliary nets: local, NTK, fixed NTK."""

    guess: str = setting("local", "from which auxiliary nets", names=lambda: guesses_from("head"))
    auxiliary: str = setting("cnn", "nets that give blocks a loss", names=networks.AUXILIARIES)


def guesses_from(source: str) -> list[str]:
    """The guesses that come from noise, from heads, or from the target."""
    return [name for name in guesses.names() if guesses.get(name).source == source]
