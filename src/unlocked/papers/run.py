"""The settings that every run has, and what the artifact asks of a paper.

A kind of run is a subclass of `Run`: it has the settings that matter for it and no others, names its trainer, makes its
readable name, and estimates its cost. What it is follows from its type, so nothing has to be ignored or erased.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unlocked import fingerprint
from unlocked.errors import SettingError
from unlocked.papers.base import total_gradients
from unlocked.settings import Settings, plain, setting
from unlocked.vision.data import AUGMENTATIONS, DATASETS, Description
from unlocked.vision.networks import check_width

# Sustained training throughput in multiply-accumulates per second and fixed cost per gradient in seconds, for one CPU
# core (measured with the small nets here and ResNet-18 at width 1) and for one data-centre GPU (float32 with TF32,
# assumed; not measured).
THROUGHPUT = {"cpu": 2.0e10, "cuda": 1.5e13}
MOST = 1_000_000_000  # of anything that is counted and has no narrower range
OVERHEAD = {"cpu": 4.0e-4, "cuda": 4.0e-3}
PROCESS_MB = 600  # of a process that has imported torch


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to cost. A guide for schedulers and readers, good to a factor of about two."""

    gradients: int
    seconds: float
    memory_mb: int


@dataclass(frozen=True)
class Runtime(Settings):
    """Where and how a run is executed. Not part of its identity: the same run on another device has its id."""

    device: str = setting("cpu", "cpu, cuda, cuda:1, ...", pattern=r"cpu|cuda(:\d+)?")
    threads: int = setting(1, "CPU threads of torch", least=1, most=4096)
    data_root: str = setting("data", "folder of the data sets")
    checkpoint_minutes: float = setting(5.0, "time between checkpoints", least=0, most=1e6)
    wandb: str = setting("offline", "Weights & Biases", names=("offline", "online", "disabled"))
    wandb_project: str = setting("unlocked", "its project")
    wandb_entity: str | None = setting(None, "its entity; null: the key's own")
    wandb_system: bool = setting(False, "Weights & Biases also gets the machine's load: CPU, memory, GPU")
    reuse: str = setting(
        "same_code",
        "when a complete record is kept: same_code, if settings and code agree; same_config, if settings do",
        names=("same_code", "same_config"),
    )
    verify_data: bool = setting(True, "check the published checksums of downloaded data sets")
    force: bool = setting(False, "train what is expected to take more time or memory than there is")

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.device.partition(":")[0]


@dataclass(frozen=True)
class Data(Settings):
    """What is learned."""

    name: str = setting("cifar10", "the data set", names=DATASETS)
    size: int | None = setting(None, "pixels to which images are resized once, when loaded", least=1, most=4096)
    train_limit: int | None = setting(None, "a fixed random subset of this many training images", least=1, most=MOST)
    test_limit: int | None = setting(None, "the same for test images", least=1, most=MOST)
    augmentation: str | None = setting(None, "of training batches; null: the data set's own", names=AUGMENTATIONS)

    @property
    def description(self) -> Description:
        """What is known of the data set without reading it."""
        return DATASETS[self.name]

    @property
    def images(self) -> int:
        """Training images."""
        return min(self.description.train, self.train_limit or self.description.train)

    @property
    def test_images(self) -> int:
        """Test images."""
        return min(self.description.test, self.test_limit or self.description.test)

    @property
    def shape(self) -> dict[str, int]:
        """Classes, channels and pixels, as networks are built for."""
        known = self.description
        return {"classes": known.classes, "channels": known.channels, "size": self.size or known.size}

    @property
    def bytes(self) -> int:
        """Main memory of the images, 0 where they are read from disk batch by batch."""
        shape = self.shape
        total = self.images + self.test_images
        return total * shape["channels"] * shape["size"] ** 2 if self.description.in_memory else 0


@dataclass(frozen=True)
class Model(Settings):
    """The network; a paper's own class says which."""

    name: str = setting("", "the network")
    width: float = setting(1.0, "factor on the number of channels", above=0, most=64)

    def check(self) -> None:
        check_width(self.name, self.width)


@dataclass(frozen=True)
class Batch(Settings):
    """What is taken of the data at once."""

    batch_size: int = setting(128, "samples per gradient", least=1, most=MOST)

    def refuse_small_data(self, data: Data) -> None:
        """A batch must fit into the data."""
        if self.batch_size > data.images:
            raise SettingError("optim.batch_size", self.batch_size, f"{data.name} has {data.images} images to train")


