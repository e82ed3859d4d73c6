"""A run of the engine of processes, as the training loop sees it.

Third on the road, beside the virtual engine: this process coordinates, the workers train. The loop's gradients are
those that workers have reported; its evaluations are of vectors that workers sent without stopping, and the last one is
of the average that is taken when all gossip has ended. Recorder, W&B, checkpoints and signals are the loop's, as for
any run.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import socket
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from unlocked import budget, optim
from unlocked.errors import MachineError, SettingError
from unlocked.gossip import topology, virtual
from unlocked.gossip.momentum import Constants
from unlocked.gossip.processes import launch, places
from unlocked.gossip.processes.coordinator import Checkpoint, Coordinator, Sample
from unlocked.gossip.processes.messages import Begin, State, Tally, View
from unlocked.gossip.workers import Evaluator, initial_parameters
from unlocked.loop import Measurement, evaluation_points
from unlocked.vision.data import Dataset


class Snapshot:
    """Views of several workers, as the virtual engine's measurements take them."""

    def __init__(self, views: list[View], constants: Constants) -> None:
        self.constants = constants
        self.views, self.x = views, torch.stack([view.stored for view in views])

    def now(self, worker: int, time: float) -> tuple[Tensor, Tensor]:
        """x and twin of the worker at this position."""
        return self.views[worker].x, self.views[worker].x_tilde


