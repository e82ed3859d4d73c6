"""Readers on tiny files in the real formats: what they read, what they refuse, and what they say then."""

from __future__ import annotations

import gzip
import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from unlocked.vision import data
from unlocked.vision.data import fashion_mnist

CIFAR10 = [f"cifar-10-batches-py/{name}" for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")]
IMAGENET32 = [f"imagenet32/{name}" for name in (*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data")]
T10K = "FashionMNIST/raw/t10k-images-idx3-ubyte.gz"


@pytest.fixture(autouse=True)
def _not_debians(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")


def write_idx(path: Path, array: np.ndarray) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(content))
    return array


def write_fashion_mnist(folder: Path) -> list[np.ndarray]:
    draws = np.random.default_rng(0)
    images = [draws.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (12, 5)]
    arrays = [images[0], draws.integers(10, size=12, dtype=np.uint8), images[1], np.arange(5, dtype=np.uint8)]
    return [write_idx(folder / name, array) for name, array in zip(fashion_mnist.FILES, arrays, strict=True)]


def write_batches(root: Path, names: list[str], first: int, last: int, protocol: int = 2) -> list[np.ndarray]:
    """Two images in each file, with the first and the last label, and their rows of pixels."""
    draws = np.random.default_rng(0)
    rows = [draws.integers(0, 256, (2, 3072), dtype=np.uint8) for _ in names]
    for name, images in zip(names, rows, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(
            pickle.dumps({"data": images, "labels": [first, last], "mean": np.zeros(3)}, protocol)
        )
    return rows


def test_digits() -> None:
    from sklearn.datasets import load_digits

    digits, about = data.load("digits"), data.DATASETS["digits"]
    assert (len(digits.train), len(digits.test)) == (about.train, about.test)
    assert torch.bincount(digits.test.labels).tolist() == pytest.approx([36] * 10, abs=1)
    images, _ = digits.train.batch(range(1437))
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    served = torch.cat([digits.train.images, digits.test.images]).flatten(1).numpy()
    original = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, served)) == sorted(map(bytes, original))
    assert digits.checksum == "33812c4cf971a0e8538fb542c5b1748d06c37696474513a2223de5d9ecba870f"


@pytest.mark.parametrize("place", ["FashionMNIST/raw", "debian"])
def test_fashion_mnist(tmp_path: Path, refused, place: str) -> None:
    arrays = write_fashion_mnist(tmp_path / place)
    read = data.load("fashion_mnist", tmp_path, download=False, verify=False)
    assert np.array_equal(read.train.images[:, 0], arrays[0])
    assert read.test.labels.tolist() == arrays[3].tolist()
    assert (read.channels, read.size, read.classes, read.source) == (1, 28, 10, str(tmp_path / place))
    assert (read.train.augmentation, read.train.padding) == ("crop_flip", 2)
    assert data.load("fashion_mnist", tmp_path, size=14, verify=False).train.padding == 1
    parts = (tmp_path / place / "train-images-idx3-ubyte.gz", "SHA-256")
    refused(data.load, "fashion_mnist", tmp_path, download=False, parts=parts)
    write_idx(tmp_path / place / "train-labels-idx1-ubyte.gz", arrays[3])
    refused(data.load, "fashion_mnist", tmp_path, verify=False, parts=("train", "belong together"))


def test_fashion_mnist_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if not fashion_mnist.DEBIAN.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    read, about = data.load("fashion_mnist", tmp_path, download=False), data.DATASETS["fashion_mnist"]
    assert (len(read.train), len(read.test)) == (about.train, about.test)
    assert torch.bincount(read.train.labels).tolist() == [6000] * 10
    values = read.train.images.double() / 255
    assert values.mean().item() == pytest.approx(about.mean[0], abs=5e-5)
    assert values.std().item() == pytest.approx(about.std[0], abs=5e-5)


def test_cifar10_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused) -> None:
    from torchvision import datasets

    write_batches(tmp_path, CIFAR10, 0, 9)
    read = data.load("cifar10", tmp_path, download=False, verify=False)
    assert (read.classes, read.channels, read.size, read.train.padding) == (10, 3, 32, 4)
    refused(data.load, "cifar10", tmp_path, download=False, parts=("data_batch_1", "MD5"))
    (tmp_path / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane"]}))
    names = [(Path(name).name, None) for name in CIFAR10]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", names[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", names[5:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": None})
    for split, train in ((read.train, True), (read.test, False)):
        reference = datasets.CIFAR10(str(tmp_path), train=train)
        assert np.array_equal(split.images.permute(0, 2, 3, 1), reference.data)
        assert split.labels.tolist() == reference.targets


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    """CIFAR's own files were written by Python 2: byte strings throughout, and NumPy's old module names."""
    [rows, *_] = write_batches(tmp_path, CIFAR10, 0, 9)
    raw = b"T" + len(rows.tobytes()).to_bytes(4, "little") + rows.tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I2\nI3072\nt"
        b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\n" + raw + b"tb"
    )
    (tmp_path / CIFAR10[-1]).write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels(lI7\naI8\nau.")
    read = data.load("cifar10", tmp_path, verify=False)
    assert np.array_equal(read.test.images.flatten(1), rows)
    assert read.test.labels.tolist() == [7, 8]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("train", ["imagenet32/", "imagenet32/Imagenet32_train/", "Imagenet32_train/"])
def test_imagenet32(tmp_path: Path, refused, train: str, protocol: int) -> None:
    names = [name.replace("imagenet32/", train if "train" in name else "imagenet32/") for name in IMAGENET32]
    rows = write_batches(tmp_path, names, 1, 1000, protocol)
    read = data.load("imagenet32", tmp_path, verify=False)
    assert np.array_equal(read.train.images, np.concatenate(rows[:10]).reshape(-1, 3, 32, 32))
    assert read.train.labels.tolist() == [0, 999] * 10
    assert read.test.labels.tolist() == [0, 999]
    assert (read.classes, read.size, read.train.mean) == (1000, 32, (0.485, 0.456, 0.406))
    refused(data.load, "imagenet32", tmp_path, parts=("1281167",))


def nested(depth: int) -> list:
    """A list that unfolds to 2**depth numbers and takes a few bytes for each level."""
    return [1, 2] if depth == 1 else [nested(depth - 1)] * 2


def batch(shape: tuple[int, ...], labels: list, kind: type = np.uint8) -> bytes:
    return pickle.dumps({"data": np.zeros(shape, kind), "labels": labels})


@pytest.mark.parametrize(
    ("file", "damage", "reason"),
    [
        (T10K, lambda content: content[: len(content) // 2], "damaged"),
        (T10K, lambda content: b"not a gzip file", "damaged"),
        (T10K, lambda content: gzip.compress(bytes(60_000_000), 9), "unpacks to more than"),
        (T10K, lambda content: gzip.compress(gzip.decompress(content)[:-3]), "damaged"),
        (T10K, lambda content: gzip.compress(b""), "damaged"),
        (T10K, lambda content: gzip.compress(b"\x89PNG" + gzip.decompress(content)[4:]), "IDX"),
        *((IMAGENET32[9], lambda _, content=content: content, reason) for content, reason in (
            (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.", "bz2"),
            (b"", "damaged"),
            (b"no pickle", "damaged"),
            # a few bytes that would cost gigabytes
            (b"\x80\x04\x8e" + (3 << 30).to_bytes(8, "little") + b".", "damaged"),  # bytes without end
            (b"\x80\x04\x95" + (3 << 30).to_bytes(8, "little") + b".", "damaged"),  # a frame
            (b"\x80\x02}r" + (1 << 30).to_bytes(4, "little") + b".", "room for"),  # a memo
            (b"\x80\x02cnumpy\nndarray\nJ" + (3 << 29).to_bytes(4, "little") + b"\x85R.", "damaged"),
            (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ" + (3 << 29).to_bytes(4, "little")
             + b"\x85U\x01b\x87R.", "without content"),
            (b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x0bV3000000000\x85R\x85R.", "scalar"),
            (batch((2, 3072), nested(30)), "whole numbers"),
            (pickle.dumps({"data": nested(30), "labels": [1, 2]}), "damaged"),
            (b"\x80\x02X" + (2).to_bytes(4, "little") + b"aaq\x00" + 99 * (
                b"c_codecs\nencode\nh\x00U\x06latin1\x86R") + b".", "99 functions"),
            (pickle.dumps({"labels": [1]}), "damaged"),
            (pickle.dumps([1, 2]), "damaged"),
            (batch((2, 3072), [1, 2], np.float32), "damaged"),
            (batch((2, 3071), [1, 2]), "damaged"),
            (batch((2, 3072), [1]), "damaged"),
            (batch((2, 3072), [0, 1000]), "labels must be 1 to 1000"),
            (batch((2, 3072), [1, 2])[:-900], "damaged"),
        )),
    ],
)  # fmt: skip
def test_damaged_files_are_named(
    tmp_path: Path, refused, file: str, damage: Callable[[bytes], bytes], reason: str
) -> None:
    write_fashion_mnist(tmp_path / "FashionMNIST" / "raw")
    write_batches(tmp_path, IMAGENET32, 1, 1000)
    path = tmp_path / file
    path.write_bytes(damage(path.read_bytes()))
    name = "fashion_mnist" if file == T10K else "imagenet32"
    refused(data.load, name, tmp_path, verify=False, parts=(path, reason))


def test_memory_is_bounded_by_the_file(tmp_path: Path, refused) -> None:
    """A few bytes that ask for gigabytes are refused before these are there."""
    costs = [
        b"\x80\x04\x8e" + (3 << 30).to_bytes(8, "little") + b".",
        b"\x80\x02}r" + (1 << 28).to_bytes(4, "little") + b".",
        b"\x80\x02cnumpy\nndarray\nJ" + (3 << 29).to_bytes(4, "little") + b"\x85R.",
    ]
    write_batches(tmp_path, IMAGENET32, 1, 1000)
    for content in costs:
        (tmp_path / IMAGENET32[0]).write_bytes(content)
        tracemalloc.start()
        refused(data.load, "imagenet32", tmp_path, verify=False, parts=(IMAGENET32[0],))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 20_000_000


class Malicious:
    """Touches a file when it is unpickled without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused_by_name(tmp_path: Path, refused, protocol: int) -> None:
    write_batches(tmp_path, IMAGENET32, 1, 1000)
    path = tmp_path / IMAGENET32[-1]
    path.write_bytes(pickle.dumps({"data": Malicious(tmp_path / "owned")}, protocol=protocol))
    refused(data.load, "imagenet32", tmp_path, verify=False, parts=(path, f"{os.system.__module__}.system", "refused"))
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("fashion_mnist", ("FashionMNIST/raw", "debian", "apt-get install dataset-fashion-mnist")),
        ("cifar10", ("cifar-10-batches-py", "https://")),
        ("imagenet32", ("val_data", "imagenet32", "image-net.org")),
        ("imagenet", ("imagenet", "image-net.org")),
    ],
)
def test_missing_files_say_where_how_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused, name: str, parts: tuple[str, ...]
) -> None:
    from torchvision import datasets
    from torchvision.datasets import utils

    def unplugged(*_: object, **__: object) -> None:
        raise OSError("Name or service\nnot known")

    write_batches(tmp_path, IMAGENET32[:-1], 1, 1000)
    refused(data.load, name, tmp_path, download=False, parts=(tmp_path, *parts))
    if not name.startswith("imagenet"):
        monkeypatch.setattr(utils, "download_and_extract_archive", unplugged)
        monkeypatch.setattr(datasets, "FashionMNIST", unplugged)
        refused(data.load, name, tmp_path, parts=(tmp_path, *parts, "Name or service not known"))
