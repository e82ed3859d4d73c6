"""Typed settings: frozen dataclasses whose fields say what they mean and what they allow.

A field is made with `setting(default, "what it does", above=0)`. Making an object checks every field against its type
and its rule, then calls `check` for what concerns several fields together; the first thing that is wrong raises one
`SettingError`. Nothing else in the project checks a setting, and every reader gets an attribute with a type.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from unlocked.errors import SettingError, choose

S = TypeVar("S", bound="Settings")
Names = Iterable[str] | Callable[[], Iterable[str]]  # a function where names are registered later


@dataclass(frozen=True)
class Rule:
    """What a field means, and which values it may have. Bounds and names hold for every entry of a tuple."""

    says: str = ""
    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None
    names: Names | None = None
    pattern: str | None = None  # of texts, as a whole
    nonempty: bool = False
    later: bool = False  # added when there were runs already: at its default it has no part in a run's id

    def allowed(self) -> tuple[str, ...] | None:
        """The names to choose from, None where any value goes."""
        return None if self.names is None else tuple(self.names() if callable(self.names) else self.names)

    def range(self) -> str:
        """`above 0, at most 1`; empty without bounds."""
        bounds = (("above", self.above), ("at least", self.least), ("below", self.below), ("at most", self.most))
        return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    def holds(self, number: float) -> bool:
        """Whether a number is within the bounds."""
        return (
            (self.above is None or number > self.above)
            and (self.least is None or number >= self.least)
            and (self.below is None or number < self.below)
            and (self.most is None or number <= self.most)
        )


def setting(default: Any, says: str, *, empty: type | None = None, **rule: Any) -> Any:
    """A field with a default; `rule`: the other fields of `Rule`. A `Settings` default is shared: it cannot change.

    `empty`: the default is an empty one of these, made anew for every object.
    """
    metadata = {"rule": Rule(says, **rule)}
    if empty is not None:
        return dataclasses.field(default_factory=empty, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Base of all settings."""

    def __post_init__(self) -> None:
        for spec in specs(type(self)):
            value = spec.checked(getattr(self, spec.name))
            object.__setattr__(self, spec.name, value)  # e.g. 1 as 1.0: equal settings are equal to the last bit
        self.check()

    def check(self) -> None:
        """Refuse combinations of fields that cannot work."""

    def refuse_unless(self, condition: bool, name: str, reason: str) -> None:
        """`SettingError` on the field `name` unless a condition holds."""
        if not condition:
            raise SettingError(name, getattr(self, name), reason)

    def refuse_idle(self, name: str, condition: bool, reason: str) -> None:
        """Refuse a value of `name` that differs from its default where it would have no effect."""
        default = next(spec.default for spec in specs(type(self)) if spec.name == name)
        self.refuse_unless(condition or getattr(self, name) == default, name, f"has no effect here: it needs {reason}")


@dataclass(frozen=True)
class Spec:
    """A field as it is declared."""

    name: str
    kind: Any  # int, float, bool, str, or a subclass of Settings
    optional: bool  # null is allowed
    many: bool  # a tuple of such values
    default: Any
    rule: Rule

    @property
    def nested(self) -> bool:
        """Whether it holds settings of its own."""
        return isinstance(self.kind, type) and issubclass(self.kind, Settings)

    def checked(self, value: Any) -> Any:
        """The value in its own type; `SettingError` if it cannot stand."""
        if value is None and self.optional:
            return None
        if not self.many:
            return self._one(value)
        if not isinstance(value, (list, tuple)):
            raise SettingError(self.name, value, f"must be a list of {self.type_text(plural=True)}")
        if self.rule.nonempty and not value:
            raise SettingError(self.name, list(value), "must not be empty")
        return tuple(self._one(entry) for entry in value)

    def _one(self, value: Any) -> Any:
        """One value, or one entry of a tuple."""
        if self.nested and not isinstance(value, self.kind):
            raise SettingError(self.name, value, "must hold settings of its own")
        if self.nested:
            return value
        value = self._in_type(value)
        if (names := self.rule.allowed()) is not None:
            return choose(self.name, value, names)
        if self.rule.pattern is not None and not re.fullmatch(self.rule.pattern, value):
            raise SettingError(self.name, value, f"must look like {self.rule.pattern}")
        if self.kind in (int, float) and not (math.isfinite(value) and self.rule.holds(value)):
            raise SettingError(self.name, value, " ".join(f"must be {self.type_text()} {self.rule.range()}".split()))
        return value

    def _in_type(self, value: Any) -> Any:
        """Whole floats are integers and integers are floats, as YAML and command lines mean them."""
        if self.kind is float and type(value) is int:
            return float(value)
        if self.kind is int and type(value) is float and value.is_integer():
            return int(value)
        if type(value) is not self.kind:
            raise SettingError(self.name, value, f"must be {self.type_text()}")
        return value

    def type_text(self, plural: bool = False) -> str:
        """`a whole number`, `numbers`."""
        singular, many = TYPES.get(self.kind, ("settings", "settings"))
        return many if plural else singular + " or null" * self.optional


