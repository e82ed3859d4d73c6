"""The longer measurements of the engine of processes: `python benchmarks/processes.py`, ten minutes, machine idle.

Writes `benchmarks/results/processes.json` and `processes.md`: what gossip between real processes costs, what it gains
over all-reduce, and how far they are from the virtual engine's pairing in averagings per gradient and in consensus
distance. Times are wall-clock times, because waiting is what this is about.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import pages
import torch
import torch.distributed as dist

from gossip import BATCH, IMAGES, SIZE
from unlocked.artifact import record, train
from unlocked.artifact.config import Bases, load_scale
from unlocked.gossip.clock import Slowdown
from unlocked.gossip.distributed import rendezvous
from unlocked.gossip.distributed.exchange import Memory
from unlocked.gossip.distributed.wire import Channel, read
from unlocked.items.measures import settled
from unlocked.papers import PAPERS
from unlocked.papers.acid import settings as acid
from unlocked.papers.acid.processes.training import ProcessTraining
from unlocked.papers.acid.tables import distributions
from unlocked.vision.data import Dataset

# Ratios: every run trains on noise as a training does but for its evaluations, with two workers, or with four that
# sleep for most of a gradient

PAIR, WAITERS = 2, 4
WAIT_MILLISECONDS = 20.0  # that a gradient leaves the processor free, as on a GPU
LENGTH = {"mlp": 8, "conv": 2}  # times `Options.gradients` a run takes, for about a second each
NEVER = 1e-9  # communications per gradient: none at all
DENSE = 64.0  # communications per gradient: much gossip, few gradients beside
MEANINGS = {
    "gossip_on_off_mlp_2": "gradients per second with gossip / without, 2 workers, multilayer perceptron",
    "gossip_on_off_conv_2": "the same, small convolutional net",
    "gossip_on_off_waiting_4": "the same, 4 workers, perceptron; a gradient leaves the processor free for 20 ms",
    "async_vs_ddp_straggler": "time of DistributedDataParallel / of A²CiD², one worker of 2 slowed twofold",
    "averaging_vs_raw": "pair averagings per second, with gradients beside / exchanges of as many bytes by gloo alone",
    "core_milliseconds_per_averaging": "CPU time of both workers in asking, answering and averaging (perceptron)",
    "core_milliseconds_floor": "the same of a bare exchange: two copies in shared memory, a byte each way",
    "idle_cpu": "CPU seconds of a worker's gossip threads beyond transfers and updates / second (perceptron)",
    "milliseconds_per_gradient_mlp": "without gossip",
    "milliseconds_per_gradient_conv": "without gossip",
    "communications_per_gradient_mlp": "per worker, of 1 that is asked for",
    "communications_per_gradient_conv": "per worker, of 1 that is asked for",
    "microseconds_per_exchange": "of the bytes of the small convolutional net, by gloo alone",
}


def ratios(options: pages.Options) -> dict[str, float]:
    """All ratios; contestants of a ratio take turns."""
    numbers: dict[str, float] = {}
    for network in ("mlp", "conv"):
        runs = {"on": run_of(network, options), "off": run_of(network, options, rate=NEVER)}
        turns = race(runs, options.turns)
        numbers[f"gossip_on_off_{network}_{PAIR}"] = pages.ratio(speeds(turns["on"]), speeds(turns["off"]))
        numbers[f"milliseconds_per_gradient_{network}"] = 1e3 * PAIR / median(speeds(turns["off"]))
        numbers[f"communications_per_gradient_{network}"] = median(2 * o.averagings / o.gradients for o in turns["on"])
        if network == "mlp":
            numbers["idle_cpu"] = median(o.overhead_cpu / (PAIR * o.seconds) for o in turns["on"])
            numbers["core_milliseconds_per_averaging"] = median(
                1e3 * (o.useful_cpu + o.overhead_cpu) / o.averagings for o in turns["on"]
            )
    factor = WAIT_MILLISECONDS / numbers["milliseconds_per_gradient_mlp"]
    waiting: dict[str, Any] = {"workers": WAITERS, "clock": Slowdown(WAITERS, max(1.0, factor))}
    few = replace(options, gradients=max(WAITERS, options.gradients // 4))
    turns = race({"on": run_of("mlp", few, **waiting), "off": run_of("mlp", few, rate=NEVER, **waiting)}, options.turns)
    numbers["gossip_on_off_waiting_4"] = pages.ratio(speeds(turns["on"]), speeds(turns["off"]))
    kinds = {"ddp": acid.ProcessAllReduce, "async": acid.ProcessAcid}
    runs = {name: run_of("conv", options, kind, clock=Slowdown(1)) for name, kind in kinds.items()}
    turns = race(runs, options.turns)
    numbers["async_vs_ddp_straggler"] = pages.ratio(*([o.seconds for o in turns[name]] for name in kinds))
    return numbers | averagings(options)


def noise() -> Dataset:
    """In Fashion-MNIST's place."""
    return pages.noise(IMAGES, SIZE, 1, 1)


