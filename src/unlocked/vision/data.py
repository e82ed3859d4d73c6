"""Image data sets, read from local files (downloaded at need) and served as seeded batches.

Road: configs -> plan -> train (vision serves it) -> record -> item.

`load` returns a `Dataset` of two splits. Small images stay in memory, on the device, as uint8 (`Split`); ImageNet's
JPEG files are decoded batch by batch (`StreamedSplit`). Both answer `batch(indices, seed)` and `batch_groups`: without
a seed the plain images, with one the randomly cropped and flipped ones. A seed alone decides the draws, on a CPU
generator, so a batch is the same on every device and whatever was drawn before it.

A new data set is one function decorated with `@_data_set`; everything else follows from the name.

What is trusted: CIFAR and ImageNet32 come as pickles, a format that can run code. They are read by an unpickler that
can build NumPy arrays and plain values and nothing else; CIFAR's files must also have torchvision's MD5 sums.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unlocked import seeding
from unlocked.errors import DataError, SettingError, choose

AUGMENTATIONS = ("crop_flip", "crop", "none")
SUBSET_SEED = 0  # of the random subsets that `train_limit` and `test_limit` keep
DIGITS_SEED = 0  # of the split of digits into training and test images
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where apt-get install dataset-fashion-mnist puts it

Indices = Tensor | np.ndarray | Sequence[int]
Scale = tuple[float, ...]


# ---------------------------------------------------------------------------------------------------------------------
# Batches


@lru_cache(maxsize=64)
def _normaliser(mean: Scale, std: Scale, device: torch.device) -> tuple[Tensor, Tensor]:
    """Shift and divisor, (C, 1, 1) each, that bring pixels of 0..255 to mean 0 and deviation 1."""
    # Batches of tiny nets take microseconds, so whatever does not depend on the batch is made once.
    shift, divisor = (torch.tensor(values, dtype=torch.float64).mul(255)[:, None, None] for values in (mean, std))
    return shift.float().to(device), divisor.float().to(device)


def _normalise(pixels: Tensor, mean: Scale, std: Scale) -> Tensor:
    """`(pixels / 255 - mean) / std` of uint8 pixels (B, C, H, W), as float32."""
    shift, divisor = _normaliser(mean, std, pixels.device)
    return torch.sub(pixels, shift).div_(divisor)


@lru_cache(maxsize=64)
def _crop_table(height: int, width: int, padding: int, flip: bool, device: torch.device) -> Tensor:
    """Every crop there is: (crops, height * width), for each pixel of the crop its source pixel.

    A source of `height * width` stands for the black border. Crops are numbered by row offset, column offset, flip.
    """
    offsets = torch.arange(-padding, padding + 1)
    rows = offsets[:, None] + torch.arange(height)
    columns = offsets[:, None] + torch.arange(width)
    columns = torch.stack([columns, columns.flip(1)], dim=1) if flip else columns[:, None]  # (offsets, flips, width)
    rows, columns = rows[:, None, None, :, None], columns[None, :, :, None, :]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    source = torch.where(inside, rows * width + columns, height * width)
    return source.reshape(-1, height * width).to(device)


def _crop(images: Tensor, crops: Tensor, table: Tensor) -> Tensor:
    """Cut crop number `crops[b]` of `table` out of each of the images (B, C, H, W)."""
    pixels = F.pad(images.flatten(2), (0, 1))  # one black pixel after the last: the border
    source = table.index_select(0, crops)[:, None].expand(-1, images.shape[1], -1)
    return pixels.gather(2, source).view(images.shape)


def _per_group(indices: Tensor, seeds: Sequence[int] | None) -> list[int] | None:
    """The seeds as a list, one for each row of `indices` (L, B)."""
    if seeds is not None and len(seeds) != len(indices):
        raise ValueError(f"{len(seeds)} seeds for {len(indices)} groups")
    return None if seeds is None else [int(seed) for seed in seeds]


def _draw(high: int, count: int, seeds: Sequence[int]) -> Tensor:
    """(L, count) integers below `high`; row l depends on `seeds[l]` alone."""
    generator = torch.Generator()
    return torch.stack([torch.randint(high, (count,), generator=generator.manual_seed(seed)) for seed in seeds])


@dataclass(frozen=True)
class Split:
    """Small images in memory: `images` uint8 (N, C, H, W) and `labels` int64 (N,), both on one device.

    `mean` and `std` are per channel, of values scaled to [0, 1]. `augmentation` says what a seeded batch gets:
    "crop_flip", "crop" or "none"; the crop takes a window of the image's own size from the image with `padding` black
    pixels around it.
    """

    images: Tensor
    labels: Tensor
    mean: Scale
    std: Scale
    augmentation: str = "none"
    padding: int = 0

    def __post_init__(self) -> None:
        choose("augmentation", self.augmentation, AUGMENTATIONS)
        if self.padding < 0:
            raise SettingError("padding", self.padding, "must be a number of pixels, 0 or more")
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"images {self.images.dtype} {tuple(self.images.shape)}, labels {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def size(self) -> int:
        return self.images.shape[3]

    def batch(self, indices: Indices, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Normalised float32 images (B, C, H, W) and their int64 labels (B,); augmented if there is a seed."""
        indices = torch.as_tensor(indices, device=self.images.device)
        return self._serve(indices, None if seed is None else [seed])

    def batch_groups(self, indices: Indices, seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """L batches at once, (L, B, C, H, W) and (L, B), of indices (L, B); row l is `batch(indices[l], seeds[l])`."""
        indices = torch.as_tensor(indices, device=self.images.device)
        images, labels = self._serve(indices.flatten(), _per_group(indices, seeds))
        return images.view(*indices.shape, *images.shape[1:]), labels.view(indices.shape)

    def _serve(self, indices: Tensor, seeds: list[int] | None) -> tuple[Tensor, Tensor]:
        images = self.images.index_select(0, indices)
        if seeds and self.augmentation != "none":
            *_, height, width = images.shape
            table = _crop_table(height, width, self.padding, self.augmentation == "crop_flip", images.device)
            crops = _draw(len(table), len(indices) // len(seeds), seeds).flatten()
            images = _crop(images, crops.to(images.device, non_blocking=True), table)
        return _normalise(images, self.mean, self.std), self.labels.index_select(0, indices)

    def to(self, device: str | torch.device) -> Split:
        return dataclasses.replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, indices: Indices) -> Split:
        indices = torch.as_tensor(indices, device=self.images.device)
        return dataclasses.replace(self, images=self.images[indices], labels=self.labels[indices])

    def resized(self, size: int) -> Split:
        """All images at size × size by area interpolation, the padding in proportion (at least one pixel of it)."""
        parts = [F.interpolate(part.float(), (size, size), mode="area") for part in self.images.split(4096)]
        images = torch.cat([part.round_().to(torch.uint8) for part in parts])
        padding = max(1, round(self.padding * size / self.size)) if self.padding else 0
        return dataclasses.replace(self, images=images, padding=padding)

    def contents(self) -> Iterator[np.ndarray]:
        """What the checksum covers: images, then labels."""
        yield self.images.cpu().numpy()
        yield self.labels.cpu().numpy()


@dataclass(frozen=True)
class StreamedSplit:
    """Images decoded from files when asked for, in a pool of `threads` threads; the interface is that of `Split`.

    Without a seed: the shorter side to 256/224 of `size`, then the central size × size. With one, unless
    `augmentation` is "none": a random area (8 to 100 %) of random aspect (3/4 to 4/3) resized to size × size, and
    for "crop_flip" a horizontal flip half of the time (Szegedy et al. 2015, as torchvision's RandomResizedCrop).
    Every sample has a generator of its own, so the order of the threads does not matter.
    """

    folder: str
    files: tuple[str, ...]  # relative to the folder
    labels: Tensor
    mean: Scale
    std: Scale
    augmentation: str = "crop_flip"
    size: int = 224
    threads: int = 2

    channels = 3

    def __post_init__(self) -> None:
        choose("augmentation", self.augmentation, AUGMENTATIONS)
        if self.threads < 1:
            raise SettingError("threads", self.threads, "must be 1 or more")

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Indices, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Normalised float32 images (B, 3, size, size) and their int64 labels (B,); augmented if there is a seed.

        Raises `DataError` naming the file if one cannot be decoded.
        """
        return self._serve(torch.as_tensor(indices), None if seed is None else [seed])

    def batch_groups(self, indices: Indices, seeds: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """L batches at once: (L, B, 3, size, size) and (L, B) for indices (L, B), as `batch` gives them one by one."""
        indices = torch.as_tensor(indices)
        images, labels = self._serve(indices.flatten(), _per_group(indices, seeds))
        return images.view(*indices.shape, *images.shape[1:]), labels.view(indices.shape)

    def _serve(self, indices: Tensor, seeds: list[int] | None) -> tuple[Tensor, Tensor]:
        samples: list[int | None] = [None] * len(indices)
        if seeds and self.augmentation != "none":
            samples = _draw(2**62, len(indices) // len(seeds), seeds).flatten().tolist()
        # The pool is keyed by process because threads do not survive a fork.
        images = list(_pool(self.threads, os.getpid()).map(self._image, indices.tolist(), samples))
        pixels = torch.from_numpy(np.stack(images)).to(self.labels.device).permute(0, 3, 1, 2).contiguous()
        return _normalise(pixels, self.mean, self.std), self.labels[indices.to(self.labels.device)]

    def _image(self, index: int, seed: int | None) -> np.ndarray:
        """One image, uint8 (size, size, 3); plain if the seed is None."""
        from torchvision.transforms import functional

        image = _decode(Path(self.folder, self.files[index]))
        if seed is None:
            image = functional.resize(image, round(self.size * 256 / 224))
            return np.asarray(functional.center_crop(image, [self.size, self.size]))
        generator = torch.Generator().manual_seed(seed)
        box = _random_box(image.height, image.width, generator)
        image = functional.resized_crop(image, *box, size=[self.size, self.size])
        flip = self.augmentation == "crop_flip" and torch.rand((), generator=generator) < 0.5
        return np.asarray(functional.hflip(image) if flip else image)

    def to(self, device: str | torch.device) -> StreamedSplit:
        return dataclasses.replace(self, labels=self.labels.to(device))

    def subset(self, indices: Indices) -> StreamedSplit:
        indices = torch.as_tensor(indices)
        files = tuple(self.files[i] for i in indices.tolist())
        return dataclasses.replace(self, files=files, labels=self.labels[indices.to(self.labels.device)])

    def resized(self, size: int) -> StreamedSplit:
        return dataclasses.replace(self, size=size)

    def contents(self) -> Iterator[np.ndarray]:
        """What the checksum covers: the sorted file names and, instead of 150 GB of images, the files' sizes."""
        lines = sorted(f"{file}\t{Path(self.folder, file).stat().st_size}" for file in self.files)
        yield np.frombuffer("\n".join(lines).encode(), np.uint8)


@lru_cache(maxsize=8)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="decode")


