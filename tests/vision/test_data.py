"""Readers on tiny files in the real formats, served batches against a slow reference, errors that can be acted on."""

from __future__ import annotations

import gzip
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from unlocked.errors import DataError, SettingError
from unlocked.vision import data
from unlocked.vision.data import Split, StreamedSplit


def draws(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def small_split(augmentation: str = "crop_flip", channels: int = 3, padding: int = 2) -> Split:
    images = torch.from_numpy(draws(0).integers(0, 256, (40, channels, 7, 7), dtype=np.uint8))
    labels = torch.arange(40) % 5
    return Split(images, labels, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels], augmentation, padding)


def one_line(error: pytest.ExceptionInfo, *parts: object) -> None:
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


# Serving -------------------------------------------------------------------------------------------------------------


def normalised(images: Tensor, split: Split) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (split.mean, split.std))
    return (images.float() / 255 - mean) / std


def crops_of(image: Tensor, padding: int, flips: tuple[bool, ...]) -> list[Tensor]:
    """Every crop of one image, the obvious way: rows, then columns, then flips."""
    padded = F.pad(image, (padding,) * 4)
    _, height, width = image.shape
    crops = []
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            crops += [crop.flip(2) if flip else crop for flip in flips]
    return crops


@pytest.mark.parametrize(("augmentation", "flips"), [("crop_flip", (False, True)), ("crop", (False,))])
@pytest.mark.parametrize("channels", [1, 3])
def test_seeded_batch_equals_slow_reference(augmentation: str, flips: tuple[bool, ...], channels: int) -> None:
    split = small_split(augmentation, channels)
    indices = torch.tensor([3, 0, 39, 3, 17, 8])
    images, labels = split.batch(indices, seed=11)
    choice = torch.randint(25 * len(flips), (6,), generator=torch.Generator().manual_seed(11))
    crops = [crops_of(split.images[i], 2, flips)[c] for i, c in zip(indices, choice, strict=True)]
    torch.testing.assert_close(images, normalised(torch.stack(crops), split), atol=1e-6, rtol=1e-6)
    assert images.dtype == torch.float32
    assert labels.tolist() == split.labels[indices].tolist()


def test_every_crop_and_flip_is_drawn_about_equally_often() -> None:
    split = small_split("crop_flip", channels=1, padding=1)
    images, _ = split.batch(torch.zeros(9000, dtype=torch.int64), seed=0)
    options = normalised(torch.stack(crops_of(split.images[0], 1, (False, True))), split)
    which = torch.cdist(images.flatten(1), options.flatten(1)).argmin(1)
    counts = torch.bincount(which, minlength=18)
    assert len(counts) == 18
    assert (counts - 500).abs().max() < 5 * 500**0.5


def test_plain_batch_is_the_normalised_images_and_none_ignores_the_seed() -> None:
    split = small_split("none")
    indices = [4, 4, 2]
    images, labels = split.batch(indices)
    torch.testing.assert_close(images, normalised(split.images[indices], split))
    assert labels.tolist() == [4, 4, 2]
    assert torch.equal(split.batch(indices, seed=5)[0], images)


