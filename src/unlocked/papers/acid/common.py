"""What trainings in the simulator and by processes make of a run's settings: the same start, streams, rates."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unlocked import optim, seeding
from unlocked.gossip.workers import Evaluator, Streams, flat_parameters
from unlocked.papers.acid.settings import NetworkRun
from unlocked.vision import models
from unlocked.vision.data import Dataset
from unlocked.vision.evaluate import has_batch_norm
from unlocked.vision.partition import partition


def build_model(run: NetworkRun, data: Dataset, seed: int | None = None) -> nn.Module:
    """The run's network on its device, with the initialisation of `seed` (None: the run's own)."""
    shape = {"classes": data.classes, "channels": data.channels, "size": data.size}
    chosen = run.seed if seed is None else seed
    model = models.build(run.model.name, **shape, width=run.model.width, seed=chosen).to(run.runtime.device)
    # a tenth faster on CPUs for the ResNets; not for the small nets, and only they can be stacked, in the usual layout
    return model.to(memory_format=torch.channels_last) if has_batch_norm(model) else model


def initial_parameters(run: NetworkRun, data: Dataset, model: nn.Module) -> Tensor:
    """The vector (d,) that all workers start from; `model` is the run's network as it was built.

    `common`: one draw. `mean_of_independent`: the average of one draw per worker, as the released code has it, which
    shrinks the norm of the weights by the square root of the number of workers.
    """
    if getattr(run, "init", "common") == "common":
        return flat_parameters(model)
    seeds = [seeding.integer(run.seed, "independent initialisation", worker) for worker in range(run.workers)]
    return torch.stack([flat_parameters(build_model(run, data, seed)) for seed in seeds]).mean(0)


def streams_of(run: NetworkRun, data: Dataset) -> Streams:
    """Every worker's part of the data, and the order in which it goes through it."""
    labels, kind = data.train.labels.cpu().numpy(), run.data.partition
    parts = partition(kind, labels, run.workers, seed=run.seed, concentration=run.data.concentration)
    return Streams(parts, run.seed, run.optim.batch_size)


def learning_rate(run: NetworkRun, step: int) -> float:
    """After `step` gradients over all workers."""
    settings = run.optim
    if settings.schedule == "constant":
        return settings.lr
    budget = (run.total_gradients, settings.epochs, settings.batch_size, run.workers)
    return settings.lr * optim.large_batch_factor(step, *budget, settings.milestones, settings.warmup_epochs)


def sgd_of(run: NetworkRun, model: nn.Module, longest: int, computes: Tensor | None = None) -> optim.Sgd:
    """The optimiser of every worker; `longest` is the number of gradients of the fastest one.

    computes: the workers of all gradients in order of time, where the schedule counts over all workers.
    """
    rates, own = [learning_rate(run, k * run.workers) for k in range(longest)], None
    if computes is not None:
        steps = [(computes == worker).nonzero().flatten().tolist() for worker in range(run.workers)]
        own = [[learning_rate(run, step) for step in mine] for mine in steps]
    return optim.Sgd(run.optim.momentum, optim.decay_vector(model, run.optim.weight_decay), rates, own)


def evaluator_of(run: NetworkRun, model: nn.Module, data: Dataset) -> Evaluator:
    """What measures the average and the workers, with `model` at their parameters."""
    batches, images = run.evaluation.recalibration_batches, run.evaluation.train_limit
    return Evaluator(model, data, run.seed, run.optim.batch_size, run.batch_norm, batches, images)
