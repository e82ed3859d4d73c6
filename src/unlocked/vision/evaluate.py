"""Accuracy and loss of a model, and the BatchNorm statistics that an averaged model needs first.

Road: configs -> plan -> train (vision serves it) -> record -> item.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from unlocked import seeding
from unlocked.errors import SettingError
from unlocked.vision.data import Indices, Split, StreamedSplit

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put the whole model into a mode; afterwards every module has its own again (some may have been frozen)."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


def accuracy_and_loss(
    model: nn.Module, split: Split | StreamedSplit, *, batch_size: int = 512, indices: Indices | None = None
) -> tuple[float, float]:
    """Share of samples classified right (0 to 1) and mean cross-entropy (nats), over `indices` or the whole split.

    Every sample weighs the same, however the batches divide. The model is in evaluation mode meanwhile; it and the
    split are on the same device. Images are not augmented.
    """
    if batch_size < 1:
        raise SettingError("batch_size", batch_size, "must be 1 or more")
    chosen = torch.arange(len(split)) if indices is None else torch.as_tensor(indices)
    if len(chosen) == 0:
        raise SettingError("indices", [], "must name at least one sample")
    right, loss = 0, 0.0  # tensors from the first batch on, so that a GPU is waited for once
    with _mode(model, training=False), torch.no_grad():
        for part in chosen.split(batch_size):
            images, labels = split.batch(part)
            logits = model(images)
            right += (logits.argmax(1) == labels).sum()
            loss += F.cross_entropy(logits.float(), labels, reduction="sum").double()
    return float(right) / len(chosen), float(loss) / len(chosen)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model has BatchNorm layers that keep running statistics."""
    return bool(_tracking(model))


def recalibrate_(model: nn.Module, split: Split | StreamedSplit, *, batches: int, batch_size: int, seed: int) -> None:
    """Replace the running statistics of BatchNorm by plain averages over seeded training batches, in place.

    The batches are augmented as in training and draw without replacement until the split is used up, then from its
    beginning again. Does nothing to a model without BatchNorm.
    """
    layers = _tracking(model)
    if not layers:
        return
    if batches < 1 or batch_size < 1:
        raise SettingError("batches, batch_size", (batches, batch_size), "must be 1 or more")
    order = seeding.generator(seed, "recalibrate").permutation(len(split))
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the running statistics become the average over all batches
        with _mode(model, training=True), torch.no_grad():
            for number, indices in enumerate(np.resize(order, (batches, batch_size))):
                model(split.batch(indices, seeding.integer(seed, "recalibrate", number))[0])
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _tracking(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, _BATCH_NORMS) and m.running_mean is not None]
