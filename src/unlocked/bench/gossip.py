"""`unlocked bench gossip`: the simulator against bare gradients, on one thread, in CPU time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch
from torch.nn.functional import cross_entropy

from unlocked.bench import Options, race, ratio
from unlocked.papers.acid.common import build_model
from unlocked.papers.acid.settings import Acid, Evaluation, LargeBatch, Network, PartitionedData, SimulatorRuntime
from unlocked.papers.acid.training import GossipTraining
from unlocked.vision.data import Dataset, Split

WORKERS = 64
IMAGES, SIZE, BATCH = 4096, 14, 16
MEANINGS = {
    "engine_overhead": "time of a run's events one worker at a time / of the bare gradients (small convolutional net)",
    "engine_overhead_mlp": "the same, multilayer perceptron",
    "batched_speedup_conv_64": "time one worker at a time / with the workers of a level batched, n = 64",
    "batched_speedup_mlp_64": "the same, multilayer perceptron",
    "autograd_slowdown_mlp": "time one worker at a time by autograd / without it, multilayer perceptron",
    "milliseconds_per_gradient_conv": "of the bare gradients",
    "milliseconds_per_gradient_mlp": "of the bare gradients",
}


def measure(options: Options) -> dict[str, float]:
    """On a 64-ring: the simulator's overhead over bare gradients, and what batching the workers gains."""
    numbers: dict[str, float] = {}
    for network, suffix in (("conv", ""), ("mlp", "_mlp")):
        times = race(contestants(network, options), options.turns)
        numbers[f"engine_overhead{suffix}"] = ratio(times["loop"], times["bare"])
        numbers[f"batched_speedup_{network}_{WORKERS}"] = ratio(times["loop"], times["batched"])
        if "autograd" in times:
            numbers[f"autograd_slowdown_{network}"] = ratio(times["autograd"], times["loop"])
        numbers[f"milliseconds_per_gradient_{network}"] = 1e3 * median(times["bare"]) / options.gradients
    return numbers


def noise_data() -> Dataset:
    """Grey images and labels drawn at random, cropped and flipped when served as photographs are."""
    draws = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        pixels = torch.randint(256, (count, 1, SIZE, SIZE), generator=draws, dtype=torch.uint8)
        return Split(pixels, torch.randint(10, (count,), generator=draws), (0.5,), (0.29,), "crop_flip", 1)

    return Dataset("noise", split(IMAGES), split(BATCH), 10, 1, SIZE, "drawn at random", "none")


def contestants(network: str, options: Options) -> dict[str, Callable[[], object]]:
    """Bare gradients, the engine's loop, of a chain also by autograd, and the engine batched; each does
    `options.gradients` gradients in a turn.
    """
    torch.set_num_threads(1)
    data, turns = noise_data(), options.turns + 1
    run = Acid(
        data=PartitionedData(name="fashion_mnist", train_limit=IMAGES),  # in whose place the noise stands
        model=Network(name=network),
        workers=WORKERS,
        optim=LargeBatch(lr=0.02, batch_size=BATCH, epochs=turns * options.gradients * BATCH / IMAGES),
        evaluation=Evaluation(points=turns),
    )
    ways = {way: replace(run, runtime=SimulatorRuntime(execution=way)) for way in ("loop", "batched")}
    trainings = {way: GossipTraining(own, data) for way, own in ways.items()}
    if trainings["loop"].networks.chain is not None:
        trainings["autograd"] = GossipTraining(ways["loop"], data)
        trainings["autograd"].networks.chain = None
    spans = {way: engine_turns(training) for way, training in trainings.items()}
    return {
        name: partial(next, own) for name, own in {"bare": bare_turns(run, data, options.gradients), **spans}.items()
    }


def engine_turns(training: GossipTraining) -> Iterator[None]:
    """A span of the training per turn."""
    for span in range(training.spans):
        for _ in training.advance(span, 0):
            pass
        yield


def bare_turns(run: Acid, data: Dataset, gradients: int) -> Iterator[None]:
    """The floor: networks of their own and a batch that lies ready; forward and backward and nothing else."""
    networks = [build_model(run, data).train() for _ in range(run.workers)]
    images, labels = torch.randn(BATCH, 1, SIZE, SIZE), torch.arange(BATCH) % 10
    for _ in range(run.evaluation.points):
        for number in range(gradients):
            network = networks[number % run.workers]
            network.zero_grad()
            cross_entropy(network(images), labels).backward()
        yield
