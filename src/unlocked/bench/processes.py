"""`unlocked bench processes`: what gossip between real processes costs, and what it gains over all-reduce.

Every run trains on noise with two workers, on loopback, as a training does but for its evaluations. Times are
wall-clock times, because waiting is what this is about: nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig

from unlocked import config
from unlocked.bench import Options, ratio
from unlocked.bench.gossip import BATCH, IMAGES, noise_data
from unlocked.gossip.processes import pairs
from unlocked.gossip.processes.training import Training

WORKERS = 2
LENGTH = {"mlp": 8, "conv": 2}  # times `Options.gradients` a run takes, for about a second each
NEVER = 1e-9  # communications per gradient: none at all
DENSE = 64.0  # communications per gradient: much gossip, few gradients beside


def measure(options: Options) -> dict[str, float]:
    """All ratios; contestants of a ratio take turns."""
    found: dict[str, float] = {}
    for network in ("mlp", "conv"):
        runs = {name: run_of(network, options, rate=rate) for name, rate in (("on", 1.0), ("off", NEVER))}
        turns = race(runs, options.turns)
        found[f"gossip_on_off_{network}_{WORKERS}"] = ratio(speeds(turns["on"]), speeds(turns["off"]))
        found[f"milliseconds_per_gradient_{network}"] = 1e3 * WORKERS / median(speeds(turns["off"]))
        found[f"communications_per_gradient_{network}"] = median(2 * o.averagings / o.gradients for o in turns["on"])
        if network == "mlp":
            found["idle_cpu"] = median(o.overhead_cpu / (WORKERS * o.seconds) for o in turns["on"])
    slow = {"clock.slow_workers": 1, "clock.slow_factor": 2.0}
    turns = race({m: run_of("conv", options, method=m, **slow) for m in ("allreduce", "acid")}, options.turns)
    found["async_vs_ddp_straggler"] = ratio(*([o.seconds for o in turns[m]] for m in ("allreduce", "acid")))
    return found | averagings(options)


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


@dataclass(frozen=True)
class Outcome:
    """What a run did, and in what time."""

    gradients: int
    averagings: int
    seconds: float
    overhead_cpu: float  # seconds over all workers


def run_of(network: str, options: Options, **settings: Any) -> DictConfig:
    """A run without evaluations; the noise stands in Fashion-MNIST's place."""
    gradients = options.gradients * LENGTH[network]
    base = {
        "engine": "processes",
        "data.name": "fashion_mnist",
        "data.train_limit": IMAGES,
        "model.name": network,
        "workers": WORKERS,
        "graph": "complete",
        "owed": "deterministic",
        "optim.batch_size": BATCH,
        "optim.epochs": gradients * BATCH / IMAGES,
        "evaluation.points": 1,
        "evaluation.workers": "never",
    }
    return config.resolve(config.defaults("acid", config.load_scale("quick")), base | settings)


def outcome(run: DictConfig) -> Outcome:
    """Train once."""
    training = Training(run, noise_data())
    try:
        for _ in training.advance(0, 0):
            pass
        assert training.coordinator is not None
        sample = training.coordinator.finish()
        counts = training.counts()
        overhead = sum(view.tally.overhead_cpu_seconds for view in sample.views.values())
        return Outcome(counts["gradients"], counts.get("communications", 0), sample.seconds, overhead)
    finally:
        training.close()


def race(runs: dict[str, DictConfig], turns: int) -> dict[str, list[Outcome]]:
    """Every run in every turn. Turn 0 warms up and does not count."""
    found: dict[str, list[Outcome]] = {name: [] for name in runs}
    for _ in range(turns + 1):
        for name, run in runs.items():
            found[name].append(outcome(run))
    return {name: outcomes[1:] for name, outcomes in found.items()}


def speeds(outcomes: list[Outcome]) -> list[float]:
    """Gradients per second."""
    return [o.gradients / o.seconds for o in outcomes]


def averagings(options: Options) -> dict[str, float]:
    """Pair averagings of two workers that owe more than they can do, against exchanges of as many bytes alone.

    Now and then a gradient is taken: a worker that is told to wait for its partner does not wait.
    """
    gradients = max(WORKERS * 4, options.gradients // 8)
    run = run_of("conv", options, rate=DENSE, **{"optim.epochs": gradients * BATCH / IMAGES})
    size = len(Training(run, noise_data()).start)
    ratios, raws = [], []
    for turn in range(options.turns + 1):
        done = outcome(run)
        raw = exchanges_per_second(size, max(16, int(gradients * DENSE / WORKERS)))
        if turn:
            ratios.append(done.averagings / done.seconds / raw)
            raws.append(1e6 / raw)
    return {"averaging_vs_raw": median(ratios), "microseconds_per_exchange": median(raws)}


def exchanges_per_second(size: int, count: int) -> float:
    """Of float32 vectors of length `size` between two processes that do nothing else."""
    bound = socket.create_server(("127.0.0.1", 0))
    address = bound.getsockname()[:2]
    store = dist.TCPStore(*address, is_master=True, wait_for_workers=False, master_listen_fd=bound.detach())
    context = multiprocessing.get_context("forkserver")
    ends = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=exchange_alone, args=(there, address, worker, size, count))
        for worker, (_, there) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    seconds = max(here.recv() for here, _ in ends)
    for process in processes:
        process.join()
    del store
    return count / seconds


def exchange_alone(line: Any, address: tuple[str, int], worker: int, size: int, count: int) -> None:
    """One side: send the seconds that `count` exchanges took."""
    torch.set_num_threads(1)
    sent, received = torch.zeros(size), torch.zeros(size)
    own = pairs.Pairs(pairs.store(address, 60.0), worker, sent, backend="gloo", interface="lo", timeout=60.0)
    own.exchange(1 - worker, sent, received)
    begun = time.perf_counter()
    for _ in range(count):
        own.exchange(1 - worker, sent, received)
    line.send(time.perf_counter() - begun)
