"""Evaluation weighs samples equally and leaves the model as it was; recalibration gives the averages it promises."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unlocked import seeding
from unlocked.vision import models
from unlocked.vision.data import Split
from unlocked.vision.evaluate import accuracy_and_loss, has_batch_norm, recalibrate_


@pytest.fixture
def split() -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 4, (50,), generator=generator)
    return Split(images, labels, (0.5,), (0.3,), "crop_flip", 1)


def normed() -> nn.Module:
    """A net with BatchNorm right at the input, so that its true statistics are those of the images."""
    return nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 4))


@pytest.mark.parametrize(("batch_size", "indices"), [(1, None), (7, None), (512, None), (2, [3, 9, 4])])
def test_every_sample_weighs_the_same(split: Split, batch_size: int, indices: Sequence[int] | None) -> None:
    model = models.build("conv", classes=4, channels=1, size=8, seed=0)
    images, labels = split.batch(range(50) if indices is None else indices)
    logits = model(images)
    accuracy, loss = accuracy_and_loss(model, split, batch_size=batch_size, indices=indices)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_evaluation_changes_nothing_even_when_it_fails(split: Split) -> None:
    model = normed()
    model[2].eval()  # a layer that somebody froze stays frozen
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy_and_loss(model, split)
    with pytest.raises(RuntimeError):
        accuracy_and_loss(model, Split(split.images[:, :, :4], split.labels, (0.5,), (0.3,)))
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_has_batch_norm() -> None:
    assert has_batch_norm(models.build("resnet18", classes=4, channels=1, size=8, width=0.07))
    assert not has_batch_norm(models.build("conv", classes=4, channels=1, size=8))
    assert not has_batch_norm(nn.BatchNorm2d(3, track_running_stats=False))


def test_recalibration_averages_the_batches_statistics(split: Split) -> None:
    """Also over more samples than there are: the order begins anew."""
    model = normed().eval()
    model[0].running_mean.fill_(123.0)
    weights = nn.utils.parameters_to_vector(model.parameters()).clone()
    recalibrate_(model, split, batches=6, batch_size=10, seed=5)
    order = torch.from_numpy(seeding.generator(5, "recalibrate").permutation(50))
    parts = torch.cat([order, order[:10]]).view(6, 10)
    batches = [split.batch(part, seeding.integer(5, "recalibrate", b))[0] for b, part in enumerate(parts)]
    assert model[0].running_mean.item() == pytest.approx(sum(b.mean().item() for b in batches) / 6, abs=1e-5)
    assert model[0].running_var.item() == pytest.approx(sum(b.var().item() for b in batches) / 6, rel=1e-5)
    assert model[0].momentum == 0.1
    assert not model.training
    assert torch.equal(weights, nn.utils.parameters_to_vector(model.parameters()))
