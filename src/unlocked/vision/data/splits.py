"""Splits of a data set, which serve batches of images as tensors.

Small images stay in memory, on the device, as uint8 (`Split`); ImageNet's JPEG files are decoded batch by batch
(`StreamedSplit`). A batch without a seed has the plain images, with one the randomly cropped and flipped ones. A seed
alone decides the draws, on a CPU generator, so a batch is the same on every device and whatever was drawn before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unlocked.vision.data.files import reading

Indices: TypeAlias = Tensor | np.ndarray | Sequence[int]
Scale: TypeAlias = tuple[float, ...]


class _Batches:
    """How both kinds of split are asked for batches."""

    labels: Tensor  # int64 (N,), on the device on which batches are served
    mean: Scale  # per channel, of values scaled to [0, 1]
    std: Scale
    augmentation: str  # of seeded batches: "crop_flip" or "none"

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Indices, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Normalised float32 images (B, C, H, W) and their int64 labels (B,); augmented if there is a seed.

        Raises `DataError` naming the file if one cannot be decoded.
        """
        return self._serve(torch.as_tensor(indices, device=self.labels.device), None if seed is None else [seed])

    def batch_groups(self, indices: Indices, seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """L batches at once, (L, B, C, H, W) and (L, B), of indices (L, B); row l is `batch(indices[l], seeds[l])`."""
        indices = torch.as_tensor(indices, device=self.labels.device)
        images, labels = self._serve(indices.flatten(), seeds)
        return images.view(*indices.shape, *images.shape[1:]), labels.view(indices.shape)

    def _serve(self, indices: Tensor, seeds: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        pixels = self._pixels(indices, None if self.augmentation == "none" else seeds)
        shift, divisor = _normaliser(self.mean, self.std, pixels.device)
        return torch.sub(pixels, shift).div_(divisor), self.labels.index_select(0, indices)

    def _pixels(self, indices: Tensor, seeds: Sequence[int] | None) -> Tensor:
        """Images uint8 (B, C, H, W), augmented if there are seeds, each of an equal part of them."""
        raise NotImplementedError


# Batches of tiny nets take microseconds, so whatever does not depend on the batch is made once.
@lru_cache(maxsize=64)
def _normaliser(mean: Scale, std: Scale, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shift and divisor, (C, 1, 1) each, that bring pixels of 0..255 to mean 0 and deviation 1."""
    shift, divisor = (torch.tensor(values, dtype=torch.float64).mul(255)[:, None, None] for values in (mean, std))
    return shift.float().to(device), divisor.float().to(device)


@lru_cache(maxsize=64)
def _crop_table(height: int, width: int, padding: int, device: torch.device) -> Tensor:
    """Every crop there is: (crops, height * width), for each pixel of the crop its source pixel.

    A source of `height * width` stands for the black border. Crops are numbered by row offset, column offset, flip.
    """
    offsets = torch.arange(-padding, padding + 1)
    rows = (offsets[:, None] + torch.arange(height))[:, None, None, :, None]
    columns = offsets[:, None] + torch.arange(width)
    columns = torch.stack([columns, columns.flip(1)], dim=1)[None, :, :, None, :]  # (1, offsets, flips, 1, width)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    source = torch.where(inside, rows * width + columns, height * width)
    return source.reshape(-1, height * width).to(device)


def _draw(high: int, count: int, seeds: Sequence[int]) -> Tensor:
    """`count` integers below `high` in all, an equal part from each seed, which depends on that seed alone."""
    generator, each = torch.Generator(), count // len(seeds)
    return torch.cat([torch.randint(high, (each,), generator=generator.manual_seed(seed)) for seed in seeds])


def resized(images: Tensor, size: int) -> Tensor:
    """Images uint8 (N, C, H, W) at size × size by area interpolation."""
    parts = [F.interpolate(part.float(), (size, size), mode="area") for part in images.split(4096)]
    return torch.cat([part.round_().to(torch.uint8) for part in parts])


@dataclass(frozen=True)
class Split(_Batches):
    """Small images in memory: `images` uint8 (N, C, H, W) and `labels`, both on one device.

    A seeded crop takes a window of the image's own size from the image with `padding` black pixels around it.
    """

    images: Tensor
    labels: Tensor
    mean: Scale
    std: Scale
    augmentation: str = "none"
    padding: int = 0

    def _pixels(self, indices: Tensor, seeds: Sequence[int] | None) -> Tensor:
        images = self.images.index_select(0, indices)
        if not seeds:
            return images
        table = _crop_table(*images.shape[2:], self.padding, images.device)
        crops = _draw(len(table), len(indices), seeds).to(images.device, non_blocking=True)
        pixels = F.pad(images.flatten(2), (0, 1))  # one black pixel after the last: the border
        source = table.index_select(0, crops)[:, None].expand(-1, images.shape[1], -1)
        return pixels.gather(2, source).view(images.shape)

    def to(self, device: str | torch.device) -> Split:
        return dataclasses.replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def contents(self) -> Iterator[np.ndarray]:
        """What the checksum covers."""
        yield from (self.images.cpu().numpy(), self.labels.cpu().numpy())


@dataclass(frozen=True)
class StreamedSplit(_Batches):
    """Images decoded from files when asked for, in a pool of `threads` threads.

    Without a seed: the shorter side to 256/224 of `size`, then the central size × size. With one: a random area (8 to
    100 %) of random aspect (3/4 to 4/3) resized to size × size, flipped horizontally half of the time (Szegedy et al.
    2015, as torchvision's RandomResizedCrop).
    Every sample has a generator of its own, so the order of the threads does not matter.
    """

    files: tuple[str, ...]
    labels: Tensor
    mean: Scale
    std: Scale
    augmentation: str = "crop_flip"
    size: int = 224
    threads: int = 2

    def _pixels(self, indices: Tensor, seeds: Sequence[int] | None) -> Tensor:
        samples = _draw(2**62, len(indices), seeds).tolist() if seeds else [None] * len(indices)
        with ThreadPoolExecutor(self.threads) as pool:
            images = list(pool.map(self._image, indices.tolist(), samples))
        return torch.from_numpy(np.stack(images)).to(self.labels.device).permute(0, 3, 1, 2).contiguous()

    def _image(self, index: int, seed: int | None) -> np.ndarray:
        """One image, uint8 (size, size, 3); plain if the seed is None."""
        from PIL import Image
        from torchvision.transforms import functional

        path, shape = Path(self.files[index]), [self.size, self.size]
        with reading(path), Image.open(path) as opened:
            image = opened.convert("RGB")
        if seed is None:
            image = functional.resize(image, round(self.size * 256 / 224))
            return np.asarray(functional.center_crop(image, shape))
        generator = torch.Generator().manual_seed(seed)
        image = functional.resized_crop(image, *_random_box(image.height, image.width, generator), size=shape)
        return np.asarray(functional.hflip(image) if torch.rand((), generator=generator) < 0.5 else image)

    def to(self, device: str | torch.device) -> StreamedSplit:
        return dataclasses.replace(self, labels=self.labels.to(device))

    def contents(self) -> Iterator[np.ndarray]:
        """What the checksum covers: <class>/<file> and, instead of 150 GB of images, the files' sizes, sorted."""
        paths = map(Path, self.files)
        lines = sorted(f"{path.parent.name}/{path.name}\t{path.stat().st_size}" for path in paths)
        yield np.frombuffer("\n".join(lines).encode(), np.uint8)


def _random_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random box: 8 to 100 % of the area, aspect ratio 3/4 to 4/3.

    Ten boxes are tried; if none fits, the largest central one of an allowed aspect ratio.
    """
    for area, log_aspect, down, right in torch.rand((10, 4), generator=generator, dtype=torch.float64).tolist():
        area, aspect = height * width * (0.08 + 0.92 * area), (4 / 3) ** (2 * log_aspect - 1)
        rows, columns = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < rows <= height and 0 < columns <= width:
            return int(down * (height - rows + 1)), int(right * (width - columns + 1)), rows, columns
    rows, columns = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


@dataclass(frozen=True)
class Dataset:
    """A data set, ready to be trained on.

    `source` says in one line where it was read; `checksum` is the SHA-256 of what is served (after resizing and
    limiting): images and labels of both splits, or names and sizes of ImageNet's files.
    """

    name: str
    train: Split | StreamedSplit
    test: Split | StreamedSplit
    classes: int
    channels: int
    size: int
    source: str
    checksum: str

    def to(self, device: str | torch.device) -> Dataset:
        """Both splits on another device."""
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device))
