"""How much memory a computation needs at its peak, counted in tensors, so that it is the same number on every run."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class _Account(TorchDispatchMode):
    """Adds every storage that an operation makes and takes it off when the storage is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # what was there before is not counted, also where an operation changes or returns it
        self._know((args, kwargs), counted=False)
        result = func(*args, **(kwargs or {}))
        self._know(result, counted=True)
        return result

    def _know(self, tree: Any, counted: bool) -> None:
        for storage in (tensor.untyped_storage() for tensor in tree_iter(tree) if isinstance(tensor, Tensor)):
            key, size = storage._cdata, storage.nbytes() * counted
            if key not in self.known:
                self.known.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_bytes(compute: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes of tensors that `compute` makes, beyond those there before: storages, on a GPU what it allocates."""
    if not device.startswith("cuda"):
        with _Account() as account:
            compute()
        return account.peak
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    compute()
    return torch.cuda.max_memory_allocated(device) - before
