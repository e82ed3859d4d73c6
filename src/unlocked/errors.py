"""Errors that a person can act on: raised anywhere, printed as one line by the command line."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from pathlib import Path


class SettingError(ValueError):
    """A setting that cannot work: the message names the setting, its value, and what would be right."""

    def __init__(self, setting: str, value: object, right: str) -> None:
        self.setting, self.value, self.right = setting, value, right
        super().__init__(f"{setting} = {value!r}: {right}")

    def __reduce__(self) -> tuple:
        return type(self), (self.setting, self.value, self.right)


class DataError(RuntimeError):
    """Data that is missing or damaged: the message says where it was looked for and how to get it."""


class MachineError(RuntimeError):
    """Other processes or machines that a training needs are gone: the message names them, says why, and what to do."""


class StorageError(RuntimeError):
    """A folder that cannot be written: the message names it, says why, and what to do."""


# What a write meets on a full disk, beyond a quota or a limit, on a read-only file system, and without permission.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
IMPOSSIBLE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)  # something is in the way
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
TORCH_WRITER = "inline_container.cc"  # torch.save reports a failed write as a RuntimeError that names this file


def storage_error(error: BaseException, folder: Path) -> StorageError | None:
    """What a person can do about a failed write, in `folder` unless the error names a file of its own.

    None if `error` is about something else.
    """
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, RuntimeError) and TORCH_WRITER in str(error):
        number = errno.ENOSPC if os.access(folder, os.W_OK) else errno.EROFS
    where = str(getattr(error, "filename", None) or folder)
    where = str(folder) if where.startswith(str(folder)) else where
    if number in FULL:
        return StorageError(f"{where}: {os.strerror(number)}; free some space and run again, what was recorded is kept")
    if number in FORBIDDEN:
        return StorageError(f"{where}: {os.strerror(number)}; make it writable, or choose another folder")
    if number in IMPOSSIBLE:
        exact = getattr(error, "filename", None) or folder
        return StorageError(f"{exact}: {os.strerror(number)}; remove what is there, or choose another folder")
    return None


def one_line(error: BaseException) -> str:
    """An exception's message in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def named(error: BaseException) -> str:
    """`ValueError: what it says`, in one line: for an error that may be anything."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def choose(setting: str, value: object, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`, else raise a `SettingError` that lists them, of very many the nearest."""
    known = list(known)
    if value not in known:
        few = known if len(known) <= 60 else difflib.get_close_matches(str(value), known, n=5, cutoff=0.0)
        rest = f" and {len(known) - len(few)} more" if len(few) < len(known) else ""
        raise SettingError(setting, value, f"must be one of {', '.join(few)}{rest}")
    return str(value)