def run_of(
    network: str, options: pages.Options, kind: type[acid.ProcessRun] = acid.ProcessAcid, **settings: Any
) -> acid.ProcessRun:
    """A run without evaluations; the noise stands in Fashion-MNIST's place."""
    if issubclass(kind, acid.ProcessAcid):
        settings["graph"] = "complete"
    epochs = options.gradients * LENGTH[network] * BATCH / IMAGES
    return kind(
        data=acid.PartitionedData(name="fashion_mnist", train_limit=IMAGES),
        model=acid.Network(name=network),
        workers=settings.pop("workers", PAIR),
        optim=acid.LargeBatch(lr=0.02, batch_size=BATCH, epochs=epochs),
        evaluation=acid.Evaluation(points=1, workers="never"),
        **settings,
    )


@dataclass(frozen=True)
class Outcome:
    """What a run did, and in what time."""

    gradients: int
    averagings: int
    seconds: float
    useful_cpu: float  # seconds over all workers, of gossip: in transfers and updates
    overhead_cpu: float  # all the rest


def outcome(run: acid.ProcessRun) -> Outcome:
    """Train once."""
    training = ProcessTraining(run, noise())
    try:
        for _ in training.advance(0, 0):
            pass
        assert training.coordinator is not None
        seconds, counts = training.coordinator.finish().seconds, training.counts()
        tallies = training.tallies()
        cpu = [sum(getattr(tally, f"{name}cpu_seconds") for tally in tallies) for name in ("useful_", "overhead_")]
        return Outcome(counts["gradients"], counts.get("communications", 0), seconds, *cpu)
    finally:
        training.close()


def race(runs: Mapping[str, acid.ProcessRun], turns: int) -> dict[str, list[Outcome]]:
    """Every run in every turn. Turn 0 warms up and does not count."""
    outcomes = [{name: outcome(run) for name, run in runs.items()} for _ in range(turns + 1)]
    return {name: [turn[name] for turn in outcomes[1:]] for name in runs}


def speeds(outcomes: list[Outcome]) -> list[float]:
    """Gradients per second."""
    return [o.gradients / o.seconds for o in outcomes]


