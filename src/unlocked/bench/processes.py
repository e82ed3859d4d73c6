"""`unlocked bench processes`: what gossip between real processes costs, and what it gains over all-reduce.

Every run trains on noise with two workers, on loopback, as a training does but for its evaluations. Times are
wall-clock times, because waiting is what this is about: nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from unlocked.bench import Options, ratio
from unlocked.bench.gossip import BATCH, IMAGES, noise_data
from unlocked.gossip.distributed import exchange, rendezvous
from unlocked.papers.acid import settings as acid
from unlocked.papers.acid.processes.training import ProcessTraining

WORKERS = 2
LENGTH = {"mlp": 8, "conv": 2}  # times `Options.gradients` a run takes, for about a second each
NEVER = 1e-9  # communications per gradient: none at all
DENSE = 64.0  # communications per gradient: much gossip, few gradients beside
MEANINGS = {
    "gossip_on_off_mlp_2": "gradients per second with gossip / without, 2 workers, multilayer perceptron",
    "gossip_on_off_conv_2": "the same, small convolutional net",
    "async_vs_ddp_straggler": "time of DistributedDataParallel / of A²CiD², one worker of 2 slowed twofold",
    "averaging_vs_raw": "pair averagings per second, with gradients beside / exchanges of as many bytes by gloo alone",
    "idle_cpu": "CPU seconds of a worker's gossip threads beyond transfers and updates / second (perceptron)",
    "milliseconds_per_gradient_mlp": "without gossip",
    "milliseconds_per_gradient_conv": "without gossip",
    "communications_per_gradient_mlp": "per worker, of 1 that is asked for",
    "communications_per_gradient_conv": "per worker, of 1 that is asked for",
    "microseconds_per_exchange": "of the bytes of the small convolutional net, by gloo alone",
}


def measure(options: Options) -> dict[str, float]:
    """All ratios; contestants of a ratio take turns."""
    numbers: dict[str, float] = {}
    for network in ("mlp", "conv"):
        runs = {"on": run_of(network, options), "off": run_of(network, options, rate=NEVER)}
        turns = race(runs, options.turns)
        numbers[f"gossip_on_off_{network}_{WORKERS}"] = ratio(speeds(turns["on"]), speeds(turns["off"]))
        numbers[f"milliseconds_per_gradient_{network}"] = 1e3 * WORKERS / median(speeds(turns["off"]))
        numbers[f"communications_per_gradient_{network}"] = median(2 * o.averagings / o.gradients for o in turns["on"])
        if network == "mlp":
            numbers["idle_cpu"] = median(o.overhead_cpu / (WORKERS * o.seconds) for o in turns["on"])
    kinds = {"ddp": acid.ProcessAllReduce, "async": acid.ProcessAcid}
    runs = {name: run_of("conv", options, kind, clock=acid.Slowdown(1)) for name, kind in kinds.items()}
    turns = race(runs, options.turns)
    numbers["async_vs_ddp_straggler"] = ratio(*([o.seconds for o in turns[name]] for name in kinds))
    return numbers | averagings(options)


def run_of(
    network: str, options: Options, kind: type[acid.ProcessRun] = acid.ProcessAcid, **settings: Any
) -> acid.ProcessRun:
    """A run without evaluations; the noise stands in Fashion-MNIST's place."""
    if issubclass(kind, acid.ProcessAcid):
        settings["graph"] = "complete"
    epochs = options.gradients * LENGTH[network] * BATCH / IMAGES
    return kind(
        data=acid.PartitionedData(name="fashion_mnist", train_limit=IMAGES),
        model=acid.Network(name=network),
        workers=WORKERS,
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
    overhead_cpu: float  # seconds over all workers


def outcome(run: acid.ProcessRun) -> Outcome:
    """Train once."""
    training = ProcessTraining(run, noise_data())
    try:
        for _ in training.advance(0, 0):
            pass
        assert training.coordinator is not None
        seconds, counts = training.coordinator.finish().seconds, training.counts()
        overhead = sum(tally.overhead_cpu_seconds for tally in training.tallies())
        return Outcome(counts["gradients"], counts.get("communications", 0), seconds, overhead)
    finally:
        training.close()


def race(runs: Mapping[str, acid.ProcessRun], turns: int) -> dict[str, list[Outcome]]:
    """Every run in every turn. Turn 0 warms up and does not count."""
    outcomes = [{name: outcome(run) for name, run in runs.items()} for _ in range(turns + 1)]
    return {name: [turn[name] for turn in outcomes[1:]] for name in runs}


def speeds(outcomes: list[Outcome]) -> list[float]:
    """Gradients per second."""
    return [o.gradients / o.seconds for o in outcomes]


def averagings(options: Options) -> dict[str, float]:
    """Pair averagings of two workers that owe more than they can do, against exchanges of as many bytes alone.

    Now and then a gradient is taken: a worker that is told to wait for its partner does not wait.
    """
    few = max(WORKERS * 4, options.gradients // 8)
    run = run_of("conv", replace(options, gradients=few // LENGTH["conv"]), rate=DENSE)
    size, count = len(ProcessTraining(run, noise_data()).start), max(16, int(few * DENSE / WORKERS))
    turns = [(outcome(run), exchanges_per_second(size, count)) for _ in range(options.turns + 1)][1:]
    return {
        "averaging_vs_raw": median(done.averagings / done.seconds / raw for done, raw in turns),
        "microseconds_per_exchange": median(1e6 / raw for _, raw in turns),
    }


def exchanges_per_second(size: int, count: int) -> float:
    """Of float32 vectors of length `size` between two processes that do nothing else."""
    store, port = rendezvous.serve("127.0.0.1")
    context = multiprocessing.get_context("forkserver")
    ends = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=exchange_alone, args=(there, port, worker, size, count))
        for worker, (_, there) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    seconds = max(here.recv() for here, _ in ends)
    for process in processes:
        process.join()
    del store
    return count / seconds


def exchange_alone(line: Connection, port: int, worker: int, size: int, count: int) -> None:
    """One side: send the seconds that `count` exchanges took."""
    torch.set_num_threads(1)
    sent, received = torch.zeros(size), torch.zeros(size)
    store = exchange.store(("127.0.0.1", port), 60.0)
    own = exchange.Peers(store, worker, sent, backend="gloo", interface="lo", timeout=60.0)
    own.exchange(1 - worker, sent, received)
    begun = time.perf_counter()
    for _ in range(count):
        own.exchange(1 - worker, sent, received)
    line.send(time.perf_counter() - begun)
