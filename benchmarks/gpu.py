"""What needs a GPU: `python benchmarks/gpu.py`, about ten minutes on a data-centre GPU.

Writes `benchmarks/results/gpu.json` and `gpu.md`: the simulator's CIFAR-10 cell with 64 workers, three ways to compute
the gradients of many workers, a step of every method of forward gradients, memory, and the hours of the scales.
Images are noise of CIFAR-10's shape. `--size tiny --device cpu --results FOLDER` tries it out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pages
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlocked.artifact.config import Bases, load_scale
from unlocked.artifact.plan import Plan
from unlocked.artifact.train import training_of
from unlocked.gossip.workers import bind, flat_parameters
from unlocked.papers import PAPERS
from unlocked.papers.acid.common import build_model
from unlocked.papers.run import Run
from unlocked.vision import models

EPOCHS, IMAGES = 300, 50_000  # of a run of paper A at the papers' scale


@dataclass(frozen=True)
class Size:
    """How large everything is: as in the papers, or too small to mean anything."""

    workers: int = 64
    batch: int = 128
    batches: tuple[int, ...] = (128, 512)  # of forward gradients
    images: int = 16384
    pixels: int = 32
    large_pixels: int = 224
    width: float = 1.0  # factor on the widths of all networks
    gradients: int = 256  # per measurement


SIZES = {"papers": Size(), "tiny": Size(4, 4, (4, 8), 64, 8, 16, 1 / 16, 8)}
NETWORKS = {"mlp": 8.0, "conv": 4.0, "resnet18": 1.0}  # with their widths at the scales `gpu` and `paper`
METHODS: dict[str, dict[str, Any]] = {
    "backpropagation": {"guess": "global"},
    "local learning": {"target": "local", "guess": "local"},
    "activity, local": {"guess": "local", "space": "activity"},
    "activity, random": {"guess": "random", "space": "activity"},
    "averaged, local": {"guess": "local", "space": "weight"},
    "averaged, random": {"guess": "random", "space": "weight"},
    "per sample, local": {"guess": "local", "space": "weight", "averaged": False},
}


class Bench:
    """A size on a device."""

    def __init__(self, size: Size, device: str) -> None:
        self.size, self.device, self.cuda = size, device, device.startswith("cuda")
        self.data = pages.noise(size.images, size.pixels, 3, 4).to(device)
        self.bases = {
            key: Bases(paper, load_scale("gpu"), {"device": device, "wandb": "disabled"})
            for key, paper in PAPERS.items()
        }

    def run(self, paper: str, settings: dict[str, Any]) -> Run:
        """A run with these settings, long enough to be measured."""
        batch = settings.get("optim.batch_size", self.size.batch)
        epochs = (20 * self.size.gradients + 100 * self.size.workers) * batch / IMAGES
        own = {"evaluation.points": 1, "optim.batch_size": batch, "optim.epochs": epochs}
        own |= {"workers": self.size.workers} if paper == "acid" else {}
        return self.bases[paper].run({**own, **settings})

    def training(self, paper: str, settings: dict[str, Any]) -> Any:
        return training_of(self.run(paper, settings), self.data)

    def precisions(self) -> dict[str, AbstractContextManager[Any]]:
        """As torch computes by default, and with the networks' passes in bfloat16."""
        kind = "cuda" if self.cuda else "cpu"
        return {"float32": nullcontext(), "bfloat16": torch.autocast(kind, torch.bfloat16)}

    def cost(self, compute: Callable[[], int]) -> dict[str, float | None]:
        """Milliseconds of one of the gradients that every call says it did, and the peak of memory."""
        compute()
        self._wait()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        done, start = 0, time.perf_counter()
        while done < self.size.gradients:
            done += compute()
        self._wait()
        milliseconds = 1e3 * (time.perf_counter() - start) / done
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30 if self.cuda else None
        return {"ms per gradient": milliseconds, "peak GB": peak}

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)


# The simulator


def steps_of(training: Any, each: int = 1) -> Callable[[], int]:
    """A function that does the next step of a training and says how many gradients that was; of a level of the
    simulator's events it is counted, of any other step it is `each`.
    """
    steps: Iterator[None] = training.advance(0, 0)
    engine = getattr(training, "engine", None)

    def compute() -> int:
        before = 0 if engine is None else int(engine.steps.sum())
        next(steps)
        return each if engine is None else int(engine.steps.sum()) - before

    return compute


def bare(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], int]:
    """Gradients of one network on a batch that lies ready, and nothing else."""
    model.train()

    def compute() -> int:
        model.zero_grad()
        cross_entropy(model(images), labels).backward()
        return 1

    return compute