def averagings(options: pages.Options) -> dict[str, float]:
    """Pair averagings of two workers that owe more than they can do, against exchanges of as many bytes alone.

    Now and then a gradient is taken: a worker that is told to wait for its partner does not wait.
    """
    few = max(PAIR * 4, options.gradients // 8)
    run = run_of("conv", replace(options, gradients=few // LENGTH["conv"]), rate=DENSE)
    size, count = len(ProcessTraining(run, noise()).start), max(16, int(few * DENSE / PAIR))
    perceptron = len(ProcessTraining(run_of("mlp", options), noise()).start)
    turns = [(outcome(run), bare(size, count)) for _ in range(options.turns + 1)][1:]
    return {
        "averaging_vs_raw": median(done.averagings / done.seconds * raw["gloo"] for done, raw in turns),
        "microseconds_per_exchange": median(1e6 * raw["gloo"] for _, raw in turns),
        "core_milliseconds_floor": median(1e3 * bare(perceptron, count)["cpu"] for _ in range(options.turns)),
    }


def bare(size: int, count: int) -> dict[str, float]:
    """Exchanges of float32 vectors of length `size` between two processes that do nothing else: seconds of one by gloo,
    and CPU seconds of one through shared memory.
    """
    store, port = rendezvous.serve("127.0.0.1")
    context, lines, ends = multiprocessing.get_context("forkserver"), socket.socketpair(), []
    for worker, line in enumerate(lines):
        here, there = socket.socketpair()
        context.Process(target=exchange_alone, args=(there, line, port, worker, size, count)).start()
        there.close()
        line.close()
        ends.append(Channel(here))
    (one, *cpu), (other, *more) = (end.receive()[1:] for end in ends)
    del store
    return {"gloo": max(one, other) / count, "cpu": (cpu[0] + more[0]) / count}


def exchange_alone(end: socket.socket, line: socket.socket, port: int, worker: int, size: int, count: int) -> None:
    """One side: say what `count` exchanges took."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = rendezvous.interface_name("lo")
    store = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    dist.init_process_group("gloo", store=store, rank=worker, world_size=PAIR)
    x, received = torch.zeros(size), torch.zeros(size)
    begun = 0.0
    for turn in range(count + 1):
        if turn == 1:  # the first one connects
            begun = time.perf_counter()
        for work in [dist.isend(x, 1 - worker), dist.irecv(received, 1 - worker)]:
            assert work is not None
            work.wait()
    seconds = time.perf_counter() - begun
    Channel(end).send("took", seconds, share(line, worker, x, count))
    dist.destroy_process_group()


def share(line: socket.socket, worker: int, x: torch.Tensor, count: int) -> float:
    """CPU seconds of one side where worker 0 asks and worker 1 answers, as `gossip.distributed.exchange` has it."""
    memory, where, mark = Memory.made(x, 1)
    channel = Channel(line)
    channel.send("memory", where, mark)
    _, where, mark = channel.receive()
    sent, back = (memory if worker == 0 else Memory.opened(x, where, mark) or memory).pair(0)
    begun = time.process_time()
    for _ in range(count):
        if worker == 0:
            sent.copy_(x)
            line.sendall(b"a")
            read(line, 1)
        else:
            read(line, 1)
            back.copy_(x)
            line.sendall(b"d")
    return time.process_time() - begun


# Against the virtual engine

WORKERS, GRADIENTS, STRETCH = 4, 896, 12.0
METHODS, GRAPHS, RATES = ("baseline", "acid"), ("ring", "complete"), (0.5, 1.0, 2.0)
ENGINES: dict[str, dict[str, Any]] = {
    "virtual": {"pairing": "availability", "gradient_read": "start", "clock.law": "gamma"},
    "processes": {"engine": "processes", "clock.slow_workers": WORKERS, "clock.slow_factor": STRETCH},
}


def agreement(graph: str, rate: float, seeds: int, results: Path) -> pages.Rows:
    """Both engines, with and without momentum, on the same settings: trainings on the digits."""
    shared = {"graph": graph, "rate": rate, "workers": WORKERS, "evaluation.points": 10}
    shared["optim.epochs"] = (GRADIENTS + 0.5) / (1437 // 8)
    bases = Bases(PAPERS["acid"], load_scale("quick"), {"wandb": "disabled"})
    cases = itertools.product(METHODS, ENGINES.values(), range(seeds))
    runs = [bases.run({**shared, **engine, "method": method, "seed": seed}) for method, engine, seed in cases]
    train.train(runs, results)
    frames = record.frames(record.load(record.folder_of(results, run)) for run in runs)
    talks = 2 * frames.runs["counts.communications"] / frames.runs["counts.gradients"]
    means = frames.runs.assign(talks=talks, distance=settled(frames, "consensus_distance"))
    means = means.groupby(["method", "engine"])[["talks", "distance"]].mean()
    ratio = means.distance.xs("processes", level="engine") / means.distance.xs("virtual", level="engine")
    variation = distributions(frames.runs)["variation"]
    return [
        {
            "method": method,
            "graph": graph,
            "rate": rate,
            "communications per gradient, virtual": means.talks[method, "virtual"],
            "processes": means.talks[method, "processes"],
            "total variation": variation[method, "processes"],
            "consensus distance, processes / virtual": ratio[method],
        }
        for method in METHODS
    ]


def measure(options: argparse.Namespace) -> dict[str, pages.Rows]:
    """All tables."""
    numbers = ratios(pages.Options(turns=options.turns))
    with tempfile.TemporaryDirectory() as folder:
        cases = [agreement(*case, options.seeds, Path(folder)) for case in itertools.product(GRAPHS, RATES)]
    return {
        "ratios": pages.meant(numbers, MEANINGS),
        "agreement": [row for rows in cases for row in rows],
    }


TEXT = f"""# The engine of processes, measured

Written by `python benchmarks/processes.py`. {{environment}}. Wall-clock times.

## Ratios

{{ratios}}

## Against the virtual engine

{WORKERS} workers, the digits, {GRADIENTS} gradients in all, {{seeds}} seeds; every real gradient is stretched by a
factor of {STRETCH:g} (sleeping), so that the workers do not compete for the cores. Virtual time: gradient durations of
a gamma law, coefficient of variation 0.3, pairing by availability. Total variation between the distributions of the
number of averagings from one gradient of a worker to its next: 0 if they are the same. Consensus distance over the
second half.

{{agreement}}
"""

if __name__ == "__main__":
    pages.write("processes", TEXT, measure, turns=7, seeds=3)
