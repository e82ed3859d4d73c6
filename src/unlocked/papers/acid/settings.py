"""What can be run for A²CiD²: trainings in virtual time and by real processes, and two studies without a network.

Classes are built up by what a run has: all-reduce has no graph, the baseline no dynamics, a study no data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from unlocked.gossip import topology
from unlocked.gossip.clock import Clock, Slowdown
from unlocked.gossip.momentum import DYNAMICS
from unlocked.gossip.schedule import PAIRINGS
from unlocked.papers.base import total_gradients
from unlocked.papers.run import (
    MOST,
    OVERHEAD,
    PROCESS_MB,
    THROUGHPUT,
    Budget,
    Data,
    Estimate,
    Model,
    NetworkEvaluation,
    Run,
    Runtime,
    number,
)  # fmt: skip
from unlocked.settings import Settings, flatten, inside, plain, setting
from unlocked.vision import networks
from unlocked.vision.partition import PARTITIONS

METHODS = ("acid", "baseline", "allreduce")
USUAL = {  # settings that a name shows where they are something else
    "dynamics": "exact",
    "data.partition": "iid",
    "batch_norm": "recalibrate",
    "init": "common",
    "pairing": "poisson",
    "clock.law": "exponential",
    "schedule_count": "own",
    "strength": 1.0,
    "optim.clip": None,
}
EVENT_SECONDS, EVENT_BYTES = 8e-6, 200  # to draw and sort an event; the same for an edge of a graph
EIGEN_SECONDS = 1e-9  # times the number of workers cubed
WORKER_SECONDS, WORKER_BYTES = 2e-4, 20_000  # of generators
AVERAGED_NUMBER = 2e-9  # seconds per parameter and averaging
MEASURES_OF_DISAGREEMENT = 6  # passes over the images
MARKS = {"strength": "c", "optim.clip": "clip"}  # before a number in a name


@dataclass(frozen=True)
class PartitionedData(Data):
    """What is learned, and which worker sees what."""

    partition: str = setting(
        "iid", "of the images over the workers; iid: all draw from the whole set", names=PARTITIONS
    )
    concentration: float = setting(0.3, "of the Dirichlet partition: smaller is more heterogeneous", above=0, most=1e6)

    def check(self) -> None:
        self.refuse_idle("concentration", self.partition == "dirichlet", "partition = dirichlet")


@dataclass(frozen=True)
class Network(Model):
    """The network that every worker has a copy of."""

    name: str = setting("resnet18", "the network", names=networks.WHOLE)


@dataclass(frozen=True)
class LargeBatch(Budget):
    """SGD with linear scaling and warm-up (Goyal et al. 2017). No decay of parameters with one dimension."""

    schedule: str = setting("large_batch", "of the learning rate", names=("large_batch", "constant"))
    warmup_epochs: float = setting(5.0, "linear warm-up to batch * workers / 256", least=0, most=1e6)
    milestones: tuple[float, ...] = setting((0.5, 0.75), "times 0.1 at these fractions of the run", above=0, below=1)
    clip: float | None = setting(
        None, "largest norm of a gradient; longer ones are scaled down to it", above=0, most=1e6, later=True
    )

    def check(self) -> None:
        ordered = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        self.refuse_unless(ordered, "milestones", "must grow")


@dataclass(frozen=True)
class Evaluation(NetworkEvaluation):
    """What is measured of the average of all workers, and how often."""

    workers: str = setting("final", "when every worker is tested, too", names=("final", "always", "never"))
    worker_images: int | None = setting(
        None,
        "test images on which a single worker is tested, another draw for each; null: all",
        least=1,
        most=MOST,
        later=True,
    )
    train_limit: int = setting(10_000, "training images on which the average's loss is measured", least=1, most=MOST)
    disagreement: int = setting(
        0,
        "training images on which the cost of the workers' differences under gossip is measured; 0: not at all",
        least=0,
        most=MOST,
        later=True,
    )


@dataclass(frozen=True)
class SimulatorRuntime(Runtime):
    """How the simulator executes events."""

    execution: str = setting(
        "auto",
        "of a level of events: one worker after the other (loop) or all at once (batched)",
        names=("auto", "loop", "batched"),
    )


@dataclass(frozen=True)
class ProcessRuntime(Runtime):
    """How real processes find and hear each other."""

    timeout: float = setting(60.0, "seconds without a word after which a worker is given up", above=0, most=1e6)
    interface: str = setting("lo", "network interface on which workers talk; lo: this machine alone")
    backend: str = setting(
        "gloo", "how all-reduce travels; nccl: every worker has a GPU of its own", names=("gloo", "nccl")
    )

    def check(self) -> None:
        self.refuse_unless(self.backend != "nccl" or self.kind == "cuda", "backend", "needs device = cuda")


def mark(key: str, value: Any) -> str:
    """An unusual value in a run's name: `released`, `c0.25`."""
    return MARKS[key] + number(value) if key in MARKS else value