TYPES = {
    int: ("a whole number", "whole numbers"),
    float: ("a finite number", "numbers"),
    bool: ("true or false", "truth values"),
    str: ("text", "texts"),
    dict: ("a mapping", "mappings"),
}


_SPECS: dict[type, tuple[Spec, ...]] = {}


def specs(cls: type[Settings]) -> tuple[Spec, ...]:
    """The fields of a class, in order."""
    if cls not in _SPECS:
        hints = typing.get_type_hints(cls)
        _SPECS[cls] = tuple(_spec(field, hints[field.name]) for field in dataclasses.fields(cls))
    return _SPECS[cls]


def _spec(field: dataclasses.Field[Any], hint: Any) -> Spec:
    optional = many = False
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        [hint] = [part for part in typing.get_args(hint) if part is not type(None)]
        optional = True
    if typing.get_origin(hint) is tuple:
        hint, many = typing.get_args(hint)[0], True
    if typing.get_origin(hint) is dict:  # free values, for others to read
        hint = dict
    return Spec(field.name, hint, optional, many, field.default, field.metadata.get("rule", Rule()))


def build(cls: type[S], values: Mapping[str, Any]) -> S:
    """Settings from nested plain values, defaults where none is given; errors name the setting by its dotted path."""
    known = {spec.name: spec for spec in specs(cls)}
    made = {}
    for name, value in values.items():
        if name not in known:
            choose("setting", name, known)
        with inside(name):
            made[name] = _built(known[name], value)
    return cls(**made)


def _built(spec: Spec, value: Any) -> Any:
    """A nested value as the settings that a field holds; other values as they are."""
    if not spec.nested:
        return value
    if spec.many and isinstance(value, (list, tuple)):
        return tuple(build(spec.kind, entry) if isinstance(entry, Mapping) else entry for entry in value)
    return build(spec.kind, value) if isinstance(value, Mapping) else value


class inside:
    """Errors about a nested setting get the name of what it stands in."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, SettingError):
            name = f"{self.name}: {error.setting}" if error.setting == "setting" else f"{self.name}.{error.setting}"
            raise SettingError(name, error.value, error.right) from None


def plain(settings: Settings, later: bool = True) -> dict[str, Any]:
    """Nested plain values: what `build` takes, YAML and JSON hold. Tuples become lists.

    Without `later`, settings that were added later (`Rule.later`) are left out where they have their default.
    """
    values = ((spec, getattr(settings, spec.name)) for spec in specs(type(settings)))
    return {
        spec.name: _plain(value, later)
        for spec, value in values
        if later or not spec.rule.later or value != spec.default
    }


def _plain(value: Any, later: bool) -> Any:
    if isinstance(value, Settings):
        return plain(value, later)
    return [_plain(entry, later) for entry in value] if isinstance(value, tuple) else value


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def names(cls: type[Settings], prefix: str = "") -> Iterator[tuple[str, Spec]]:
    """(dotted name, declaration) of all fields, those of nested settings included."""
    for spec in specs(cls):
        if spec.nested and not spec.many:
            yield from names(spec.kind, f"{prefix}{spec.name}.")
        else:
            yield f"{prefix}{spec.name}", spec


_DOTTED: dict[type, frozenset[str]] = {}


def dotted(cls: type[Settings]) -> frozenset[str]:
    """The dotted names of all fields."""
    if cls not in _DOTTED:
        _DOTTED[cls] = frozenset(name for name, _ in names(cls))
    return _DOTTED[cls]