def test_indices_may_be_numpy_and_batches_may_be_empty() -> None:
    split = small_split()
    assert torch.equal(split.batch(np.array([1, 2]), 3)[0], split.batch(torch.tensor([1, 2]), 3)[0])
    assert split.batch(torch.zeros(0, dtype=torch.int64), 3)[0].shape == (0, 3, 7, 7)


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 5),
    size=st.integers(1, 6),
    first=st.integers(0, 2**63 - 1),
    augmentation=st.sampled_from(data.AUGMENTATIONS),
)
def test_groups_equal_single_batches_bit_for_bit(groups: int, size: int, first: int, augmentation: str) -> None:
    split = small_split(augmentation)
    indices = torch.from_numpy(draws(first).integers(0, 40, (groups, size)))
    for seeds in (None, [first // (g + 1) for g in range(groups)]):
        images, labels = split.batch_groups(indices, seeds)
        assert images.shape == (groups, size, 3, 7, 7)
        for g in range(groups):
            alone, alone_labels = split.batch(indices[g], None if seeds is None else seeds[g])
            assert torch.equal(images[g], alone)
            assert torch.equal(labels[g], alone_labels)


def test_the_seed_alone_decides_and_the_global_generator_is_left_alone() -> None:
    split = small_split()
    state = torch.get_rng_state()
    first = split.batch(range(20), 1)[0]
    assert not torch.equal(first, split.batch(range(20), 2)[0])
    assert torch.equal(first, split.batch(range(20), 1)[0])
    assert torch.equal(state, torch.get_rng_state())


def test_a_seed_for_every_group_is_demanded() -> None:
    with pytest.raises(ValueError, match="1 seeds for 2 groups"):
        small_split().batch_groups(torch.zeros(2, 3, dtype=torch.int64), [1])


def test_normalisation_and_padding_are_those_of_torchvision() -> None:
    from torchvision import transforms

    split = small_split("crop", padding=2)
    pipeline = transforms.Compose(
        [transforms.Pad(2), transforms.ToTensor(), transforms.Normalize(split.mean, split.std)]
    )
    image = Image.fromarray(split.images[0].permute(1, 2, 0).numpy())
    corner = pipeline(image)[:, :7, :7]  # the crop of number 0
    seed = next(s for s in range(999) if torch.randint(25, (1,), generator=torch.Generator().manual_seed(s)) == 0)
    torch.testing.assert_close(split.batch([0], seed)[0][0], corner)


# Loading -------------------------------------------------------------------------------------------------------------


def test_names_and_unknown_name() -> None:
    assert data.names() == ("digits", "fashion_mnist", "cifar10", "cifar100", "imagenet32", "imagenet")
    with pytest.raises(SettingError) as error:
        data.load("mnist")
    one_line(error, "data = 'mnist'", "fashion_mnist")


def test_digits() -> None:
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert (digits.classes, digits.channels, digits.size) == (10, 1, 8)
    assert digits.train.images.max() == 255
    assert torch.bincount(digits.test.labels).tolist() == pytest.approx([36] * 10, abs=1)
    assert digits.train.augmentation == "none"
    assert digits.checksum == data.load("digits").checksum
    images, _ = digits.train.batch(range(1437))
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_digits_splits_do_not_overlap() -> None:
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    served = torch.cat([digits.train.images, digits.test.images]).flatten(1).numpy()
    original = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, served)) == sorted(map(bytes, original))


def test_limits_keep_a_fixed_sorted_subset() -> None:
    whole, part = data.load("digits"), data.load("digits", train_limit=50, test_limit=7)
    assert (len(part.train), len(part.test)) == (50, 7)
    rows = {bytes(image): i for i, image in enumerate(whole.train.images.numpy())}
    positions = [rows[bytes(image)] for image in part.train.images.numpy()]
    assert positions == sorted(set(positions))
    assert part.checksum == data.load("digits", train_limit=50, test_limit=7).checksum != whole.checksum


@pytest.mark.parametrize(
    ("setting", "value"), [("train_limit", 0), ("test_limit", 361), ("size", 0), ("augmentation", "mixup")]
)
def test_impossible_settings_are_named(setting: str, value: object) -> None:
    with pytest.raises(SettingError) as error:
        data.load("digits", **{setting: value})
    one_line(error, f"{setting} = {value!r}")


def test_resizing_averages_areas() -> None:
    whole, half = data.load("digits"), data.load("digits", size=4, augmentation="crop")
    means = whole.test.images.double().unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    assert half.size == half.test.images.shape[2] == 4
    assert half.test.images.dtype == torch.uint8
    assert (half.test.images - means).abs().max() <= 0.5
    assert (half.train.augmentation, half.train.padding) == ("crop", 1)


def test_moving_keeps_everything() -> None:
    moved = data.load("digits").to("meta")
    assert moved.train.images.device.type == moved.test.labels.device.type == "meta"
    assert moved.classes == 10


# Fashion-MNIST -------------------------------------------------------------------------------------------------------


