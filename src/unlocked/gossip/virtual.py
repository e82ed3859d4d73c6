"""Engine 1: all workers in one process, in virtual time, seeded and exact.

Third on the road: takes a run's config, returns nothing, leaves a record. The events are drawn before the run
(`schedule`), cut into dependency levels, and executed with the update of `momentum`. All workers' vectors are rows of
three matrices: parameters `x`, momentum twins `x_tilde`, SGD buffers `m`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from unlocked import budget, optim
from unlocked.gossip import clock as clocks
from unlocked.gossip import schedule as schedules
from unlocked.gossip import topology
from unlocked.gossip.momentum import Constants, communicate_, descend_, mix_
from unlocked.gossip.schedule import Schedule
from unlocked.gossip.workers import (
    Evaluator,
    Networks,
    Streams,
    build_model,
    initial_parameters,
    message_bytes,
)
from unlocked.loop import Measurement, evaluation_points
from unlocked.vision.data import Dataset
from unlocked.vision.evaluate import has_batch_norm

# A level runs as one batched computation where that is faster than a loop over its workers (measured on CPU): small
# networks without BatchNorm, and enough workers for levels of ten and more.
BATCHED_PARAMETERS = 300_000
BATCHED_WORKERS = 32
TOGETHER = 4096  # vectors up to this length are also updated together, on CPU


def replay(
    events: Iterable[Sequence[Any]], x0: Any, constants: Constants, lr: float, dynamics: str = "exact"
) -> tuple[Tensor, Tensor]:
    """Run given events one by one: the obvious version that the engine must agree with.

    `events`: `("gradient", t, i, g)` with the gradient g (d,), plain SGD; or `("communication", t, i, j)`. `x0`:
    (n, d), also the start of the twins. Returns `(x, x_tilde)`, float64 (n, d), each worker as of its last event.
    """
    x = torch.as_tensor(np.asarray(x0), dtype=torch.float64).clone()
    x_tilde, last = x.clone(), [0.0] * len(x)
    for kind, t, i, other in events:
        if kind == "gradient":
            mix_(x[i], x_tilde[i], constants.eta, t - last[i])
            descend_(x[i], x_tilde[i], lr * torch.as_tensor(other, dtype=torch.float64), constants)
        elif kind == "communication":
            j = other
            communicate_(x[i], x_tilde[i], t - last[i], x[j], x_tilde[j], t - last[j], constants, dynamics)
            last[j] = t
        else:
            raise ValueError(f"event {kind!r}: must be 'gradient' or 'communication'")
        last[i] = t
    return x, x_tilde


def constants_of(run: DictConfig) -> Constants:
    """The method's constants on the run's graph."""
    if run.method == "baseline":
        return Constants.baseline()
    return Constants.accelerated(*topology.chi(topology.build(run.graph, run.workers, run.seed), run.rate))


def schedule_of(run: DictConfig, message_bytes: int) -> Schedule:
    """The run's events; an averaging sends `message_bytes` each way."""
    graph = topology.build(run.graph, run.workers, run.seed)
    clock = OmegaConf.to_object(run.clock)
    options = {"clock": clock, "message": clocks.message_time(clock, message_bytes)}
    if run.pairing == "availability":
        options["owed"] = run.owed
    return schedules.draw(run.pairing, graph, run.rate, budget.total_gradients(run), run.seed, **options)


def is_batched(run: DictConfig, parameters: int, batch_norm: bool) -> bool:
    """Whether the workers of a level run as one batched computation rather than in a loop."""
    if run.runtime.execution != "auto":
        return run.runtime.execution == "batched"
    return not batch_norm and run.workers >= BATCHED_WORKERS and parameters <= BATCHED_PARAMETERS


@dataclass(frozen=True)
class Sgd:
    """Momentum SGD of a run in plain values: reading the config at every event would cost as much as a gradient."""

    momentum: float
    decay: Tensor  # (d,): weight decay of every entry
    rates: list[float]  # learning rate of a worker's k-th gradient

    @classmethod
    def of(cls, run: DictConfig, model: nn.Module, longest: int) -> Sgd:
        """As the run's settings say; `longest` is the number of gradients of the fastest worker."""
        total, workers = budget.total_gradients(run), int(run.workers)
        settings = OmegaConf.to_object(run.optim)
        rates = [optim.learning_rate(settings, k * workers, total, workers) for k in range(longest)]
        return cls(float(run.optim.momentum), optim.decay_vector(model, run.optim.weight_decay), rates)


