"""The fields of dataclasses and NamedTuples, by name."""

from __future__ import annotations

import dataclasses
from typing import Any


def is_namedtuple(value: object) -> bool:
    """Return whether a value is an instance of a NamedTuple."""
    return is_namedtuple_class(type(value))


def is_namedtuple_class(kind: type) -> bool:
    """Return whether a class is a NamedTuple."""
    # They have no base class in common: their fields are how Python, too, knows them.
    return issubclass(kind, tuple) and hasattr(kind, "_fields")


def fields_of(value: Any) -> dict[str, Any]:
    """Return the values of the fields of a dataclass, which are not copied.

    ``dataclasses.asdict`` would also take apart the dataclasses inside, and ``vars``
    knows neither slots nor what is not a field.
    """
    # A field is an attribute whose name is known only here.
    return {
        field.name: getattr(value, field.name) for field in dataclasses.fields(value)
    }