class Training:
    """One run; workers start with the first gradient that is asked for."""

    def __init__(self, run: DictConfig, data: Dataset) -> None:
        self.run, self.data = run, data
        where = places.place()
        if where is not None and where.size != run.workers:
            raise SettingError("workers", run.workers, f"{where.size} processes were started: one per worker is needed")
        self.address = launch.interface_address(run.runtime.interface)
        self.total = budget.total_gradients(run)
        self.bounds = [0, *evaluation_points(self.total, run.evaluation.points)]
        self.spans = len(self.bounds) - 1
        self.start = initial_parameters(run, data).cpu()
        self.evaluator = Evaluator(run, data)
        self.constants = Constants.baseline() if run.method == "allreduce" else virtual.constants_of(run)
        self.coordinator: Coordinator | None = None
        # an earlier part of the run: where the workers were, samples not yet evaluated, what was counted
        self.states: dict[int, State | None] = dict.fromkeys(range(run.workers))
        self.samples: dict[int, Sample] = {}
        self.book = new_book()
        self.seconds = 0.0
        self.measured = {"loss_sum": 0.0, "steps": 0}  # over all workers, at the last evaluation

    # The workers

    def start_workers(self) -> Coordinator:
        """All workers, here or where torchrun or Slurm has started them."""
        bound = socket.create_server((self.address, 0))
        port = bound.getsockname()[1]
        self.store = dist.TCPStore(
            self.address, port, is_master=True, wait_for_workers=False, master_listen_fd=bound.detach()
        )
        data, graph = self.data.to("cpu"), None
        if self.run.method != "allreduce":
            graph = topology.build(self.run.graph, self.run.workers, self.run.seed)

        def begin(worker: int) -> Begin:
            return Begin(self.run, data, worker, (self.address, port), self.start, self.states[worker])

        return Coordinator(
            list(self.lines()),
            begin,
            graph=graph,
            seed=self.run.seed,
            total=self.total,
            samples_at=self.bounds[1:-1],
            timeout=float(self.run.runtime.timeout),
            book=self.book,
            seconds_before=self.seconds,
        )

    def lines(self) -> Iterator[tuple[int, Any, Any]]:
        """(worker, connection, process or None) of every worker of the run."""
        lobby = launch.lobby()
        for worker in sorted(self.states) if lobby is None else [0]:
            yield worker, *launch.start_local()
        if lobby is not None:
            came = {0}
            for rank, line in lobby.arrivals():
                came.add(rank)
                if rank in self.states:
                    yield rank, line, None
            if missing := sorted(set(self.states) - came):
                raise MachineError(f"ranks {', '.join(map(str, missing))} did not come within {launch.START_SECONDS} s")

    def close(self) -> None:
        """End all processes of the run; harmless when they have ended."""
        if self.coordinator is not None:
            self.coordinator.close()

    # What the loop asks

    def advance(self, span: int, skip: int) -> Iterator[None]:
        """Follow the gradients of a span from the `skip`-th on; the workers do not wait for this."""
        if self.coordinator is None:
            self.coordinator = self.start_workers()
        first, last = self.bounds[span] + skip + 1, self.bounds[span + 1]
        for count in range(first, last + 1):
            # woken a few times a second, not for every gradient
            self.coordinator.wait_for(min(last, count - (count - first) % self.stride() + self.stride() - 1))
            yield

    def stride(self) -> int:
        """Gradients over all workers in a tenth of a second."""
        assert self.coordinator is not None
        unit = self.coordinator.unit()
        return max(1, int(0.1 * self.run.workers / unit)) if unit > 0 else 1

    def healthy(self) -> bool:
        """Whether the loss is still a finite number."""
        return all(math.isfinite(tally.loss_sum) for tally in self.tallies())

    def tallies(self) -> list[Tally]:
        """What every worker has done, as last heard, in the order of the workers."""
        found = {worker: state.tally for worker, state in self.states.items() if state is not None}
        found |= {death["worker"]: Tally(**death["tally"]) for death in self.book["deaths"]}
        if self.coordinator is not None:
            found |= {number: member.tally for number, member in self.coordinator.members.items()}
        return [found.get(worker, Tally()) for worker in range(self.run.workers)]

    def measure(self, spans: int) -> Measurement:
        """All metrics after that many spans: of the start, of a sample, or of the final average."""
        if spans == 0:
            buffers = [dict(self.evaluator.model.named_buffers())]
            metrics = self.evaluator.averaged(self.start.to(self.run.runtime.device), buffers)
            return self.measurement(metrics | {"consensus_distance": 0.0, "training_seconds": 0.0}, 0, 0.0)
        assert self.coordinator is not None
        if spans == self.spans:
            sample = self.coordinator.finish()
        else:
            sample = self.samples.pop(spans - 1, None) or self.coordinator.sample(spans - 1)
        metrics = self.metrics_of(sample, final=spans == self.spans)
        return self.measurement(metrics, self.bounds[spans], sample.seconds / self.coordinator.unit())

    def measurement(self, metrics: dict[str, Any], step: int, time: float) -> Measurement:
        """With the epoch of that step."""
        return Measurement(metrics, step, step * self.run.optim.batch_size / len(self.data.train), time)

    def metrics_of(self, sample: Sample, final: bool) -> dict[str, Any]:
        """Of the average of a sample, of the workers in it, and of what they have done until then."""
        views = [sample.views[worker] for worker in sorted(sample.views)]
        snapshot, buffers = Snapshot(views, self.constants), [view.buffers for view in views]
        mean, distances = virtual.consensus(snapshot, 0.0)
        metrics: dict[str, Any] = {**distances, **self.evaluator.averaged(mean.to(self.run.runtime.device), buffers)}
        metrics["training_seconds"] = sample.seconds
        metrics |= self.done_until(sample)
        wanted = self.run.evaluation.workers
        if self.run.method != "allreduce" and (wanted == "always" or (wanted == "final" and final)):
            metrics |= virtual.worker_accuracies(snapshot, self.evaluator, buffers, 0.0)
        return metrics

    def done_until(self, sample: Sample) -> dict[str, Any]:
        """Training loss since the last evaluation, and what every worker has spent its time on."""
        tallies = self.tallies()
        for worker, view in sample.views.items():
            tallies[worker] = view.tally
        steps, loss = sum(t.steps for t in tallies), sum(t.loss_sum for t in tallies)
        found: dict[str, Any] = {f"worker_{name}": [getattr(t, name) for t in tallies] for name in PER_WORKER}
        found["worker_staleness"] = [mean_staleness(t) for t in tallies]
        found["gradients_in_sample"] = steps
        if steps > self.measured["steps"]:
            found["train_loss"] = (loss - self.measured["loss_sum"]) / (steps - self.measured["steps"])
            furthest = max(t.steps for t in tallies) - 1
            settings, n = OmegaConf.to_object(self.run.optim), int(self.run.workers)
            found["learning_rate"] = optim.learning_rate(settings, furthest * n, self.total, n)
        self.measured = {"loss_sum": loss, "steps": steps}
        return found

    def counts(self) -> dict[str, Any]:
        """Gradients, and, where workers gossip, averagings, staleness and lost workers."""
        steps = [tally.steps for tally in self.tallies()]
        if self.coordinator is not None:
            for number, member in self.coordinator.members.items():
                steps[number] = member.done
        found: dict[str, Any] = {"gradients": sum(steps), "gradients_per_worker": steps}
        if self.run.method != "allreduce":
            edges = sorted((*map(int, edge.split("-")), count) for edge, count in self.book["edges"].items())
            found["communications"] = sum(self.book["edges"].values())
            found["communications_per_edge"] = [list(edge) for edge in edges]
            found |= {"communications_one_sided": self.book["one_sided"], "communications_failed": self.book["failed"]}
            found["staleness"] = added(tally.staleness for tally in self.tallies())
            found["averagings_between_gradients"] = added(tally.between for tally in self.tallies())
        keys = ("worker", "reason", "gradients", "seconds")
        found["deaths"] = [{key: death[key] for key in keys} for death in self.book["deaths"]]
        return found

    def state(self) -> dict[str, Any]:
        """Every living worker's vectors and counts, taken between two of its gradients while nobody averages."""
        found = Checkpoint(self.states, {}, self.book, self.seconds)
        if self.coordinator is not None:
            found = self.coordinator.save()
        return {
            "states": {worker: None if s is None else dataclasses.asdict(s) for worker, s in found.states.items()},
            "samples": {number: dataclasses.asdict(s) for number, s in (self.samples | found.samples).items()},
            "book": found.book,
            "seconds": found.seconds,
            "measured": self.measured,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`; workers that were lost stay lost."""
        self.states = {
            worker: None if s is None else State(**s | {"tally": Tally(**s["tally"])})
            for worker, s in state["states"].items()
        }
        self.samples = {
            number: Sample(s["seconds"], {w: View(**v | {"tally": Tally(**v["tally"])}) for w, v in s["views"].items()})
            for number, s in state["samples"].items()
        }
        self.book, self.seconds, self.measured = state["book"], state["seconds"], state["measured"]


PER_WORKER = ("gradient_seconds", "idle_seconds", "transfer_seconds", "useful_cpu_seconds", "overhead_cpu_seconds")


def new_book() -> dict[str, Any]:
    """What the coordinator counts: averagings by pair, those that one side or none applied, and lost workers."""
    return {"edges": {}, "one_sided": 0, "failed": 0, "deaths": []}


def added(histograms: Iterable[list[int]]) -> list[int]:
    """The sum of histograms of any lengths."""
    return [sum(column) for column in itertools.zip_longest(*histograms, fillvalue=0)]


def mean_staleness(tally: Tally) -> float:
    """Mean number of averagings between the read and the step of a gradient; 0 before the first."""
    return sum(k * count for k, count in enumerate(tally.staleness)) / max(1, sum(tally.staleness))