class Source(Protocol):
    """Where gradients come from: networks on data, or a problem that can be written down."""

    def batches(self, workers: list[int], steps: list[int]) -> Any:
        """What the next gradients of these workers need: something that can be indexed by position."""

    def one(self, worker: int, batch: Any) -> tuple[Tensor, Tensor]:
        """Gradient (d,) and loss of one worker, taken at its row of the matrix that gradients read."""

    def stacked(self, vectors: Tensor, batches: Any) -> tuple[Tensor, Tensor]:
        """Gradients (k, d) and losses (k,) at k vectors."""


@dataclass(frozen=True)
class Row:
    """Views of one worker's vectors, each (d,)."""

    x: Tensor
    x_tilde: Tensor
    m: Tensor


class Engine:
    """The state of all workers and what an event does to it.

    Parameters `x`, twins `x_tilde` and SGD buffers `m` are (n, d). `read` is what gradients are taken at: `x` itself,
    or a copy from the start of each worker's computation.
    """

    def __init__(
        self, start: Tensor, constants: Constants, sgd: Sgd, *, dynamics: str, batched: bool, read_at_start: bool
    ) -> None:
        self.constants, self.sgd, self.dynamics, self.batched = constants, sgd, dynamics, batched
        self.x = start
        self.x_tilde = start.clone() if constants.momentum else start
        self.read = start.clone() if read_at_start else start
        self.m = torch.zeros_like(start)
        self.rows = [Row(*views) for views in zip(self.x, self.x_tilde, self.m, strict=True)]
        # Long vectors are updated one worker at a time: they stay in the processor's cache meanwhile.
        self.together = batched and (start.is_cuda or start.shape[1] <= TOGETHER)
        self.last = np.zeros(len(start))
        self.steps = np.zeros(len(start), np.int64)
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=start.device)
        self.losses = 0

    def execute(self, events: Schedule, computing: np.ndarray, talking: np.ndarray, source: Source) -> None:
        """One level: events of distinct workers, by their indices."""
        if len(talking):
            self.communicate(events.i[talking], events.j[talking], events.time[talking])
        if len(computing):
            self.compute(events.i[computing], events.time[computing], source)

    def compute(self, workers: np.ndarray, times: np.ndarray, source: Source) -> None:
        """The gradient events of distinct workers."""
        steps = self.steps[workers].tolist()
        rates = [self.sgd.rates[step] for step in steps]
        batches = source.batches(workers.tolist(), steps)
        elapsed = times - self.last[workers]
        if self.together:
            self._compute_together(workers, elapsed, rates, source, batches)
        elif self.batched:
            self._compute_stacked(workers, elapsed, rates, source, batches)
        else:
            self._compute_one_by_one(workers, elapsed, rates, source, batches)
        self.last[workers] = times
        self.steps[workers] += 1
        self.losses += len(workers)

    def _compute_together(
        self, workers: np.ndarray, elapsed: np.ndarray, rates: list[float], source: Source, batches: Any
    ) -> None:
        """Gradients and updates of all workers in one computation."""
        rows = torch.from_numpy(workers).long()
        x, m = self.x[rows], self.m[rows]
        x_tilde = self.x_tilde[rows] if self.constants.momentum else x
        mix_(x, x_tilde, self.constants.eta, self._column(elapsed))
        gradients, losses = source.stacked(x if self.read is self.x else self.read[rows], batches)
        optim.momentum_(m, gradients, x, self.sgd.decay, self.sgd.momentum)
        descend_(x, x_tilde, m, self.constants, self._column(rates))
        self.x[rows], self.m[rows] = x, m
        if self.constants.momentum:
            self.x_tilde[rows] = x_tilde
        if self.read is not self.x:
            self.read[rows] = x
        self.loss_sum += losses.double().sum()

    def _compute_stacked(
        self, workers: np.ndarray, elapsed: np.ndarray, rates: list[float], source: Source, batches: Any
    ) -> None:
        """Gradients in one computation, updates one worker at a time."""
        for i, time in zip(workers.tolist(), elapsed.tolist(), strict=True):
            mix_(self.rows[i].x, self.rows[i].x_tilde, self.constants.eta, time)
        gradients, losses = source.stacked(self.read[torch.from_numpy(workers).long()], batches)
        for i, gradient, rate in zip(workers.tolist(), gradients, rates, strict=True):
            self._descend(i, gradient, rate)
        self.loss_sum += losses.double().sum()

    def _compute_one_by_one(
        self, workers: np.ndarray, elapsed: np.ndarray, rates: list[float], source: Source, batches: Any
    ) -> None:
        """Gradients and updates one worker at a time."""
        for k, (i, time) in enumerate(zip(workers.tolist(), elapsed.tolist(), strict=True)):
            mix_(self.rows[i].x, self.rows[i].x_tilde, self.constants.eta, time)
            gradient, loss = source.one(i, batches[k])
            self._descend(i, gradient, rates[k])
            self.loss_sum += loss

    def _descend(self, worker: int, gradient: Tensor, rate: float) -> None:
        """A worker's SGD step."""
        row = self.rows[worker]
        optim.momentum_(row.m, gradient, row.x, self.sgd.decay, self.sgd.momentum)
        descend_(row.x, row.x_tilde, row.m, self.constants, rate)
        if self.read is not self.x:
            self.read[worker] = row.x

    def communicate(self, i: np.ndarray, j: np.ndarray, times: np.ndarray) -> None:
        """The averagings of disjoint pairs of workers."""
        elapsed_i, elapsed_j = times - self.last[i], times - self.last[j]
        x, twin = self.x, self.x_tilde
        if self.together:
            a, b = torch.from_numpy(i).long(), torch.from_numpy(j).long()
            x_i, x_j = x[a], x[b]
            twin_i, twin_j = (twin[a], twin[b]) if self.constants.momentum else (x_i, x_j)
            columns = self._column(elapsed_i), self._column(elapsed_j)
            communicate_(x_i, twin_i, columns[0], x_j, twin_j, columns[1], self.constants, self.dynamics)
            x[a], x[b] = x_i, x_j
            if self.constants.momentum:
                twin[a], twin[b] = twin_i, twin_j
        else:
            for a, b, s, r in zip(i.tolist(), j.tolist(), elapsed_i.tolist(), elapsed_j.tolist(), strict=True):
                one, two = self.rows[a], self.rows[b]
                communicate_(one.x, one.x_tilde, s, two.x, two.x_tilde, r, self.constants, self.dynamics)
        self.last[i] = times
        self.last[j] = times

    def _column(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values), dtype=self.x.dtype, device=self.x.device)[:, None]

    def now(self, worker: int, time: float) -> tuple[Tensor, Tensor]:
        """Copies of a worker's x and twin, mixed up to `time`: looking at a worker does not change it."""
        x = self.x[worker].clone()
        if not self.constants.momentum:
            return x, x
        twin = self.x_tilde[worker].clone()
        mix_(x, twin, self.constants.eta, time - float(self.last[worker]))
        return x, twin

    def mean_loss(self) -> float | None:
        """Mean loss of the gradients since the last call, None if there were none."""
        mean = float(self.loss_sum) / self.losses if self.losses else None
        self.loss_sum.zero_()
        self.losses = 0
        return mean

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs: tensors and plain values."""
        return {
            "x": self.x,
            "x_tilde": self.x_tilde,
            "m": self.m,
            "read": self.read,
            "last": torch.from_numpy(self.last),
            "steps": torch.from_numpy(self.steps),
            "loss_sum": self.loss_sum,
            "losses": self.losses,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        for name in ("x", "x_tilde", "m", "read", "loss_sum"):
            getattr(self, name).copy_(state[name])
        self.last[:] = state["last"].numpy()
        self.steps[:] = state["steps"].numpy()
        self.losses = int(state["losses"])


def consensus(engine: Engine, time: float) -> tuple[Tensor, dict[str, float]]:
    """The average of all workers at `time`, and consensus distances `1/n sum ||x_i - x_mean||^2`.

    `consensus_distance` and `consensus_distance_twin` are of x and of the twin mixed up to `time`, which is what a
    gradient at that moment would see. `consensus_distance_stored` is of x as it lies in memory since each worker's last
    event, which is what an observer of real machines would see; without momentum the two are the same.
    """
    views: list[Callable[[int], Tensor]] = [lambda i: engine.now(i, time)[0]]
    names = ["consensus_distance"]
    if engine.constants.momentum:
        views += [lambda i: engine.now(i, time)[1], lambda i: engine.x[i]]
        names += ["consensus_distance_twin", "consensus_distance_stored"]
    spreads = [spread(len(engine.x), view) for view in views]
    return spreads[0][0].to(engine.x.dtype), {n: distance for n, (_, distance) in zip(names, spreads, strict=True)}


def spread(count: int, vector: Callable[[int], Tensor]) -> tuple[Tensor, float]:
    """Mean of `count` vectors, in float64, and their mean squared distance from it; one vector in memory at a time."""
    mean = torch.zeros_like(vector(0), dtype=torch.float64)
    for i in range(count):
        mean += vector(i) / count
    return mean, sum(float((vector(i) - mean).square().sum()) for i in range(count)) / count


def worker_accuracies(engine: Engine, evaluator: Evaluator, buffers: list[dict[str, Tensor]], time: float) -> dict:
    """Test accuracy of every single worker, and its mean, least and greatest."""
    found = [evaluator.worker(engine.now(i, time)[0], own) for i, own in enumerate(buffers)]
    return {
        "worker_test_accuracy_mean": float(np.mean(found)),
        "worker_test_accuracy_min": min(found),
        "worker_test_accuracy_max": max(found),
        "worker_test_accuracy": found,
    }


def one_by_one(events: Schedule, span: range) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every event as a level of its own, in the order of time."""
    nothing = np.empty(0, np.int64)
    for k in span:
        here = np.array([k])
        yield (here, nothing) if events.kind[k] == schedules.GRADIENT else (nothing, here)


