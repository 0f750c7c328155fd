"""Typed, documented, range-checked settings: what the configuration's dataclasses are made of.

A field is ``name: Annotated[type, Setting("meaning", at_least=1)] = default`` in a frozen dataclass
derived from :class:`Section`; constructing one coerces (``5.0`` to ``5``, lists to tuples)
and checks each field, from a file as in code.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["Pattern", "Section", "Setting", "sections", "settings", "takes_text_only"]


@dataclass(frozen=True)
class Pattern:
    """What a text must look like: a regular expression for all of it, and the same in words."""

    regex: str
    words: str


@dataclass(frozen=True)
class Setting:
    """What a field means and which values it takes; ``None`` bounds are open."""

    doc: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    pattern: Pattern | None = None

    def check(self, key: str, value: Any) -> None:
        """Raise ValueError, naming ``key``, if ``value`` (of the right type) is out of range."""
        if isinstance(value, str):
            if self.pattern is not None and re.fullmatch(self.pattern.regex, value) is None:
                raise ValueError(f"{key} = {value!r}: expected {self.pattern.words}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{key} = {value}: expected a finite number")
            if self.at_least is not None and value < self.at_least:
                raise ValueError(f"{key} = {value}: must be at least {self.at_least}")
            if self.above is not None and value <= self.above:
                raise ValueError(f"{key} = {value}: must be greater than {self.above}")
            if self.at_most is not None and value > self.at_most:
                raise ValueError(f"{key} = {value}: must be at most {self.at_most}")
        elif isinstance(value, tuple):
            if not value:
                raise ValueError(f"{key} = []: expected at least one number")
            for item in value:
                self.check(key, item)


@dataclass(frozen=True)
class Section:
    """Coerces and checks its fields on construction, in code as from a file."""

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, (hint, setting) in settings(type(self)).items():
            key = f"{self.section}.{name}" if self.section else name
            value = _coerce(key, hint, getattr(self, name))
            setting.check(key, value)
            object.__setattr__(self, name, value)


def settings(kind: type[Section]) -> dict[str, tuple[Any, Setting]]:
    """Type and setting of each of a section's own fields, sub-sections left out."""
    hints = get_type_hints(kind, include_extras=True)
    own = [f.name for f in dataclasses.fields(kind)]
    annotated = {name: get_args(hints[name]) for name in own if name not in sections(hints)}
    return {name: (arguments[0], arguments[1]) for name, arguments in annotated.items()}


def sections(hints: Mapping[str, Any]) -> dict[str, type[Section]]:
    """The fields that are sections, of all type hints of a class."""
    return {n: h for n, h in hints.items() if isinstance(h, type) and issubclass(h, Section)}


def _options(hint: Any) -> tuple[Any, ...]:
    """The types a hint allows: the members of a union, or the hint alone."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def takes_text_only(hint: Any) -> bool:
    """Whether a setting of this type is a text (or null), never a number."""
    return str in _options(hint) and float not in _options(hint)


def _coerce(key: str, hint: Any, value: Any) -> Any:
    """``value`` as the type ``hint`` asks for: whole floats do for integers, lists for tuples."""
    options = _options(hint)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None and type(None) in options:
        return None
    if get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
        raise ValueError(f"{key} = {_shown(value)}: expected one of {', '.join(get_args(hint))}")
    if isinstance(value, bool) and bool in options:
        return value
    if number and float in options:
        return _float(key, value)
    if number and int in options and (isinstance(value, int) or value.is_integer()):
        return int(value)
    if isinstance(value, str) and str in options:
        return value
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(_coerce(key, get_args(hint)[0], item) for item in value)
    expected = " or ".join(_WORDS.get(option, _LIST_WORDS) for option in options)
    raise ValueError(f"{key} = {_shown(value)}: expected {expected}")


def _float(key: str, value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{key}: expected a finite number, found a larger one") from None


_REPR = reprlib.Repr()  # aliases in YAML can make a few lines a list of millions
_REPR.maxstring = _REPR.maxother = 200


def _shown(value: Any) -> str:
    return "null" if value is None else _REPR.repr(value)


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}
_LIST_WORDS = "a list of whole numbers such as [256, 256]"
