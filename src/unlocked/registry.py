"""Checks of what people add under a name (graphs, laws, statistics, data sets, guesses, targets), when they add it.

    name_of(kind, function, taken, parameters) -> str    the name of a function that is registered under its own name
    check(kind, name, taken, *problems)                  of anything; problems: pairs (it is wrong, what would be right)

Both raise a `SettingError` of `kind` and the name that says the first thing that is wrong.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Container
from typing import Any

from unlocked.errors import SettingError


def check(kind: str, name: str, taken: Container[str], *problems: tuple[object, str]) -> None:
    """Refuse a name that is no lower-case word or in `taken`, and the first of `problems` whose condition is true."""
    naming = (
        (not re.fullmatch(r"[a-z][a-z0-9_]*", str(name)), "must be lower-case letters, digits and _"),
        (name in taken, f"is the name of another {kind} that is registered already"),
    )
    for wrong, reason in (*naming, *problems):
        if wrong:
            raise SettingError(kind, name, reason)


def name_of(kind: str, function: Callable[..., Any], taken: Container[str], parameters: tuple[str, ...]) -> str:
    """The function's name, checked; it must have a docstring and take `parameters` (an unused one may begin with _)."""
    taking = tuple(parameter.lstrip("_") for parameter in inspect.signature(function).parameters)
    check(
        kind,
        function.__name__,
        taken,
        (not inspect.getdoc(function), "needs a docstring that says what it is"),
        (taking != parameters, f"must take ({', '.join(parameters)})"),
    )
    return function.__name__
