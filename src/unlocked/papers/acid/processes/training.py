"""A run of processes, as the training loop sees it: this process coordinates, the workers train.

The loop's gradients are those that workers have reported; its evaluations are of states that workers sent without
stopping, and the last one is of the average that is taken when all gossip has ended.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.distributed import Store

from unlocked import places
from unlocked.errors import SettingError
from unlocked.gossip import topology
from unlocked.gossip.distributed import rendezvous
from unlocked.gossip.simulator import Engine
from unlocked.papers.acid import common, gossip
from unlocked.papers.acid.processes import launch
from unlocked.papers.acid.processes.coordinator import Coordinator
from unlocked.papers.acid.processes.state import Checkpoint, Sample, State, Tally
from unlocked.papers.acid.settings import Gossip, ProcessRun
from unlocked.papers.base import Measurement, evaluation_points
from unlocked.settings import inside
from unlocked.vision.data import Dataset

PER_WORKER = ("gradient_seconds", "idle_seconds", "transfer_seconds", "useful_cpu_seconds", "overhead_cpu_seconds")


class ProcessTraining:
    """One run; workers start with the first gradient that is asked for."""

    def __init__(self, run: ProcessRun, data: Dataset) -> None:
        self.run, self.data = run, data
        where = places.place()
        if where is not None and where.size != run.workers:
            raise SettingError("workers", run.workers, f"{where.size} processes were started: one per worker is needed")
        with inside("runtime"):
            self.address = rendezvous.interface_address(run.runtime.interface)
        self.graph = topology.build(run.graph, run.workers, run.seed) if isinstance(run, Gossip) else None
        self.total = run.total_gradients
        self.bounds = [0, *evaluation_points(self.total, run.evaluation.points)]
        self.spans = len(self.bounds) - 1
        model = common.build_model(run, data)
        self.start = common.initial_parameters(run, data, model).cpu()
        self.measures, self.sgd = gossip.Measures(run, model, data), common.sgd_of(run, model, 0)
        self.constants = gossip.constants_of(run)
        self.coordinator: Coordinator | None = None
        self.store: Store | None = None  # of all-reduce's workers, who find each other through it
        workers = range(run.workers)
        self.past = Checkpoint(dict.fromkeys(workers), {worker: Tally() for worker in workers})  # goes on with the run
        self.measured = {"loss_sum": 0.0, "steps": 0}  # over all workers, at the last evaluation

    # The workers

    def start_workers(self) -> Coordinator:
        """All workers, here or where torchrun or Slurm has started them."""
        port = 0
        if self.graph is None:
            self.store, port = rendezvous.serve(self.address)
        return Coordinator(
            launch.lines(self.past.states, self.run, self.data.to("cpu")),
            (self.run.id, launch.key().hex(), (self.address, port), self.start),
            gossip=self.graph is not None,
            total=self.total,
            samples_at=self.bounds[1:-1],
            timeout=self.run.runtime.timeout,
            past=self.past,
        )

    def close(self) -> None:
        """End all processes of the run; harmless when they have ended."""
        if self.coordinator is not None:
            self.coordinator.close()
            self.store = None

    # What the loop asks

    def length(self, span: int) -> int:
        return self.bounds[span + 1] - self.bounds[span]

    def advance(self, span: int, skip: int) -> Iterator[None]:
        """Follow the gradients of a span from the `skip`-th on; the workers do not wait for this."""
        if self.coordinator is None:
            self.coordinator = self.start_workers()
        first, last = self.bounds[span] + skip + 1, self.bounds[span + 1]
        for count in range(first, last + 1):
            # woken a few times a second, not for every gradient
            stride = self.stride(self.coordinator.unit())
            self.coordinator.wait_for(min(last, count - (count - first) % stride + stride - 1))
            yield

    def stride(self, unit: float) -> int:
        """Gradients over all workers in a tenth of a second, where one takes `unit` seconds."""
        return max(1, int(0.1 * self.run.workers / unit)) if unit > 0 else 1

    def healthy(self) -> bool:
        """Whether the loss is still a finite number."""
        return all(math.isfinite(tally.loss_sum) for tally in self.tallies())

    def tallies(self) -> list[Tally]:
        """What every worker has done, as last heard, in the order of the workers."""
        return [*self.past.tallies.values()]

    def measure(self, spans: int) -> Measurement:
        """All metrics after that many spans: of the start, of a sample, or of the final average."""
        step = self.bounds[spans]
        epoch = step * self.run.optim.batch_size / len(self.data.train)
        if spans == 0:
            start = self.start.to(self.run.runtime.device)
            metrics = self.measures.evaluator.averaged(start, [dict(self.measures.evaluator.model.named_buffers())])
            return Measurement(metrics | {"consensus_distance": 0.0, "training_seconds": 0.0}, step, epoch, 0.0)
        assert self.coordinator is not None
        sample = self.coordinator.finish() if spans == self.spans else self.coordinator.sample(spans - 1)
        metrics = self.metrics_of(sample, final=spans == self.spans)
        return Measurement(metrics, step, epoch, sample.seconds / self.coordinator.unit())

    def metrics_of(self, sample: Sample, final: bool) -> dict[str, Any]:
        """Of the average of a sample, of the workers in it, and of what they have done until then."""
        states = [sample.states[worker] for worker in sorted(sample.states)]
        own = {"training_seconds": sample.seconds} | self.done_until(sample)
        return self.measures.of(self.engine_of(states), 0.0, [state.buffers for state in states], own, final)

    def engine_of(self, states: Sequence[State]) -> Engine:
        """The simulator's engine, in which these workers are at time 0 as their states were when they were taken."""
        x = torch.stack([state.x for state in states])
        engine = Engine(x, self.constants, self.sgd, dynamics="exact", batched=False, read_at_start=False)
        if self.constants.momentum:
            engine.x_tilde = torch.stack([state.x_tilde for state in states])
        engine.last = -np.array([state.age for state in states])
        return engine

    def done_until(self, sample: Sample) -> dict[str, Any]:
        """Training loss since the last evaluation, and what every worker has spent its time on."""
        shown = {worker: state.tally for worker, state in sample.states.items()}
        tallies = [*(self.past.tallies | shown).values()]
        steps, loss = sum(t.steps for t in tallies), sum(t.loss_sum for t in tallies)
        metrics: dict[str, Any] = {f"worker_{name}": [getattr(t, name) for t in tallies] for name in PER_WORKER}
        metrics["worker_staleness"] = [mean_staleness(t) for t in tallies]
        metrics["gradients_in_sample"] = steps
        if steps > self.measured["steps"]:
            metrics["train_loss"] = (loss - self.measured["loss_sum"]) / (steps - self.measured["steps"])
            furthest = max(t.steps for t in tallies) - 1
            metrics["learning_rate"] = common.learning_rate(self.run, furthest * self.run.workers)
        self.measured = {"loss_sum": loss, "steps": steps}
        return metrics

    def counts(self) -> dict[str, Any]:
        """Gradients, and, where workers gossip, averagings, staleness and lost workers."""
        tallies = self.tallies()
        steps = [tally.steps for tally in tallies]
        counts: dict[str, Any] = {"gradients": sum(steps), "gradients_per_worker": steps}
        if self.graph is not None:
            edges = [(i, j) for i, j in sorted(map(sorted, self.graph.edges))]
            both = [(averagings(tallies, i, j), averagings(tallies, j, i)) for i, j in edges]
            ended = [min(one) + min(other) for one, other in both]
            counts["communications"] = sum(ended)
            counts["communications_per_edge"] = [[*edge, n] for edge, n in zip(edges, ended, strict=True) if n]
            counts["communications_one_sided"] = sum(abs(a - b) for sides in both for a, b in sides)
            counts["communications_failed"] = sum(tally.in_vain for tally in tallies)
            counts["staleness"] = added(tally.staleness for tally in tallies)
            counts["averagings_between_gradients"] = added(tally.between for tally in tallies)
        counts["deaths"] = [
            {"worker": d.worker, "reason": d.reason, "gradients": steps[d.worker], "seconds": d.seconds}
            for d in self.past.deaths
        ]
        return counts

    def state(self) -> dict[str, Any]:
        """Every living worker's vectors and counts, taken between two of its gradients while nobody averages."""
        saved = self.past if self.coordinator is None else self.coordinator.save()
        return saved.plain() | {"measured": self.measured}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; workers that were lost stay lost. `ValueError` if it is of another network."""
        past = Checkpoint.of(state)
        if any(kept is not None and kept.x.shape != self.start.shape for kept in past.states.values()):
            raise ValueError(f"its workers have not {len(self.start)} parameters")
        self.past, self.measured = past, state["measured"]


def added(histograms: Iterable[list[int]]) -> list[int]:
    """The sum of histograms of any lengths."""
    return [sum(column) for column in itertools.zip_longest(*histograms, fillvalue=0)]


def averagings(tallies: Sequence[Tally], i: int, j: int) -> tuple[int, int]:
    """How often i asked j and both averaged, as i has it and as j has it."""
    asked, answered = tallies[i].asked, tallies[j].answered
    return asked[j] if asked else 0, answered[i] if answered else 0


def mean_staleness(tally: Tally) -> float:
    """Mean number of averagings between the read and the step of a gradient; 0 before the first."""
    return sum(k * count for k, count in enumerate(tally.staleness)) / max(1, sum(tally.staleness))
