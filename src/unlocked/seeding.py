"""Named random generators: every draw in the project comes from one of these, derived from a run's seed.

Two runs with the same seed draw the same numbers under the same name, whatever else differs between them:
compared methods share their data order and their events (common random numbers).
"""

from __future__ import annotations

import zlib

import numpy as np


def sequence(seed: int, *names: str | int) -> np.random.SeedSequence:
    """The seed sequence of `names` (strings by their CRC-32, integers as they are) under the run's `seed`."""
    words = [seed, *(zlib.crc32(n.encode()) if isinstance(n, str) else n for n in names)]
    # NumPy takes an array of words as it is, which is faster than one entry of a list after the other
    return np.random.SeedSequence(np.array(words, np.uint32) if max(words) < 2**32 else words)


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for `names`, e.g. `generator(0, "order", worker, epoch)`."""
    return np.random.default_rng(sequence(seed, *names))


def integer(seed: int, *names: str | int) -> int:
    """A seed for `torch.Generator.manual_seed`: 63 bits, never negative."""
    return int(sequence(seed, *names).generate_state(1, np.uint64)[0] >> 1)


def deterministic_kernels() -> None:
    """Let torch compute the same bits every time, in this process; with a warning where it cannot."""
    import torch

    torch.set_deterministic_debug_mode("warn")  # `use_deterministic_algorithms` imports the compiler: a second