@dataclass(frozen=True)
class Budget(Batch):
    """Stochastic gradient descent: what both papers share. A paper's own class adds the schedule."""

    lr: float = setting(0.1, "base learning rate, before the schedule's factor", above=0, most=1e6)
    momentum: float = setting(0.9, "of the SGD buffer (not the gossip momentum)", least=0, most=1)
    weight_decay: float = setting(5e-4, "weight decay", least=0, most=1e6)
    epochs: float = setting(
        300.0, "passes over the data: epochs * floor(N / batch) gradients in all", above=0, most=1e6
    )

    def refuse_small_data(self, data: Data, workers: int = 1) -> None:
        """A batch must fit into the data, and the budget must hold a gradient for every worker."""
        super().refuse_small_data(data)
        if total_gradients(self.epochs, data.images, self.batch_size, workers) < workers:
            count = int(self.epochs * (data.images // self.batch_size))
            raise SettingError("optim.epochs", self.epochs, f"gives {count} gradients, fewer than {workers} workers")


@dataclass(frozen=True)
class Points(Settings):
    """How often something is measured."""

    points: int = setting(20, "evaluations, evenly spaced, besides the start", least=1, most=100_000)


@dataclass(frozen=True)
class NetworkEvaluation(Points):
    """What is measured of a network in training, and how often."""

    recalibration_batches: int = setting(
        50, "training batches from which BatchNorm statistics are taken", least=1, most=100_000
    )


@dataclass(frozen=True)
class Run(Settings):
    """One training with one seed, or one study."""

    paper: ClassVar[str]
    trainer: ClassVar[str]  # dotted path of the class that trains it; checked when the class is made
    launcher: ClassVar[str | None] = None  # module that lets it run among processes that torchrun or srun started

    scale: str = setting(
        "quick", "the scale that it belongs to, and the folder of its record", pattern=r"[a-z0-9_]{1,60}"
    )
    seed: int = setting(0, "of every random generator", least=0, most=2**63 - 1)
    study: str = setting("training", "training, or what is studied without one", names=("training",))
    runtime: Runtime = setting(Runtime(), "where and how it is executed")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if (trainer := cls.__dict__.get("trainer")) is not None and not fingerprint.exists(trainer):
            raise SettingError(f"{cls.__name__}.trainer", trainer, "must be the dotted path of a class")

    def slug(self) -> str:
        """What a person reads in its name, e.g. `acid-ring-n64-r1`; without the seed."""
        raise NotImplementedError

    def estimate(self) -> Estimate:
        """What it is expected to cost."""
        raise NotImplementedError

    @property
    def data_set(self) -> Data | None:
        """The data that it reads, None for a study without."""
        return getattr(self, "data", None)

    @property
    def processes(self) -> int:
        """Processes that it computes in."""
        return 1

    def settings(self) -> dict[str, Any]:
        """All settings as plain values, as its file holds them."""
        return {"paper": self.paper, **plain(self)}

    def identity(self) -> dict[str, Any]:
        """The settings that make it what it is: all but how it is executed."""
        return {key: value for key, value in self.settings().items() if key != "runtime"}

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the identity, in hex; settings that were added later count where they differ from their default,
        so that runs keep their ids."""
        identity = {key: value for key, value in plain(self, later=False).items() if key != "runtime"}
        return hashlib.sha256(json.dumps({"paper": self.paper, **identity}, sort_keys=True).encode()).hexdigest()

    @functools.cached_property
    def id(self) -> str:
        """What a person can read, and 8 hex digits of the hash."""
        return f"{self.slug()}-s{self.seed}-{self.hash[:8]}"


@dataclass(frozen=True)
class PilotRegime(Settings):
    """What of the pilot is run in one regime."""

    seeds: int = setting(1, "how many of the pilot's", least=1)
    methods: tuple[str, ...] = setting((), "those that get a rate of their own in it; none: all")
    rates: tuple[float, ...] = setting(
        (), "the grid that every method starts with; none: the pilot's", above=0, most=1e6
    )


@dataclass(frozen=True)
class PilotSettings(Settings):
    """Which methods get a learning rate of their own, in which regimes, and from which grid."""

    regimes: dict[str, Any] = setting(None, "seeds and methods by regime; the first that fits a run counts", empty=dict)
    by: tuple[str, ...] = setting((), "settings of a regime that a run must share to belong to it")
    methods: dict[str, Any] = setting(
        None,
        "settings by method, the first that fits a run counts; of several values the pilot runs the first",
        empty=dict,
    )
    rates: tuple[float, ...] = setting((), "the grid that every method starts with", above=0, most=1e6)


@dataclass(frozen=True)
class PaperScale(Settings):
    """A scale's values for one paper; its own class adds more. Items refer to them as `${scale.<paper>.<key>}`."""

    about: str = setting("", "in place of the scale's own, in captions")
    training: dict[str, Any] = setting(None, "settings of runs that differ from the paper's", empty=dict)
    items: dict[str, Any] = setting(None, "changes to single items at this scale", empty=dict)
    regimes: dict[str, Any] = setting(
        None, "settings by name, which `regimes` of items and claims refer to", empty=dict
    )
    pilot: PilotSettings = setting(PilotSettings(), "how learning rates are chosen")


@dataclass(frozen=True)
class Paper:
    """A paper: how it is called, which kinds of run it has, and what a scale may say about it."""

    key: str
    short: str
    title: str
    venue: str
    scale: type[PaperScale]
    kinds: tuple[type[Run], ...]
    kind_of: Callable[[Mapping[str, Any]], type[Run]]  # from settings with dotted names


def number(value: float) -> str:
    """`1.0` as `1`, `0.5` as `0.5`: numbers in ids and labels."""
    return f"{value:g}"