def _decode(path: Path) -> Any:
    """The PIL image in a file, in RGB."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is damaged: {_line(error)}") from error


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


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


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
        return dataclasses.replace(self, train=self.train.to(device), test=self.test.to(device))


@dataclass(frozen=True)
class _Request:
    """What a reader needs to know: where to look and how the samples will be served."""

    root: Path
    download: bool
    verify: bool
    threads: int
    mean: Scale
    std: Scale
    augmentation: str
    padding: int

    def split(self, images: np.ndarray, labels: np.ndarray) -> Split:
        tensors = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64, copy=False))
        return Split(*tensors, self.mean, self.std, self.augmentation, self.padding)


# train, test, number of classes, source
_Found = tuple[Split | StreamedSplit, Split | StreamedSplit, int, str]


@dataclass(frozen=True)
class _Entry:
    read: Callable[[_Request], _Found]
    mean: Scale
    std: Scale
    augmentation: str
    padding: int


_REGISTRY: dict[str, _Entry] = {}


def _data_set(
    name: str, *, mean: Scale, std: Scale, augmentation: str, padding: int
) -> Callable[[Callable[[_Request], _Found]], Callable[[_Request], _Found]]:
    """Register a reader under a name, with the statistics and the augmentation that are usual for the set."""

    def register(read: Callable[[_Request], _Found]) -> Callable[[_Request], _Found]:
        _REGISTRY[name] = _Entry(read, mean, std, augmentation, padding)
        return read

    return register


def names() -> tuple[str, ...]:
    """The data sets that `load` knows."""
    return tuple(_REGISTRY)


def load(
    name: str,
    root: str | Path = "data",
    *,
    device: str | torch.device = "cpu",
    size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    augmentation: str | None = None,
    threads: int = 2,
    download: bool = True,
    verify: bool = True,
) -> Dataset:
    """Read the data set `name` from `root`, at need downloading it there, and put it on `device`.

    size: resize to size × size pixels once, by area interpolation; None keeps the set's own.
    train_limit, test_limit: keep that many samples, a random subset that is always the same, in the set's order.
    augmentation: of seeded batches, "crop_flip", "crop" or "none"; None takes what is usual for the set.
    threads: that decode JPEG files (ImageNet only).
    download: whether Fashion-MNIST and CIFAR may be fetched if they are missing.
    verify: whether the files must have the known checksums; False serves files that are meant to differ.

    Raises `SettingError` for a setting that cannot work, `DataError` for files that are missing or damaged.
    """
    entry = _REGISTRY[choose("data", name, names())]
    chosen = entry.augmentation if augmentation is None else choose("augmentation", augmentation, AUGMENTATIONS)
    if size is not None and size < 1:
        raise SettingError("size", size, "must be a number of pixels, 1 or more")
    request = _Request(Path(root), download, verify, threads, entry.mean, entry.std, chosen, entry.padding)
    train, test, classes, source = entry.read(request)
    train = _limited(train, "train_limit", train_limit)
    test = _limited(test, "test_limit", test_limit)
    if size is not None and size != train.size:
        train, test = train.resized(size), test.resized(size)
    checksum = digest(*train.contents(), *test.contents())
    return Dataset(name, train, test, classes, train.channels, train.size, source, checksum).to(device)


def digest(*arrays: np.ndarray) -> str:
    """SHA-256, in hex, of the arrays' types, shapes and values."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()


