"""Accuracy and loss of a model, and the BatchNorm statistics that an averaged model needs first."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from unlocked import seeding
from unlocked.vision.data.splits import Indices, Split, StreamedSplit


def accuracy_and_loss(
    model: nn.Module, split: Split | StreamedSplit, *, batch_size: int = 512, indices: Indices | None = None
) -> tuple[float, float]:
    """Share of samples classified right (0 to 1) and mean cross-entropy (nats), over `indices` or the whole split.

    Every sample weighs the same, however the batches divide. The model is in evaluation mode meanwhile; it and the
    split are on the same device. Images are not augmented.
    """
    chosen = torch.arange(len(split)) if indices is None else torch.as_tensor(indices)
    right, loss = 0, 0.0  # tensors from the first batch on, so that a GPU is waited for once
    modes = {module: module.training for module in model.modules()}  # some may have been frozen
    model.eval()
    try:
        with torch.no_grad():
            for part in chosen.split(batch_size):
                images, labels = split.batch(part)
                logits = model(images)
                right += (logits.argmax(1) == labels).sum()
                loss += F.cross_entropy(logits.float(), labels, reduction="sum").double()
    finally:
        for module, training in modes.items():
            module.training = training
    return float(right) / len(chosen), float(loss) / len(chosen)


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model has BatchNorm layers that keep running statistics."""
    return any(isinstance(module, _BatchNorm) and module.running_mean is not None for module in model.modules())


def recalibrate_(model: nn.Module, split: Split | StreamedSplit, *, batches: int, batch_size: int, seed: int) -> None:
    """Replace the running statistics of BatchNorm by plain averages over seeded training batches, in place.

    The batches are augmented as in training and draw without replacement until the split is used up, then from its
    beginning again. Does nothing to a model without BatchNorm.
    """
    order = np.resize(seeding.generator(seed, "recalibrate").permutation(len(split)), (batches, batch_size))
    numbered = enumerate(order)
    update_bn((split.batch(part, seeding.integer(seed, "recalibrate", k))[0] for k, part in numbered), model)