def write_fashion_mnist(folder: Path, *, packed: bool) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    arrays = {}
    for part, count in (("train", 12), ("t10k", 5)):
        arrays[f"{part}-images-idx3-ubyte"] = draws(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}-labels-idx1-ubyte"] = draws(count).integers(0, 10, count, dtype=np.uint8)
    for name, array in arrays.items():
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        content = header + array.tobytes()
        path = folder / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(content) if packed else content)
    return arrays


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["torchvision", "debian"])
def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, packed: bool) -> None:
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    folder = tmp_path / "FashionMNIST" / "raw" if place == "torchvision" else tmp_path / "debian"
    arrays = write_fashion_mnist(folder, packed=packed)
    found = data.load("fashion_mnist", tmp_path, download=False, verify=False)
    assert np.array_equal(found.train.images[:, 0], arrays["train-images-idx3-ubyte"])
    assert found.test.labels.tolist() == arrays["t10k-labels-idx1-ubyte"].tolist()
    assert (found.channels, found.size, found.classes, found.source) == (1, 28, 10, str(folder))
    assert (found.train.augmentation, found.train.padding) == ("crop_flip", 2)
    assert data.load("fashion_mnist", tmp_path, size=14, verify=False).train.padding == 1
    with pytest.raises(DataError) as error:
        data.load("fashion_mnist", tmp_path, download=False)
    one_line(error, folder / "train-images-idx3-ubyte", "SHA-256")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"not a gzip file",
        lambda content: gzip.compress(gzip.decompress(content)[:-3]),
        lambda content: gzip.compress(b""),
        lambda content: gzip.compress(b"\x89PNG" + gzip.decompress(content)[4:]),
    ],
)
def test_damaged_fashion_mnist_names_the_file(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    write_fashion_mnist(folder, packed=True)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as error:
        data.load("fashion_mnist", tmp_path, verify=False)
    one_line(error, path, "damaged")


def test_fashion_mnist_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    write_fashion_mnist(folder, packed=False)
    (folder / "train-labels-idx1-ubyte").write_bytes((folder / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(DataError) as error:
        data.load("fashion_mnist", tmp_path, verify=False)
    one_line(error, "train", "belong together")


def test_missing_fashion_mnist_says_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unplugged(root: Path) -> None:
        raise RuntimeError("no route\nto host")

    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path / "debian")
    monkeypatch.setattr(data, "_download_fashion_mnist", unplugged)
    for download in (True, False):
        with pytest.raises(DataError) as error:
            data.load("fashion_mnist", tmp_path, download=download)
        where = tmp_path / "FashionMNIST" / "raw", tmp_path / "debian"
        one_line(error, *where, "apt-get install dataset-fashion-mnist", *["no route to host"] * download)


def test_fashion_mnist_as_published(tmp_path: Path) -> None:
    if not data.DEBIAN_FASHION_MNIST.is_dir():
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    found = data.load("fashion_mnist", tmp_path, download=False)
    assert (len(found.train), len(found.test)) == (60000, 10000)
    assert torch.bincount(found.train.labels).tolist() == [6000] * 10
    values = found.train.images.double() / 255
    assert values.mean().item() == pytest.approx(found.train.mean[0], abs=5e-5)
    assert values.std().item() == pytest.approx(found.train.std[0], abs=5e-5)


# CIFAR ---------------------------------------------------------------------------------------------------------------


def write_batch(path: Path, count: int, labels: dict[str, list[int]], protocol: int = 2) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = draws(len(path.name)).integers(0, 256, (count, 3072), dtype=np.uint8)
    path.write_bytes(pickle.dumps({"data": rows, **labels}, protocol=protocol))
    return rows


def write_cifar10(root: Path) -> dict[str, np.ndarray]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    folder = root / "cifar-10-batches-py"
    return {name: write_batch(folder / name, 3, {"labels": [i, 9, 0]}) for i, name in enumerate(names)}


def test_cifar10(tmp_path: Path) -> None:
    rows = write_cifar10(tmp_path)
    found = data.load("cifar10", tmp_path, download=False, verify=False)
    train = np.concatenate([rows[f"data_batch_{i}"] for i in range(1, 6)]).reshape(-1, 3, 32, 32)
    assert np.array_equal(found.train.images, train)
    assert found.train.labels.tolist() == [0, 9, 0, 1, 9, 0, 2, 9, 0, 3, 9, 0, 4, 9, 0]
    assert found.test.labels.tolist() == [5, 9, 0]
    assert (found.classes, found.channels, found.size, found.train.padding) == (10, 3, 32, 4)
    with pytest.raises(DataError) as error:
        data.load("cifar10", tmp_path, download=False)
    one_line(error, "data_batch_1", "MD5")


def test_cifar_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR100

    for name, count in (("train", 6), ("test", 4), ("meta", 1)):
        labels = {"fine_labels": list(range(count)), "coarse_labels": [0] * count, "fine_label_names": ["apple"]}
        write_batch(tmp_path / "cifar-100-python" / name, count, labels)
    found = data.load("cifar100", tmp_path, download=False, verify=False)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", None]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", None]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": None})
    reference = CIFAR100(str(tmp_path), train=True)
    assert np.array_equal(found.train.images.permute(0, 2, 3, 1), reference.data)
    assert found.train.labels.tolist() == reference.targets
    assert (found.classes, len(found.test)) == (100, 4)


def test_python_2_pickles_are_read(tmp_path: Path) -> None:
    """CIFAR's own files were written by Python 2: byte strings throughout, and NumPy's old module names."""
    rows = draws(1).integers(0, 256, (2, 3072), dtype=np.uint8)
    dumped = pickle.dumps(rows.tobytes(), protocol=3)[2:-1]  # a SHORT_BINBYTES or BINBYTES opcode and its memo
    raw = b"T" + len(rows.tobytes()).to_bytes(4, "little") + rows.tobytes()
    assert dumped.startswith(b"B")
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR(I1\n(I2\nI3072\nt"
        b"cnumpy\ndtype\n(U\x02u1I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI0\ntbI00\n" + raw + b"tb"
    )
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels(lI7\naI8\nau.")
    found = data.load("cifar10", tmp_path, verify=False)
    assert np.array_equal(found.test.images.flatten(1), rows)
    assert found.test.labels.tolist() == [7, 8]


def test_missing_cifar_says_where_and_how(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        data.load("cifar100", tmp_path, download=False)
    one_line(error, tmp_path / "cifar-100-python", "https://")


def test_failed_download_of_cifar_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    def unplugged(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr(utils, "download_and_extract_archive", unplugged)
    with pytest.raises(DataError) as error:
        data.load("cifar10", tmp_path)
    one_line(error, "Name or service not known", tmp_path, "https://")


# ImageNet32 ----------------------------------------------------------------------------------------------------------


def write_imagenet32(base: Path, train: str = "", val: str = "", protocol: int = 2) -> list[np.ndarray]:
    paths = [*(base / train / f"train_data_batch_{i}" for i in range(1, 11)), base / val / "val_data"]
    mean = {"mean": np.zeros(3072)}
    return [write_batch(path, 2, {"labels": [1, 1000 - i], **mean}, protocol) for i, path in enumerate(paths)]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("folders", [("", ""), ("Imagenet32_train", "Imagenet32_val")])
def test_imagenet32(tmp_path: Path, folders: tuple[str, str], protocol: int) -> None:
    rows = write_imagenet32(tmp_path / "imagenet32", *folders, protocol=protocol)
    found = data.load("imagenet32", tmp_path, verify=False)
    assert np.array_equal(found.train.images, np.concatenate(rows[:10]).reshape(-1, 3, 32, 32))
    assert found.train.labels[:4].tolist() == [0, 999, 0, 998]
    assert found.test.labels.tolist() == [0, 989]
    assert (found.classes, found.size, found.train.mean) == (1000, 32, (0.485, 0.456, 0.406))
    with pytest.raises(DataError) as error:
        data.load("imagenet32", tmp_path)
    one_line(error, "1281167")


def test_missing_imagenet32_names_the_file(tmp_path: Path) -> None:
    write_imagenet32(tmp_path / "imagenet32")
    (tmp_path / "imagenet32" / "train_data_batch_7").unlink()
    with pytest.raises(DataError) as error:
        data.load("imagenet32", tmp_path)
    one_line(error, "train_data_batch_7", tmp_path / "imagenet32", "image-net.org")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_pickle_is_refused_by_name(tmp_path: Path, protocol: int) -> None:
    write_imagenet32(tmp_path / "imagenet32")
    path = tmp_path / "imagenet32" / "val_data"
    path.write_bytes(pickle.dumps({"data": Malicious(tmp_path / "owned")}, protocol=protocol))
    with pytest.raises(DataError) as error:
        data.load("imagenet32", tmp_path, verify=False)
    one_line(error, path, "posix.system" if os.name == "posix" else "system")
    assert not (tmp_path / "owned").exists()


def test_a_compressing_codec_is_refused(tmp_path: Path) -> None:
    write_imagenet32(tmp_path / "imagenet32")
    path = tmp_path / "imagenet32" / "val_data"
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00bz2\x86R.")
    with pytest.raises(DataError) as error:
        data.load("imagenet32", tmp_path, verify=False)
    one_line(error, path, "bz2")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle",
        pickle.dumps({"labels": [1]}),
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((2, 3072), np.float32), "labels": [1, 2]}),
        pickle.dumps({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1000]}),
        pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]})[:-900],
    ],
)
def test_damaged_batch_names_the_file(tmp_path: Path, content: bytes) -> None:
    write_imagenet32(tmp_path / "imagenet32")
    path = tmp_path / "imagenet32" / "train_data_batch_10"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        data.load("imagenet32", tmp_path, verify=False)
    one_line(error, path, "damaged")


