"""One process per run: a lock that a second process waits for, and that dies with its holder.

Beside the trainers. When Snakemake alone is killed its training processes live on, and the next call wants the same
runs: it waits here until they are done, or takes over when they are dead. The lock is the kernel's (`flock`), so a
killed process leaves none behind, whatever files it leaves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unlocked.tracking import Interrupted, Stop, say

SECONDS_BETWEEN_TRIES = 0.2
HELD = (errno.EWOULDBLOCK, errno.EACCES)


def path_of(folder: Path) -> Path:
    """The lock of the run whose record stands in `folder`."""
    return folder.parent / "locks" / folder.name


@contextmanager
def held(folder: Path, stop: Stop | None) -> Iterator[None]:
    """Hold the lock of a run; wait, with one line that says so, while another process holds it.

    Raises `Interrupted` when the process is asked to stop while it waits. Where the file system has no locks, one line
    says so and the run goes on without.
    """
    path = path_of(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = wait_for(path, stop)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # while it is held: who opened it before sees that it is gone
            os.close(descriptor)


def wait_for(path: Path, stop: Stop | None) -> int | None:
    """The open, locked file; None where the file system has no locks."""
    told = False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_same(descriptor, path):  # else its holder finished and removed it meanwhile: take the next
                sign(descriptor)
                return descriptor
        except OSError as error:
            if error.errno not in HELD:
                os.close(descriptor)
                say(f"no locks in {path.parent} ({error.strerror}): start no second workflow on these results")
                return None
            if not told:
                say(f"{path.name} is being trained by {signature(descriptor)}: waiting for it")
                told = True
            time.sleep(SECONDS_BETWEEN_TRIES)
        os.close(descriptor)
        if stop is not None and stop.requested is not None:
            raise Interrupted(stop.requested)


def sign(descriptor: int) -> None:
    """Write who holds the lock, for those who wait; on a full disk they are told less."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)


def signature(descriptor: int) -> str:
    """Who holds the lock."""
    return os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"


def is_same(descriptor: int, path: Path) -> bool:
    """Whether `path` is still the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