def bare_of(bench: Bench, settings: dict[str, Any]) -> Callable[[], int]:
    """The same for the network of a run of paper A."""
    ready = bench.data.train.batch(range(bench.size.batch))
    return bare(build_model(bench.run("acid", settings), bench.data), *ready)  # type: ignore[arg-type]


def cells(bench: Bench) -> pages.Rows:
    """ResNet-18 and 64 workers on the ring: the bare gradient, all-reduce, gossip without and with momentum."""
    rows = []
    net = {"model.width": bench.size.width}
    for precision, context in bench.precisions().items():
        ways = {"bare gradient": bare_of(bench, net)}
        for method in ("allreduce", "baseline", "acid"):
            ways[method] = steps_of(bench.training("acid", {"method": method, **net}), bench.size.workers)
        for name, compute in ways.items():
            with context:
                cost = bench.cost(compute)
            hours = cost["ms per gradient"] * EPOCHS * (IMAGES // 128) / 3.6e6  # type: ignore[operator]
            rows.append({"precision": precision, "cell": name, **cost, f"hours for {EPOCHS} epochs": hours})
    return rows


class Graphed:
    """An experiment, no engine: the passes of one network, recorded once as a CUDA graph and replayed for every worker.

    A worker's parameters and batch are copied to where the graph reads; BatchNorm statistics stay one network's.
    """

    def __init__(self, model: nn.Module, vectors: Tensor, images: Tensor, labels: Tensor) -> None:
        self.model, self.vectors, self.turn = model.train(), vectors, 0
        self.batch, self.images, self.labels = (images, labels), images.clone(), labels.clone()
        self.flat = flat_parameters(model)
        self.gradient = torch.zeros_like(self.flat)
        bind(model, self.flat, self.gradient)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose and allocate here, which cannot be recorded
            for _ in range(3):
                self._passes()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._passes()

    def _passes(self) -> None:
        self.gradient.zero_()
        cross_entropy(self.model(self.images), self.labels).backward()

    def __call__(self) -> int:
        self.flat.copy_(self.vectors[self.turn % len(self.vectors)])
        self.images.copy_(self.batch[0])
        self.labels.copy_(self.batch[1])
        self.graph.replay()
        self.turn += 1
        return 1


def ways(bench: Bench, network: str) -> dict[str, Callable[[], int]]:
    """Ways to the gradients of many workers: by themselves, in the simulator's loop, stacked, by a CUDA graph."""
    net = {"model.name": network, "model.width": NETWORKS[network] * bench.size.width}
    found = {"bare gradient": bare_of(bench, net)}
    executions = ("loop",) if network == "resnet18" else ("loop", "batched")  # BatchNorm cannot be stacked
    for execution in executions:
        found[execution] = steps_of(bench.training("acid", {**net, "runtime.execution": execution}))
    if bench.cuda:
        model = build_model(bench.run("acid", net), bench.data)  # type: ignore[arg-type]
        vectors = flat_parameters(model).repeat(bench.size.workers, 1)
        found["CUDA graph"] = Graphed(model, vectors, *bench.data.train.batch(range(bench.size.batch)))
    return found


def executions(bench: Bench) -> pages.Rows:
    """One row per network and way."""
    return [
        {"network": network, "way": name, **bench.cost(compute)}
        for network in NETWORKS
        for name, compute in ways(bench, network).items()
    ]


def large(bench: Bench) -> pages.Rows:
    """The bare gradient of ResNet-50 on images of ImageNet's size, which stands for its runs."""
    shape = {"classes": 1000, "channels": 3, "size": bench.size.large_pixels}
    rows = []
    for precision, context in bench.precisions().items():
        model = models.build("resnet50", **shape, width=bench.size.width, seed=0).to(bench.device)
        images = torch.randn(bench.size.batch, 3, *2 * [bench.size.large_pixels], device=bench.device)
        labels = torch.arange(bench.size.batch, device=bench.device)
        with context:
            rows.append({"precision": precision, "network": "resnet50", **bench.cost(bare(model, images, labels))})
    return rows


# Forward gradients


def forward(bench: Bench) -> pages.Rows:
    """A training step of every method, its batch included, and its ratio to backpropagation."""
    rows: pages.Rows = []
    for batch in bench.size.batches:
        for name, method in METHODS.items():
            settings = {**method, "optim.batch_size": batch, "model.width": bench.size.width}
            settings |= {} if name == "backpropagation" or "random" in name else {"auxiliary": "cnn"}
            cost = bench.cost(steps_of(bench.training("forward_gradient", settings)))
            rows.append({"batch": batch, "step": name, **cost})
            peer = next(row for row in rows if row["batch"] == batch)
            rows[-1]["ratio"] = cost["ms per gradient"] / peer["ms per gradient"]  # type: ignore[operator]
    return rows


# Hours


def hours(tables: dict[str, pages.Rows]) -> pages.Rows:
    """The plan's hours, and those with measured gradients in the estimates' place, in float32.

    CIFAR-10 of paper A: A²CiD² with ResNet-18; ImageNet: the bare gradient of ResNet-50; paper B: the mean factor over
    its methods. Networks that were not measured keep their estimate.
    """
    rows = []
    for scale in ("gpu", "paper"):
        factors = factors_of(made := Plan(scale, runtime={"device": "cuda"}), tables)
        runs = pd.DataFrame([described(run) for run in made.runs.values()])
        measured = [factors.get((paper, net), 1.0) for paper, net in zip(runs["paper"], runs["network"], strict=True)]
        runs["measured hours"] = runs["estimated hours"] * measured
        whole = runs.groupby(["paper", "data"]).agg({"runs": "sum", "estimated hours": "sum", "measured hours": "sum"})
        rows += [{"scale": scale, **row} for row in whole.reset_index().to_dict("records")]
    return rows


def described(run: Run) -> dict[str, Any]:
    """A row of a run's settings and its estimate."""
    data, network = run.data_set, getattr(run, "model", None)
    return {
        "paper": run.paper,
        "data": data.name if data else "none",
        "network": network.name if network else "none",
        "runs": 1,
        "estimated hours": run.estimate().seconds / 3600,
    }


def factors_of(plan: Plan, tables: dict[str, pages.Rows]) -> dict[tuple[str, str], float]:
    """Measured over estimated time of a gradient, by paper and network."""

    def estimated(paper: str, network: str) -> float:
        """Milliseconds of a gradient in the plan, the mean over such runs."""
        own = [
            run.estimate() for run in plan.runs.values() if (run.paper, described(run)["network"]) == (paper, network)
        ]
        return 1e3 * sum(one.seconds for one in own) / max(1, sum(one.gradients for one in own))

    def measured(table: str, **where: Any) -> float:
        """Milliseconds of a gradient, the mean over rows with these values."""
        rows = pd.DataFrame(tables[table])
        return float(rows.loc[(rows[list(where)] == pd.Series(where)).all(axis=1), "ms per gradient"].mean())

    found = {
        ("acid", "resnet18"): measured("cells", precision="float32", cell="acid"),
        ("acid", "resnet50"): measured("large", precision="float32"),
        ("forward_gradient", "resnet18_8"): measured("forward", batch=tables["forward"][0]["batch"]),
    }
    return {key: own / estimate for key, own in found.items() if (estimate := estimated(*key))}


def measure(options: argparse.Namespace) -> dict[str, pages.Rows]:
    """All tables; without a GPU one line says so."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if options.device != "cpu" and not there:
        raise SystemExit("benchmarks/gpu.py: this machine has no usable GPU; --size tiny --device cpu tries it out")
    if options.size not in SIZES:
        raise SystemExit(f"benchmarks/gpu.py: --size {options.size}: must be one of {', '.join(SIZES)}")
    torch.use_deterministic_algorithms(True, warn_only=True)  # as runs are trained
    bench = Bench(SIZES[options.size], options.device)
    tables = {"cells": cells(bench), "executions": executions(bench), "large": large(bench), "forward": forward(bench)}
    where = torch.cuda.get_device_name(options.device) if bench.cuda else "no GPU: a trial of the script"
    return {"machine": [{"device": where, "size": options.size}], **tables, "hours": hours(tables)}


TEXT = f"""# On a GPU, measured

Written by `python benchmarks/gpu.py`. {{environment}}.

{{machine}}

Wall time; float32 is torch's default, with convolutions in TF32; bfloat16 is autocast around the same code, which no
run uses. Peaks are of the memory that torch allocated on the GPU.

## 64 workers, ResNet-18, CIFAR-10's shape

{{cells}}

Hours are for {EPOCHS} epochs of {IMAGES} images in batches of 128, without evaluation.

## The gradients of many workers

In the simulator's loop, stacked (BatchNorm cannot be), and replayed from a CUDA graph, which is an experiment without
mixing, averaging or data.

{{executions}}

## ResNet-50, ImageNet's shape

The bare gradient.

{{large}}

## Forward gradients

ResNet-18 in 8 blocks with cnn auxiliary nets, a training step with its batch; ratio: to backpropagation.

{{forward}}

## Hours

What the plan estimates, and with the measured gradients in the place of the estimated ones.

{{hours}}
"""


if __name__ == "__main__":
    pages.write("gpu", TEXT, measure, size="papers", device="cuda")
