"""`unlocked bench gossip`: the virtual engine against bare gradients, on one thread.

Times are CPU times, which other programs on the machine disturb least.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from omegaconf import DictConfig
from torch.nn.functional import cross_entropy

from unlocked import config
from unlocked.bench import Options, race, ratio
from unlocked.gossip import virtual
from unlocked.gossip.schedule import GRADIENT, levels
from unlocked.gossip.workers import build_model
from unlocked.vision.data import Dataset, Split

WORKERS = 64
IMAGES, SIZE, BATCH = 4096, 14, 16


def measure(options: Options) -> dict[str, float]:
    """The virtual engine on a 64-ring: its overhead over bare gradients, and what batching the workers gains."""
    found: dict[str, float] = {}
    for network in ("conv", "mlp"):
        times = race(contestants(network, options), options.turns)
        suffix = "" if network == "conv" else f"_{network}"
        found[f"engine_overhead{suffix}"] = ratio(times["loop"], times["bare"])
        found[f"batched_speedup_{network}_{WORKERS}"] = ratio(times["loop"], times["batched"])
        found[f"milliseconds_per_gradient_{network}"] = 1e3 * median(times["bare"]) / options.gradients
    return found


MEANINGS = {
    "engine_overhead": "time of a run's events one worker at a time / of the bare gradients (small convolutional net)",
    "engine_overhead_mlp": "the same, multilayer perceptron",
    "batched_speedup_conv_64": "time one worker at a time / with the workers of a level batched, n = 64",
    "batched_speedup_mlp_64": "the same, multilayer perceptron",
    "milliseconds_per_gradient_conv": "of the bare gradients",
    "milliseconds_per_gradient_mlp": "of the bare gradients",
}


def noise_data(size: int = SIZE, images: int = IMAGES) -> Dataset:
    """Grey images and labels drawn at random, cropped and flipped when served as photographs are."""
    draws = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        pixels = torch.randint(256, (count, 1, size, size), generator=draws, dtype=torch.uint8)
        return Split(pixels, torch.randint(10, (count,), generator=draws), (0.5,), (0.29,), "crop_flip", 1)

    return Dataset("noise", split(images), split(BATCH), 10, 1, size, "drawn at random", "none")


def gossip_run(network: str, execution: str, options: Options) -> DictConfig:
    """A run on the ring with as many equal spans as turns; the noise stands in Fashion-MNIST's place."""
    turns = options.turns + 1
    settings = {
        "data.name": "fashion_mnist",
        "data.train_limit": IMAGES,
        "model.name": network,
        "workers": WORKERS,
        "optim.batch_size": BATCH,
        "optim.epochs": turns * options.gradients * BATCH / IMAGES,
        "evaluation.points": turns,
        "runtime.execution": execution,
    }
    return config.resolve(config.defaults("acid", config.load_scale("quick")), settings)


def contestants(network: str, options: Options) -> dict[str, Callable[[int], None]]:
    """Bare gradients, the engine's loop, and the engine batched; each does the same gradients in a turn."""
    torch.set_num_threads(1)
    data = noise_data()
    runs = {execution: gossip_run(network, execution, options) for execution in ("loop", "batched")}
    trainings = {execution: virtual.Training(run, data) for execution, run in runs.items()}
    bare = bare_gradients(trainings["loop"], data)

    def engine(training: virtual.Training) -> Callable[[int], None]:
        def go(turn: int) -> None:
            for _ in training.advance(turn, 0):
                pass

        return go

    return {"bare": bare, **{name: engine(training) for name, training in trainings.items()}}


def bare_gradients(training: virtual.Training, data: Dataset) -> Callable[[int], None]:
    """The floor: networks of their own and batches that lie ready; forward and backward and nothing else."""
    run, events = training.run, training.events
    networks = [build_model(run, data, run.seed).train() for _ in range(run.workers)]
    turns, steps = [], [0] * run.workers
    for span in training.cuts:
        work = []
        for computing, _ in levels(events, span):
            for worker in events.i[computing].tolist():
                images, labels = training.streams.batches(data, [worker], [steps[worker]])
                work.append((networks[worker], images[0], labels[0]))
                steps[worker] += 1
        turns.append(work)
    assert sum(map(len, turns)) == int((events.kind == GRADIENT).sum())

    def go(turn: int) -> None:
        for network, images, labels in turns[turn]:
            network.zero_grad()
            cross_entropy(network(images), labels).backward()

    return go
