"""What readers share: downloads, what damaged files say, and pickles read without running what a pickle could run."""

from __future__ import annotations

import mmap
import pickle
import pickletools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unlocked.errors import DataError, one_line


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside becomes a `DataError` that names the file: a damaged one can raise nearly anything."""
    try:
        yield
    except Exception as error:
        raise DataError(f"{path} is damaged: {one_line(error)}") from error


def fetch(may: bool, missing: str, advice: str, download: Callable[[], object]) -> None:
    """Download a data set if that may be, or say what is missing and how to get it."""
    if not may:
        raise DataError(f"{missing}: {advice}")
    try:
        download()
    except Exception as error:  # whatever the network, the server or the archive did, the advice is the same
        raise DataError(f"{missing} and could not be downloaded ({one_line(error)}): {advice}") from error


def unpickled(paths: Sequence[Path], classes: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels from 0 of batches (CIFAR, ImageNet32) whose labels begin at `first`."""
    # A file is a little larger than its images. Memory that is never written costs nothing, so this room, made before
    # N is known, spares ImageNet32 a second copy of 3.9 GB.
    room = np.empty((sum(path.stat().st_size for path in paths) // 3072, 3, 32, 32), np.uint8)
    all_labels, count = [], 0
    for path in paths:
        with reading(path), path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_sizes(content)
            batch = _ArrayUnpickler(content, encoding="latin1").load()  # Python 2 wrote CIFAR's files
            images, labels = batch["data"], _numbers(batch["labels"])
            if images.dtype != np.uint8 or images.shape[:1] != labels.shape or images.shape[1:] != (3072,):
                raise ValueError(f"data {images.dtype} {images.shape}, labels {labels.shape}")
            if labels.min(initial=first) < first or labels.max(initial=first) >= first + classes:
                raise ValueError(f"its labels must be {first} to {first + classes - 1}")
        room[count : count + len(images)] = images.reshape(-1, 3, 32, 32)
        all_labels.append(labels - first)
        count += len(images)
    return room[:count], np.concatenate(all_labels)


CALLS = 64  # of functions in a pickle; each can cost as much memory as the file is long, and a batch takes ten


def _check_sizes(content: Any) -> None:
    """Refuse what would take much more memory than the file is long, from what it says, before anything is made."""
    calls = 0
    for number, (code, argument, _) in enumerate(pickletools.genops(content)):  # lengths beyond the end raise here
        calls += code.name in ("REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST")
        if code.name.endswith("PUT") and int(argument or 0) > number:
            raise pickle.UnpicklingError(f"it wants room for {argument} values and has fewer, which is refused")
    if calls > CALLS:
        raise pickle.UnpicklingError(f"it calls {calls} functions, which is refused: a batch takes fewer than {CALLS}")
    content.seek(0)


def _numbers(labels: Any) -> np.ndarray:
    """Labels, an array or a flat list of integers; lists of lists could be endless in few bytes."""
    if isinstance(labels, list) and not all(type(label) is int for label in labels):
        raise ValueError("its labels must be whole numbers")
    return np.asarray(labels, np.int64)


def _from_latin1(text: str, encoding: str) -> bytes:
    """What pickles of protocol 2 call for bytes; other codecs could decompress without limit."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding}, which is refused")
    return text.encode("latin1")


class _Array:
    """What a pickle may name as the class of an array; only an empty one is made, whose content is set from bytes."""


def _empty(_kind: type[_Array], shape: tuple[int, ...], _code: bytes) -> np.ndarray:
    if np.prod(shape):
        raise pickle.UnpicklingError(f"it asks for an array {shape} without content, which is refused")
    return np.empty(0, np.uint8)


# The functions that NumPy names in a pickle are private; asking an array for them works with every version.
_PICKLED_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty,
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
