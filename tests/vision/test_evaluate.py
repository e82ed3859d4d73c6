"""Evaluation weighs samples equally and leaves the model as it was; recalibration gives the averages it promises."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unlocked import seeding
from unlocked.errors import SettingError
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


@pytest.mark.parametrize("batch_size", [1, 7, 50, 512])
def test_every_sample_weighs_the_same(split: Split, batch_size: int) -> None:
    model = models.build("conv", classes=4, channels=1, size=8, seed=0)
    images, labels = split.batch(range(50))
    logits = model(images)
    accuracy, loss = accuracy_and_loss(model, split, batch_size=batch_size)
    assert accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)


def test_indices_choose_the_samples(split: Split) -> None:
    model = models.build("mlp", classes=4, channels=1, size=8, seed=0)
    images, labels = split.batch([3, 9, 4])
    accuracy, loss = accuracy_and_loss(model, split, indices=[3, 9, 4], batch_size=2)
    assert accuracy == pytest.approx((model(images).argmax(1) == labels).float().mean().item())
    assert loss == pytest.approx(F.cross_entropy(model(images), labels).item(), rel=1e-5)
    for settings in ({"indices": []}, {"batch_size": 0}):
        with pytest.raises(SettingError):
            accuracy_and_loss(model, split, **settings)


def test_evaluation_changes_nothing_even_when_it_fails(split: Split) -> None:
    model = normed()
    model[2].eval()  # a layer that somebody froze stays frozen
    before = {name: value.clone() for name, value in model.state_dict().items()}
    accuracy_and_loss(model, split)
    broken = Split(split.images[:, :, :4], split.labels, (0.5,), (0.3,))
    with pytest.raises(RuntimeError):
        accuracy_and_loss(model, broken)
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_has_batch_norm() -> None:
    assert has_batch_norm(models.build("resnet18", classes=4, channels=1, size=8, width=0.07))
    assert not has_batch_norm(models.build("conv", classes=4, channels=1, size=8))
    assert not has_batch_norm(nn.BatchNorm2d(3, track_running_stats=False))


def test_recalibration_averages_the_batches_statistics(split: Split) -> None:
    model = normed().eval()
    model[0].running_mean.fill_(123.0)
    recalibrate_(model, split, batches=3, batch_size=10, seed=5)
    order = torch.from_numpy(seeding.generator(5, "recalibrate").permutation(50))[:30].view(3, 10)
    batches = [split.batch(part, seeding.integer(5, "recalibrate", b))[0] for b, part in enumerate(order)]
    assert model[0].running_mean.item() == pytest.approx(sum(b.mean().item() for b in batches) / 3, abs=1e-5)
    assert model[0].running_var.item() == pytest.approx(sum(b.var().item() for b in batches) / 3, rel=1e-5)
    assert model[0].momentum == 0.1
    assert not model.training


def test_recalibration_may_need_more_samples_than_there_are(split: Split) -> None:
    model = normed()
    recalibrate_(model, split, batches=4, batch_size=30, seed=0)
    assert model[0].num_batches_tracked.item() == 4
    with pytest.raises(SettingError):
        recalibrate_(model, split, batches=0, batch_size=30, seed=0)


def test_recalibration_leaves_other_models_and_all_weights_alone(split: Split) -> None:
    model = models.build("conv", classes=4, channels=1, size=8, seed=0)
    before = nn.utils.parameters_to_vector(model.parameters())
    recalibrate_(model, split, batches=2, batch_size=5, seed=0)
    assert torch.equal(before, nn.utils.parameters_to_vector(model.parameters()))