@dataclass(frozen=True)
class Gossip(Settings):
    """What gossip has: a graph and a rate."""

    graph: str = setting("ring", "the communication graph", names=topology.GRAPHS)
    rate: float = setting(1.0, "communications per worker and gradient", above=0, most=1e6)


@dataclass(frozen=True)
class AcidRun(Run):
    """What all runs of this paper have."""

    paper: ClassVar[str] = "acid"
    method: str = setting(
        "acid", "acid: gossip with momentum; baseline: without; allreduce: synchronous", names=METHODS
    )
    workers: int = setting(64, "number of workers", least=1, most=1_000_000)
    clock: Slowdown = setting(Slowdown(), "which workers are slow")

    def check(self) -> None:
        if isinstance(self, Gossip):
            topology.check(self.graph, self.workers)
        with inside("clock"):
            self.clock.check_workers(self.workers)

    @property
    def total_gradients(self) -> int:
        """Over all workers."""
        raise NotImplementedError

    @property
    def averagings(self) -> float:
        """Over all pairs; none where all workers average at once."""
        return getattr(self, "rate", 0.0) * self.total_gradients / 2

    def slug(self) -> str:
        own = flatten(plain(self))
        kind = [own[key] for key in ("study", "engine") if own.get(key, "virtual") not in ("training", "virtual")]
        graph = [own["graph"]] if "graph" in own else []
        rate = [f"r{number(own['rate'])}"] if "rate" in own else []
        special = [mark(key, own[key]) for key, usual in USUAL.items() if own.get(key, usual) != usual]
        return "-".join([*kind, self.method, *graph, f"n{self.workers}", *rate, *special])


def bookkeeping(run: AcidRun, gradients: float) -> Estimate:
    """What the events of that many gradients and the graph's constants cost, whatever a gradient is."""
    workers, graph = run.workers, getattr(run, "graph", None)
    edges = workers**2 / 2 if graph == "complete" else workers * math.log2(workers + 1)
    events, edges = gradients + run.averagings, edges * (graph is not None)
    matrix = workers**2 * isinstance(run, Momentum)
    seconds = EVENT_SECONDS * (events + edges) + EIGEN_SECONDS * workers * matrix + WORKER_SECONDS * workers
    memory = EVENT_BYTES * (events + edges) + 32 * matrix + WORKER_BYTES * workers
    return Estimate(0, seconds, round(memory / 2**20))


@dataclass(frozen=True)
class NetworkRun(AcidRun):
    """A training of a network on data."""

    engine: str = setting("virtual", "virtual: all workers in one process, in virtual time", names=("virtual",))
    data: PartitionedData = setting(PartitionedData(), "what is learned")
    model: Network = setting(Network(), "the network")
    optim: LargeBatch = setting(LargeBatch(), "the optimiser")
    evaluation: Evaluation = setting(Evaluation(), "what is measured")
    batch_norm: str = setting(
        "recalibrate",
        "BatchNorm statistics of the average: from training batches, the workers' mean, or worker 0's (released code)",
        names=("recalibrate", "average", "worker0"),
    )

    def check(self) -> None:
        super().check()
        self.optim.refuse_small_data(self.data, self.workers)

    @property
    def total_gradients(self) -> int:
        return total_gradients(self.optim.epochs, self.data.images, self.optim.batch_size, self.workers)

    @property
    def evaluated_images(self) -> int:
        """Images that go through a network to be measured, over the whole run."""
        of, test = self.evaluation, self.data.test_images
        points = min(of.points, self.total_gradients)
        average = test + min(of.train_limit, self.data.images) + of.recalibration_batches * self.optim.batch_size
        average += MEASURES_OF_DISAGREEMENT * min(of.disagreement, self.data.images)
        return points * average + {"never": 0, "final": 1, "always": points}[of.workers] * self.workers * test

    def estimate(self) -> Estimate:
        net = networks.cost(self.model.name, None, **self.data.shape, width=self.model.width)
        kind, gradients, gossip = self.runtime.kind, self.total_gradients, bookkeeping(self, self.total_gradients)
        seconds = gradients * OVERHEAD[kind] + gossip.seconds + self.averagings * net.parameters * AVERAGED_NUMBER
        images = 3 * gradients * self.optim.batch_size + self.evaluated_images
        seconds += images * net.forward_macs / THROUGHPUT[kind]
        numbers = (3 * self.workers + 2) * net.parameters + net.activations * self.optim.batch_size
        memory = PROCESS_MB * self.processes + gossip.memory_mb + round((4 * numbers + self.data.bytes) / 2**20)
        return Estimate(gradients, round(seconds, 1), memory)


