"""Served batches against a slow reference: crops, flips, normalisation, groups, decoded files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unlocked.vision import data
from unlocked.vision.data.splits import Split, StreamedSplit, _random_box


def small_split(augmentation: str = "crop_flip", channels: int = 3, padding: int = 2) -> Split:
    images = np.random.default_rng(0).integers(0, 256, (40, channels, 7, 7), dtype=np.uint8)
    style = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels], augmentation, padding
    return Split(torch.from_numpy(images), torch.arange(40) % 5, *style)


def normalised(images: Tensor, split: Split) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (split.mean, split.std))
    return (images.float() / 255 - mean) / std


def crops_of(image: Tensor, padding: int) -> list[Tensor]:
    """Every crop of one image, the obvious way: rows, then columns, then flips."""
    padded = F.pad(image, (padding,) * 4)
    _, height, width = image.shape
    places = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    windows = [padded[:, top : top + height, left : left + width] for top, left in places]
    return [crop for window in windows for crop in (window, window.flip(2))]


@pytest.mark.parametrize("channels", [1, 3])
def test_seeded_batch_equals_slow_reference(channels: int) -> None:
    split = small_split(channels=channels)
    indices = torch.tensor([3, 0, 39, 3, 17, 8])
    images, labels = split.batch(indices, seed=11)
    choice = torch.randint(50, (6,), generator=torch.Generator().manual_seed(11))
    crops = [crops_of(split.images[i], 2)[c] for i, c in zip(indices, choice, strict=True)]
    torch.testing.assert_close(images, normalised(torch.stack(crops), split), atol=1e-6, rtol=1e-6)
    assert images.dtype == torch.float32
    assert labels.tolist() == split.labels[indices].tolist()


def test_plain_batches_are_the_normalised_images() -> None:
    """None ignores the seed; indices may be of any kind, and none at all."""
    split = small_split("none")
    images, labels = split.batch([4, 4, 2])
    torch.testing.assert_close(images, normalised(split.images[[4, 4, 2]], split))
    assert labels.tolist() == [4, 4, 2]
    assert torch.equal(split.batch(np.array([4, 4, 2]), seed=5)[0], images)
    assert small_split().batch(torch.zeros(0, dtype=torch.int64), 3)[0].shape == (0, 3, 7, 7)


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 5),
    size=st.integers(1, 6),
    first=st.integers(0, 2**63 - 1),
    augmentation=st.sampled_from(data.AUGMENTATIONS),
)
def test_groups_equal_single_batches_bit_for_bit(groups: int, size: int, first: int, augmentation: str) -> None:
    split = small_split(augmentation)
    indices = torch.from_numpy(np.random.default_rng(first).integers(0, 40, (groups, size)))
    for seeds in (None, [first // (g + 1) for g in range(groups)]):
        images, labels = split.batch_groups(indices, seeds)
        assert images.shape == (groups, size, 3, 7, 7)
        for g in range(groups):
            alone, alone_labels = split.batch(indices[g], None if seeds is None else seeds[g])
            assert torch.equal(images[g], alone)
            assert torch.equal(labels[g], alone_labels)


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone() -> None:
    split, state = small_split(), torch.get_rng_state()
    first = split.batch(range(20), 1)[0]
    assert not torch.equal(first, split.batch(range(20), 2)[0])
    assert torch.equal(first, split.batch(range(20), 1)[0])
    assert torch.equal(state, torch.get_rng_state())


# ImageNet's files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    sizes = [(40, 60), (64, 33), (20, 20), (90, 30)]  # (width, height)
    for label, name in enumerate(("n01", "n02", "n03")):
        for part in ("train", "val"):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for i, (width, height) in enumerate(sizes):
                pixels = np.random.default_rng(10 * label + i).integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG", quality=95)
    return tmp_path


def test_imagenet_plain_batch_is_torchvisions(imagenet: Path) -> None:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    loaded = data.load("imagenet", imagenet)
    pipeline = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    statistics = transforms.Normalize(loaded.test.mean, loaded.test.std)
    reference = ImageFolder(str(imagenet / "imagenet" / "val"), transforms.Compose([*pipeline, statistics]))
    images, labels = loaded.test.batch([7, 0, 11])
    torch.testing.assert_close(images, torch.stack([reference[i][0] for i in (7, 0, 11)]), atol=1e-5, rtol=1e-5)
    assert labels.tolist() == [1, 0, 2]
    assert (loaded.classes, loaded.channels, loaded.size, len(loaded.train)) == (3, 3, 224, 12)


def test_imagenet_seeded_batches_do_not_depend_on_threads_or_grouping(imagenet: Path) -> None:
    one = data.load("imagenet", imagenet, size=16).train
    indices = torch.tensor([[0, 5, 11], [3, 3, 3]])
    images, labels = dataclasses.replace(one, threads=4).batch_groups(indices, [8, 9])
    assert images.shape == (2, 3, 3, 16, 16)
    for group, seed in enumerate((8, 9)):
        alone, alone_labels = one.batch(indices[group], seed)
        assert torch.equal(images[group], alone)
        assert torch.equal(labels[group], alone_labels)
    assert not torch.equal(images[1, 0], images[1, 1])  # the same image, crops of their own
    plain = data.load("imagenet", imagenet, size=16, augmentation="none").train
    assert torch.equal(plain.batch([1], 3)[0], plain.batch([1])[0])


def test_random_boxes_fit_and_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    top, left, rows, columns = np.array([_random_box(50, 80, generator) for _ in range(2000)]).T
    assert min(top.min(), left.min()) >= 0
    assert (top + rows <= 50).all()
    assert (left + columns <= 80).all()
    area, aspect = rows * columns / 4000, columns / rows
    assert 0.07 < area.min() < 0.12
    assert area.max() > 0.8
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.45
    assert _random_box(10, 1000, generator)[2:] == (10, 13)  # no box fits: central, widest allowed


def test_imagenet_limits_and_checksum(imagenet: Path) -> None:
    whole, part = data.load("imagenet", imagenet), data.load("imagenet", imagenet, train_limit=5, test_limit=2)
    assert isinstance(part.train, StreamedSplit)
    assert (len(part.train), len(part.test)) == (5, 2)
    assert part.train.labels.tolist() == [int(Path(file).parent.name[2]) - 1 for file in part.train.files]
    assert whole.checksum != part.checksum
    (imagenet / "imagenet" / "val" / "n01" / "0.JPEG").write_bytes(b"changed")
    assert data.load("imagenet", imagenet).checksum != whole.checksum


def test_imagenet_errors(imagenet: Path, refused) -> None:
    path = imagenet / "imagenet" / "train" / "n02" / "3.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    refused(data.load("imagenet", imagenet).train.batch, [7], parts=(path, "damaged"))
    (imagenet / "imagenet" / "val" / "n02").rename(imagenet / "imagenet" / "val" / "n04")
    refused(data.load, "imagenet", imagenet, parts=("n02", "same classes"))
