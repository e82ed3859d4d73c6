"""Errors that a person can act on. Raised anywhere on the road, printed as one line by the command line."""

from __future__ import annotations

from collections.abc import Iterable


class SettingError(ValueError):
    """A setting that cannot work: the message names the setting, its value, and what would be right."""

    def __init__(self, setting: str, value: object, right: str) -> None:
        self.setting, self.value, self.right = setting, value, right
        super().__init__(f"{setting} = {value!r}: {right}")

    def __reduce__(self) -> tuple:
        return type(self), (self.setting, self.value, self.right)


class DataError(RuntimeError):
    """Data that is missing or damaged: the message says where it was looked for and how to get it."""


def choose(setting: str, value: object, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`, else raise a `SettingError` that lists them."""
    known = list(known)
    if value not in known:
        raise SettingError(setting, value, f"must be one of {', '.join(known)}")
    return str(value)