def counts(events: Schedule) -> dict[str, Any]:
    """Events that took place, in total, per worker and per edge."""
    edges = events.communications_per_edge()
    return {
        "gradients": events.gradients,
        "communications": sum(edges.values()),
        "gradients_per_worker": events.gradients_per_worker().tolist(),
        "communications_per_edge": [[i, j, count] for (i, j), count in edges.items()],
    }


class Training:
    """A run of this engine, as the training loop sees it: spans of levels between evaluation points."""

    def __init__(self, run: DictConfig, data: Dataset) -> None:
        self.run, self.data = run, data
        self.events = schedule_of(run, message_bytes(run, data))
        self.cuts = self.events.cut(evaluation_points(self.events.gradients, run.evaluation.points))
        self.spans = len(self.cuts)
        self.happened = np.zeros(len(self.events), bool)
        start = initial_parameters(run, data)
        model = build_model(run, data, run.seed)
        self.engine = Engine(
            start.repeat(run.workers, 1),
            constants_of(run),
            Sgd.of(run, model, int(self.events.gradients_per_worker().max())),
            dynamics=run.dynamics,
            batched=is_batched(run, len(start), has_batch_norm(model)),
            read_at_start=run.gradient_read == "start",
        )
        self.streams = Streams(run, data.train.labels)
        self.networks = Networks(run, data, self.streams, None if self.engine.batched else self.engine.read)
        self.evaluator = Evaluator(run, data)

    def advance(self, span: int, skip: int) -> Iterator[None]:
        """Execute the levels of a span from the `skip`-th on; after each the state is one to continue from."""
        cut = one_by_one if self.run.runtime.execution == "one_by_one" else schedules.levels
        for computing, talking in itertools.islice(cut(self.events, self.cuts[span]), skip, None):
            self.engine.execute(self.events, computing, talking, self.networks)
            self.happened[computing] = self.happened[talking] = True
            yield

    def healthy(self) -> bool:
        """Whether the loss is still a finite number."""
        return bool(torch.isfinite(self.engine.loss_sum))

    def measure(self, spans: int) -> Measurement:
        """All metrics after that many spans."""
        engine, run = self.engine, self.run
        time = float(self.events.time[self.cuts[spans - 1].stop - 1]) if spans else 0.0
        step = int(engine.steps.sum())
        mean, metrics = consensus(engine, time)
        buffers = self.networks.buffers()
        metrics: dict[str, Any] = {**metrics, **self.evaluator.averaged(mean, buffers)}
        metrics["virtual_seconds"] = time * run.clock.gradient_seconds
        if (loss := engine.mean_loss()) is not None:
            metrics |= {"train_loss": loss, "learning_rate": engine.sgd.rates[int(engine.steps.max()) - 1]}
        if run.evaluation.workers == "always" or (run.evaluation.workers == "final" and spans == self.spans):
            metrics |= worker_accuracies(engine, self.evaluator, buffers, time)
        return Measurement(metrics, step, step * run.optim.batch_size / len(self.data.train), time)

    def counts(self) -> dict[str, Any]:
        """Events that took place: all of the schedule's unless the run diverged."""
        return counts(self.events.only(self.happened))

    def state(self) -> dict[str, Any]:
        """Vectors, clocks and BatchNorm statistics."""
        happened = torch.from_numpy(self.happened)
        return {"engine": self.engine.state(), "buffers": self.networks.buffers(), "happened": happened}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.engine.restore(state["engine"])
        self.networks.restore(state["buffers"])
        self.happened[:] = state["happened"].numpy()
