"""How much memory a computation needs at its peak, counted in tensors, so that it is the same number on every run.

Stands inside `train` on the road configs -> plan -> train -> record -> item, under `studies`. The CPU's allocator keeps
no such account, and a process's resident memory depends on what ran before.
"""

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
        self._ignore((args, kwargs))
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def _ignore(self, inputs: Any) -> None:
        """What was there before is not counted, also where an operation changes or returns it."""
        for tensor in tree_iter(inputs):
            if isinstance(tensor, Tensor):
                self._know(tensor, 0)

    def _count(self, tensor: Tensor) -> None:
        self._know(tensor, tensor.untyped_storage().nbytes())

    def _know(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.known:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_bytes(compute: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes of tensors that `compute` makes, beyond those there before; its result is dropped.

    On a GPU, what its allocator counts; on the CPU, the storages of all operations' results (an operation's own
    workspace is not seen there).
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        compute()
        return torch.cuda.max_memory_allocated(device) - before
    with _Account() as account:
        compute()
    return account.peak
