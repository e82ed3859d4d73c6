"""How two workers exchange vectors: through memory that both map, where they are on one host, else over their socket.

Every worker has memory for the vector that it sends and for the one that comes back. A peer on the same host reads the
one and writes the other where they are, and the socket carries single bytes. The memory has no name in any file system
and is gone with the last process that has it. Vectors on a GPU go through the host's memory.
"""

from __future__ import annotations

import mmap
import os
import secrets

import torch
from torch import Tensor

HEAD = 64  # bytes in front, which show a peer that it has opened the right memory
ALIGNED = 64


class Memory:
    """Pairs of vectors: what is sent and what comes back. Pages that are never written cost nothing."""

    def __init__(self, like: Tensor, buffer: mmap.mmap | bytearray) -> None:
        self.dtype, self.length, self.buffer = like.dtype, like.numel(), buffer
        self.stride, self.handle = stride_of(like), -1

    def close(self) -> None:
        """Nobody can map it from now on."""
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    @classmethod
    def made(cls, like: Tensor, pairs: int) -> tuple[Memory, str, str]:
        """New memory, and where and by which mark peers find it ("" on systems that cannot share it so)."""
        size = HEAD + 2 * pairs * stride_of(like)
        if not hasattr(os, "memfd_create"):
            return cls(like, bytearray(size)), "", ""
        handle = os.memfd_create("gossip")
        os.ftruncate(handle, size)
        memory = cls(like, mmap.mmap(handle, size))
        memory.handle = handle
        mark = secrets.token_bytes(HEAD)
        memory.buffer[:HEAD] = mark
        return memory, f"/proc/{os.getpid()}/fd/{handle}", mark.hex()

    @classmethod
    def opened(cls, like: Tensor, where: str, mark: str) -> Memory | None:
        """A peer's memory; None if it is not on this host."""
        if not where.startswith("/proc/"):
            return None
        try:
            handle = os.open(where, os.O_RDWR)
        except OSError:
            return None
        try:
            buffer = mmap.mmap(handle, 0)
        except (OSError, ValueError):
            return None
        finally:
            os.close(handle)
        return cls(like, buffer) if buffer[:HEAD].hex() == mark else None

    def pair(self, number: int) -> tuple[Tensor, Tensor]:
        """The `number`-th pair, each (d,): what its owner sends, and what comes back."""
        sent, back = (
            torch.frombuffer(self.buffer, dtype=self.dtype, count=self.length, offset=HEAD + place * self.stride)
            for place in (2 * number, 2 * number + 1)
        )
        return sent, back


def stride_of(like: Tensor) -> int:
    """Bytes from one vector to the next."""
    return -(-like.numel() * like.element_size() // ALIGNED) * ALIGNED


def bytes_of(vector: Tensor) -> memoryview:
    """The memory of a vector on the CPU."""
    return memoryview(vector.view(torch.uint8).numpy())