def _limited(split: Split | StreamedSplit, setting: str, limit: int | None) -> Split | StreamedSplit:
    if limit is None:
        return split
    if not 1 <= limit <= len(split):
        raise SettingError(setting, limit, f"must be 1 to {len(split)}, the samples there are, or null for all")
    return split.subset(np.sort(seeding.generator(SUBSET_SEED, setting).permutation(len(split))[:limit]))


# ---------------------------------------------------------------------------------------------------------------------
# Readers, one for each data set


# Mean and deviation: of the 1437 training images, computed with NumPy in float64.
@_data_set("digits", mean=(0.3048,), std=(0.3758,), augmentation="none", padding=1)
def _digits(request: _Request) -> _Found:
    """scikit-learn's 8×8 digits (1797 images, in the package itself), values 0..16 spread over 0..255.

    The test set is every fifth image (360) of the images sorted by label, shuffled with `DIGITS_SEED` within labels.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[:, None] * 255 / 16).astype(np.uint8)
    order = seeding.generator(DIGITS_SEED, "digits").permutation(len(images))
    order = order[np.argsort(digits.target[order], kind="stable")]
    is_test = np.zeros(len(images), bool)
    is_test[order[::5]] = True
    splits = (request.split(images[part], digits.target[part]) for part in (~is_test, is_test))
    return *splits, 10, "scikit-learn's load_digits"


# SHA-256 of the unpacked files. Debian's archives differ from those with torchvision's MD5 sums by the name and time in
# the gzip header alone, so one sum serves both.
_FASHION_MNIST = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


# Mean and deviation: of the 60,000 training images, computed with NumPy in float64.
@_data_set("fashion_mnist", mean=(0.2860,), std=(0.3530,), augmentation="crop_flip", padding=2)
def _fashion_mnist(request: _Request) -> _Found:
    """Fashion-MNIST (Xiao et al. 2017) in the IDX format, gzipped or not, from torchvision's or Debian's folder."""
    places = (request.root / "FashionMNIST" / "raw", DEBIAN_FASHION_MNIST)
    place = _fashion_mnist_place(places)
    if place is None:
        where = " and ".join(str(place) for place in places)
        advice = f"apt-get install dataset-fashion-mnist, or put its four .gz files into {places[0]}"
        _download(request, f"Fashion-MNIST is not in {where}", advice, _download_fashion_mnist)
        place = places[0]
    arrays = [_idx(place / name, sha if request.verify else None) for name, sha in _FASHION_MNIST.items()]
    (train, train_labels, test, test_labels) = arrays
    for name, images, labels in (("train", train, train_labels), ("t10k", test, test_labels)):
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise DataError(f"{place / name}-*: images {images.shape} and labels {labels.shape} do not belong together")
    return request.split(train[:, None], train_labels), request.split(test[:, None], test_labels), 10, str(place)


def _fashion_mnist_place(places: Sequence[Path]) -> Path | None:
    return next((place for place in places if all(_stored(place / name) for name in _FASHION_MNIST)), None)


def _download_fashion_mnist(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(root), download=True)


def _stored(path: Path) -> Path | None:
    """The file itself or its gzipped form, whichever there is."""
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _idx(path: Path, sha256: str | None) -> np.ndarray:
    """The uint8 array in an IDX file (LeCun's format: type and rank, big-endian sizes, values), gzipped or not."""
    stored = _stored(path)
    if stored is None:
        raise DataError(f"{path} is missing")
    try:
        content = (gzip.decompress if stored.suffix == ".gz" else bytes)(stored.read_bytes())
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its SHA-256 is not that of the published file")
        dimensions = content[3]
        shape = np.frombuffer(content, ">u4", dimensions, offset=4)
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an IDX file of bytes")
        # A copy, because torch wants memory that may be written.
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise DataError(f"{stored} is damaged: {_line(error)}") from error


@_data_set(
    "cifar10",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    augmentation="crop_flip",
    padding=4,
)
def _cifar10(request: _Request) -> _Found:
    return _cifar(request, "CIFAR10", "labels", 10)


@_data_set(
    "cifar100",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    augmentation="crop_flip",
    padding=4,
)
def _cifar100(request: _Request) -> _Found:
    return _cifar(request, "CIFAR100", "fine_labels", 100)


def _cifar(request: _Request, torchvision_name: str, labels_key: str, classes: int) -> _Found:
    """CIFAR-10 or -100 (Krizhevsky 2009): the "python version", in the folder where torchvision keeps it."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    known = getattr(datasets, torchvision_name)  # torchvision's class: address, file names, MD5 sums
    folder = request.root / known.base_folder
    parts = [[(folder / name, md5) for name, md5 in part] for part in (known.train_list, known.test_list)]
    if not all(path.is_file() for part in parts for path, _ in part):

        def fetch(root: Path) -> None:
            download_and_extract_archive(known.url, str(root), filename=known.filename, md5=known.tgz_md5)

        advice = f"unpack {known.url} into {request.root}"
        _download(request, f"{torchvision_name} is not (or not whole) in {folder}", advice, fetch)
    for path, md5 in parts[0] + parts[1]:
        if request.verify and not check_integrity(str(path), md5):
            raise DataError(f"{path} is missing or damaged: its MD5 must be {md5}; delete {folder} to fetch it anew")
    splits = (request.split(*_joined([path for path, _ in part], labels_key, classes, first=0)) for part in parts)
    return *splits, classes, str(folder)


_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@_data_set("imagenet32", **_IMAGENET, augmentation="crop_flip", padding=4)
def _imagenet32(request: _Request) -> _Found:
    """ImageNet at 32×32 (Chrabaszcz et al. 2017): ten training batches and a validation batch, 3.9 GB in memory."""
    base = request.root / "imagenet32"
    train = [_imagenet32_file(base, f"train_data_batch_{i}") for i in range(1, 11)]
    test = [_imagenet32_file(base, "val_data")]
    splits = [request.split(*_joined(paths, "labels", 1000, first=1)) for paths in (train, test)]
    for split, paths, count in zip(splits, (train, test), (1_281_167, 50_000), strict=True):
        if request.verify and len(split) != count:
            raise DataError(f"{paths[0].parent}: {paths[0].name} ... hold {len(split)} images instead of {count}")
    return *splits, 1000, str(base)


def _imagenet32_file(base: Path, name: str) -> Path:
    """A batch file: in `base` itself, in the archives' folders below it, or in those folders beside it."""
    archives = ("Imagenet32_train", "Imagenet32_val")
    folders = [base, *(base / archive for archive in archives), *(base.parent / archive for archive in archives)]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    where = ", ".join(str(folder) for folder in folders)
    raise DataError(
        f"ImageNet32's {name} is not in {where}: get Imagenet32_train.zip and Imagenet32_val.zip "
        f"from image-net.org/download-images.php (an account is needed) and unpack them into {base}"
    )


@_data_set("imagenet", **_IMAGENET, augmentation="crop_flip", padding=0)
def _imagenet(request: _Request) -> _Found:
    """ImageNet (ILSVRC 2012): JPEG files in train/<class>/ and val/<class>/."""
    from torchvision.datasets import ImageFolder

    splits, classes = [], []
    for part in ("train", "val"):
        folder = request.root / "imagenet" / part
        try:
            found = ImageFolder(str(folder))
        except FileNotFoundError as error:
            raise DataError(
                f"ImageNet is not (or not whole) in {folder} ({_line(error)}): get ILSVRC 2012 from image-net.org "
                f"and unpack it into {folder}/<class>/<image>.JPEG"
            ) from error
        files = tuple(Path(path).relative_to(folder).as_posix() for path, _ in found.samples)
        style = request.mean, request.std, request.augmentation
        splits.append(StreamedSplit(str(folder), files, torch.tensor(found.targets), *style, threads=request.threads))
        classes.append(found.classes)
    if classes[0] != classes[1]:
        odd = sorted(set(classes[0]) ^ set(classes[1]))[0]
        raise DataError(f"{request.root / 'imagenet'}: train and val must hold the same classes; {odd} is in one only")
    return *splits, len(classes[0]), str(request.root / "imagenet")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def _line(error: BaseException) -> str:
    """An exception's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _download(request: _Request, missing: str, advice: str, fetch: Callable[[Path], None]) -> None:
    """Fetch a data set into `request.root`, or say what is missing and how to get it."""
    if not request.download:
        raise DataError(f"{missing}: {advice}")
    try:
        fetch(request.root)
    except Exception as error:  # whatever the network, the server or the archive did, the advice is the same
        raise DataError(f"{missing} and could not be downloaded ({_line(error)}): {advice}") from error


def _joined(paths: Sequence[Path], labels_key: str, classes: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels from 0 of pickled batches, in whose files labels begin at `first`."""
    # A file is a little larger than its images. Memory that is never written costs nothing, so this room, made before
    # N is known, spares ImageNet32 a second copy of 3.9 GB.
    room = np.empty((sum(path.stat().st_size for path in paths) // 3072, 3, 32, 32), np.uint8)
    labels, count = [], 0
    for path in paths:
        images, found = _pickled_batch(path, labels_key)
        if found.min(initial=first) < first or found.max(initial=first) >= first + classes:
            raise DataError(f"{path} is damaged: its labels must be {first} to {first + classes - 1}")
        room[count : count + len(images)] = images.reshape(-1, 3, 32, 32)
        labels.append(found - first)
        count += len(images)
    return room[:count], np.concatenate(labels)


def _pickled_batch(path: Path, labels_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3072) and labels int64 (N,) of one file of CIFAR or ImageNet32."""
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()  # Python 2 wrote CIFAR's files
        images, labels = np.asarray(content["data"]), np.asarray(content[labels_key], np.int64)
    except DataError as error:
        raise DataError(f"{path} is refused: {error}") from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"{path} is damaged: {_line(error)}") from error
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != 3072 or labels.shape != images.shape[:1]:
        raise DataError(f"{path} is damaged: data {images.dtype} {images.shape}, {labels_key} {labels.shape}")
    return images, labels


def _from_latin1(text: str, encoding: str) -> bytes:
    """What pickles of protocol 2 call for bytes; other codecs could decompress without limit."""
    if encoding != "latin1":
        raise DataError(f"it asks for the codec {encoding}")
    return text.encode("latin1")


# The functions that NumPy names in a pickle are private; asking an array for them works with every version.
_PICKLED_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy.core.multiarray", "scalar"): np.float64(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
    ("_codecs", "encode"): _from_latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds NumPy arrays and plain values; anything else that a pickle asks for is refused by name."""

    def find_class(self, module: str, name: str) -> Any:
        found = _PICKLED_NAMES.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise DataError(f"it asks for {module}.{name}, and only NumPy arrays may be built from a pickle")
        return found
