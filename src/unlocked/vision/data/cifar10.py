"""CIFAR-10."""

from __future__ import annotations

from pathlib import Path

from unlocked.errors import DataError
from unlocked.vision.data.files import fetch, unpickled
from unlocked.vision.data.registry import Part, data_set


@data_set(
    title="CIFAR-10",
    classes=10,
    size=32,
    train=50_000,
    test=10_000,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    padding=4,
)
def cifar10(root: Path, download: bool, verify: bool) -> tuple[Part, Part, str]:
    """CIFAR-10 (Krizhevsky 2009): the "python version", in the folder where torchvision keeps it."""
    from torchvision.datasets import CIFAR10  # for its address, file names and MD5 sums
    from torchvision.datasets.utils import check_integrity, download_and_extract_archive

    folder = root / CIFAR10.base_folder
    md5s = {folder / name: md5 for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list)}
    if not all(path.is_file() for path in md5s):
        missing, advice = f"CIFAR10 is not (or not whole) in {folder}", f"unpack {CIFAR10.url} into {root}"
        archive = {"filename": CIFAR10.filename, "md5": CIFAR10.tgz_md5}
        fetch(download, missing, advice, lambda: download_and_extract_archive(CIFAR10.url, str(root), **archive))
    for path, md5 in md5s.items():
        if verify and not check_integrity(str(path), md5):
            raise DataError(f"{path} is missing or damaged: its MD5 must be {md5}; delete {folder} to fetch it anew")
    *train, test = md5s
    return unpickled(train, 10, first=0), unpickled([test], 10, first=0), str(folder)