@dataclass(frozen=True)
class Momentum(Settings):
    """What A²CiD² adds to gossip."""

    method: str = setting("acid", "gossip with momentum", names=("acid",))
    dynamics: str = setting("exact", "exact: the paper's definition; released: the authors' code", names=DYNAMICS)
    strength: float = setting(
        1.0, "factor on chi1 in the constants; 1: the paper's, less: a weaker momentum", above=0, most=1e6, later=True
    )


@dataclass(frozen=True)
class AllReduce(NetworkRun):
    """AR-SGD in virtual time."""

    trainer: ClassVar[str] = "unlocked.papers.acid.synchronous.AllReduceTraining"
    method: str = setting("allreduce", "all workers average every gradient", names=("allreduce",))
    clock: Clock = setting(Clock(), "how long gradients and messages take")
    runtime: Runtime = setting(Runtime(), "where and how it is executed")


@dataclass(frozen=True)
class Baseline(Gossip, NetworkRun):
    """Asynchronous gossip in virtual time."""

    trainer: ClassVar[str] = "unlocked.papers.acid.training.GossipTraining"
    method: str = setting("baseline", "gossip without momentum", names=("baseline",))
    clock: Clock = setting(Clock(), "how long gradients and messages take")
    pairing: str = setting("poisson", "poisson: clocks on edges (theory); availability: who is free", names=PAIRINGS)
    gradient_read: str = setting(
        "event", "x that a gradient is taken at: event (theory), start (of its computation)", names=("event", "start")
    )
    init: str = setting(
        "common",
        "common: one draw for all workers; mean_of_independent: the mean of one draw each (released code)",
        names=("common", "mean_of_independent"),
    )
    schedule_count: str = setting(
        "own",
        "what the learning rate follows: a worker's own gradients times the workers (released code), or those of all",
        names=("own", "global"),
        later=True,
    )
    runtime: SimulatorRuntime = setting(SimulatorRuntime(), "where and how it is executed")

    def check(self) -> None:
        super().check()
        if self.pairing == "poisson":
            with inside("clock"):
                self.clock.refuse_links("needs pairing = availability: poisson averages in no time")


@dataclass(frozen=True)
class Acid(Momentum, Baseline):
    """A²CiD² in virtual time."""


@dataclass(frozen=True)
class ProcessRun(NetworkRun):
    """A training by one process per worker, in real time."""

    trainer: ClassVar[str] = "unlocked.papers.acid.processes.training.ProcessTraining"
    launcher: ClassVar[str | None] = "unlocked.papers.acid.processes.launch"
    engine: str = setting("processes", "processes: one process per worker, in real time", names=("processes",))
    runtime: ProcessRuntime = setting(ProcessRuntime(), "where and how it is executed")

    @property
    def processes(self) -> int:
        return self.workers


@dataclass(frozen=True)
class ProcessAllReduce(ProcessRun):
    """AR-SGD by DistributedDataParallel."""

    method: str = setting("allreduce", "all workers average every gradient", names=("allreduce",))


@dataclass(frozen=True)
class ProcessBaseline(Gossip, ProcessRun):
    """Gossip between processes."""

    method: str = setting("baseline", "gossip without momentum", names=("baseline",))
    init: str = setting("common", "one draw for all workers", names=("common", "mean_of_independent"))


@dataclass(frozen=True)
class ProcessAcid(Momentum, ProcessBaseline):
    """A²CiD² between processes."""