# ImageNet ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    sizes = [(40, 60), (64, 33), (20, 20), (90, 30)]  # (width, height)
    for part in ("train", "val"):
        for label, name in enumerate(("n01", "n02", "n03")):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for i, (width, height) in enumerate(sizes):
                pixels = draws(10 * label + i).integers(0, 256, (height, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.JPEG", quality=95)
    return tmp_path


def test_imagenet_plain_batch_is_torchvisions(imagenet: Path) -> None:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    found = data.load("imagenet", imagenet)
    pipeline = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    statistics = transforms.Normalize(found.test.mean, found.test.std)
    reference = ImageFolder(str(imagenet / "imagenet" / "val"), transforms.Compose([*pipeline, statistics]))
    images, labels = found.test.batch([7, 0, 11])
    torch.testing.assert_close(images, torch.stack([reference[i][0] for i in (7, 0, 11)]), atol=1e-5, rtol=1e-5)
    assert labels.tolist() == [1, 0, 2]
    assert (found.classes, found.channels, found.size, len(found.train)) == (3, 3, 224, 12)


def test_imagenet_seeded_batches_do_not_depend_on_threads_or_grouping(imagenet: Path) -> None:
    one, four = (data.load("imagenet", imagenet, size=16, threads=threads) for threads in (1, 4))
    indices = torch.tensor([[0, 5, 11], [3, 3, 3]])
    images, labels = four.train.batch_groups(indices, [8, 9])
    assert images.shape == (2, 3, 3, 16, 16)
    for group, seed in enumerate((8, 9)):
        alone, alone_labels = one.train.batch(indices[group], seed)
        assert torch.equal(images[group], alone)
        assert torch.equal(labels[group], alone_labels)
    assert not torch.equal(images[1, 0], images[1, 1])  # the same image, crops of their own
    plain = data.load("imagenet", imagenet, size=16, augmentation="none").train
    assert torch.equal(plain.batch([1], 3)[0], plain.batch([1])[0])


def test_random_boxes_fit_and_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = np.array([data._random_box(50, 80, generator) for _ in range(2000)])
    top, left, rows, columns = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (top + rows <= 50).all()
    assert (left + columns <= 80).all()
    area, aspect = rows * columns / 4000, columns / rows
    assert 0.07 < area.min() < 0.12
    assert area.max() > 0.8
    assert 0.7 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.45
    assert data._random_box(10, 1000, generator)[2:] == (10, 13)  # no box fits: central, widest allowed


def test_imagenet_limits_and_checksum(imagenet: Path) -> None:
    whole, part = data.load("imagenet", imagenet), data.load("imagenet", imagenet, train_limit=5, test_limit=2)
    assert isinstance(part.train, StreamedSplit)
    assert (len(part.train), len(part.test)) == (5, 2)
    assert part.train.labels.tolist() == [int(file[2]) - 1 for file in part.train.files]
    assert whole.checksum != part.checksum
    (imagenet / "imagenet" / "val" / "n01" / "0.JPEG").write_bytes(b"changed")
    assert data.load("imagenet", imagenet).checksum != whole.checksum


def test_imagenet_errors(imagenet: Path) -> None:
    path = imagenet / "imagenet" / "train" / "n02" / "3.JPEG"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError) as error:
        data.load("imagenet", imagenet).train.batch([7])
    one_line(error, path, "damaged")
    (imagenet / "imagenet" / "val" / "n02").rename(imagenet / "imagenet" / "val" / "n04")
    with pytest.raises(DataError) as error:
        data.load("imagenet", imagenet)
    one_line(error, "n02", "same classes")
    with pytest.raises(DataError) as error:
        data.load("imagenet", imagenet / "nowhere")
    one_line(error, imagenet / "nowhere" / "imagenet" / "train", "image-net.org")
