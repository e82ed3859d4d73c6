"""Fashion-MNIST."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import numpy as np

from unlocked.errors import DataError
from unlocked.vision.data.files import fetch, reading
from unlocked.vision.data.registry import Part, data_set

LARGEST = 50_000_000  # bytes of an unpacked file: the largest has 47 million
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where apt-get install dataset-fashion-mnist puts it

# SHA-256 of the unpacked files. Debian's archives differ from those with torchvision's MD5 sums by the name and time in
# the gzip header alone, so one sum serves both.
FILES = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


@data_set(
    title="Fashion-MNIST",
    classes=10,
    size=28,
    train=60_000,
    test=10_000,
    mean=(0.2860,),  # with std: of the training images, computed with NumPy in float64
    std=(0.3530,),
    padding=2,
)
def fashion_mnist(root: Path, download: bool, verify: bool) -> tuple[Part, Part, str]:
    """Fashion-MNIST (Xiao et al. 2017): the four published archives, from torchvision's or Debian's folder."""
    places = (root / "FashionMNIST" / "raw", DEBIAN)
    place = next((place for place in places if all((place / name).is_file() for name in FILES)), None)
    if place is None:
        from torchvision.datasets import FashionMNIST

        place = places[0]
        missing = f"Fashion-MNIST is not in {places[0]} and {DEBIAN}"
        advice = f"apt-get install dataset-fashion-mnist, or put its four .gz files into {place}"
        fetch(download, missing, advice, lambda: FashionMNIST(str(root), download=True))
    arrays = [idx(place / name, sha256 if verify else None) for name, sha256 in FILES.items()]
    for part, images, labels in (("train", arrays[0], arrays[1]), ("t10k", arrays[2], arrays[3])):
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise DataError(f"{place / part}-*: images {images.shape} and labels {labels.shape} do not belong together")
    return (arrays[0][:, None], arrays[1]), (arrays[2][:, None], arrays[3]), str(place)


def idx(path: Path, sha256: str | None) -> np.ndarray:
    """The uint8 array in a gzipped file of LeCun's IDX format: type and rank, big-endian sizes, values."""
    with reading(path):
        with gzip.open(path) as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST} bytes")
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its SHA-256 is not that of the published file")
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like an IDX file of bytes")
        shape = np.frombuffer(content, ">u4", content[3], offset=4)
        # A copy, because torch wants memory that may be written.
        return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape).copy()
