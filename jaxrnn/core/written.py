"""Static configuration as one would write it: short, and to be evaluated again."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
from typing import Any

import numpy as np

from .import_path import import_path_of
from .records import fields_of, is_namedtuple


def written(value: object) -> str:
    """Return an expression for a value, without fields that have their defaults.

    Evaluated where the names of classes are known, and the modules that functions come
    from, it equals the value.

    Args:
        value: a frozen dataclass, or whatever its fields hold: numbers, text, tuples,
            functions of modules, other dataclasses.

    Returns:
        The expression; for what none is known of, such as a lambda, its ``repr``.

    Example:
        >>> import jax, jaxrnn
        >>> written(jaxrnn.Elman(4, activation=jax.nn.relu))
        'Elman(hidden_size=4, activation=jax.nn.relu)'
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    if isinstance(value, np.dtype):
        return f"numpy.dtype({value.name!r})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _call(_name(type(value)), _fields(value))
    if isinstance(value, tuple):
        return _tuple(value)
    if isinstance(value, functools.partial):
        words = [written(value.func), *map(written, value.args)]
        words += [f"{name}={written(item)}" for name, item in value.keywords.items()]
        return f"functools.partial({', '.join(words)})"
    return _function(value) if callable(value) else repr(value)


def _name(kind: type) -> str:
    """Return the name of a class, without the function in which it was defined."""
    return kind.__qualname__.rpartition("<locals>.")[2]


def _call(name: str, fields: dict[str, Any]) -> str:
    """Return a call with keyword arguments."""
    words = [f"{field}={written(value)}" for field, value in fields.items()]
    return f"{name}({', '.join(words)})"


def _fields(value: Any) -> dict[str, Any]:
    """Return the fields that are shown and differ from their defaults."""
    values = fields_of(value)
    return {
        field.name: values[field.name]
        for field in dataclasses.fields(value)
        if field.init and field.repr and not _is_default(field, values[field.name])
    }


def _is_default(field: Any, value: object) -> bool:
    """Return whether a field of a dataclass has its default value."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is value:
        return True
    if type(default) is not type(value):
        return False
    try:
        return bool(default == value)
    except (TypeError, ValueError):  # arrays, which no cell may hold, but some do
        return False


def _tuple(value: tuple[Any, ...]) -> str:
    """Return a tuple or a NamedTuple."""
    if is_namedtuple(value):
        fields = zip(value._fields, value, strict=True)  # type: ignore[attr-defined]
        return _call(_name(type(value)), dict(fields))
    inside = ", ".join(map(written, value))
    return f"({inside},)" if len(value) == 1 else f"({inside})"


def _function(value: Any) -> str:
    """Return where a module holds a function or a type."""
    try:
        module, _, name = import_path_of(value, "").partition(":")
    except TypeError:
        return repr(value)
    return name if module in ("builtins", "__main__") else f"{module}.{name}"
