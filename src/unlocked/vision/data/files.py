"""What readers share: downloads, what damaged files say, and pickles read without running what a pickle could run."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unlocked.errors import DataError


def line(error: BaseException) -> str:
    """An exception's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes a `DataError` that names the file: a damaged one can raise nearly anything."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{path} is damaged: {line(error)}") from error


def fetch(may: bool, missing: str, advice: str, download: Callable[[], object]) -> None:
    """Download a data set if that may be, or say what is missing and how to get it."""
    if not may:
        raise DataError(f"{missing}: {advice}")
    try:
        download()
    except Exception as error:  # whatever the network, the server or the archive did, the advice is the same
        raise DataError(f"{missing} and could not be downloaded ({line(error)}): {advice}") from error


def unpickled(paths: Sequence[Path], classes: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels from 0 of batches (CIFAR, ImageNet32) whose labels begin at `first`."""
    # A file is a little larger than its images. Memory that is never written costs nothing, so this room, made before
    # N is known, spares ImageNet32 a second copy of 3.9 GB.
    room = np.empty((sum(path.stat().st_size for path in paths) // 3072, 3, 32, 32), np.uint8)
    all_labels, count = [], 0
    for path in paths:
        with reading(path), path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()  # Python 2 wrote CIFAR's files
            images, labels = np.asarray(content["data"]), np.asarray(content["labels"], np.int64)
            if images.dtype != np.uint8 or images.shape[:1] != labels.shape or images.shape[1:] != (3072,):
                raise ValueError(f"data {images.dtype} {images.shape}, labels {labels.shape}")
            if labels.min(initial=first) < first or labels.max(initial=first) >= first + classes:
                raise ValueError(f"its labels must be {first} to {first + classes - 1}")
        room[count : count + len(images)] = images.reshape(-1, 3, 32, 32)
        all_labels.append(labels - first)
        count += len(images)
    return room[:count], np.concatenate(all_labels)


def _from_latin1(text: str, encoding: str) -> bytes:
    """What pickles of protocol 2 call for bytes; other codecs could decompress without limit."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}, which is refused")
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
        known = _PICKLED_NAMES.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused: only NumPy arrays are built")
        return known
