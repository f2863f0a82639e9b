"""What other libraries' objects may or may not have, by class or by version."""

from __future__ import annotations

import enum
from typing import Any


def optional_attribute(source: Any, name: str, default: Any = None) -> Any:
    """Return an attribute of an object of another library, or ``default``.

    It is for objects whose classes have no base in common that would declare it: arrays
    of any library, cells that users of flax wrote, types of several versions of jax.
    jaxrnn's own classes declare what they have.
    """
    return getattr(source, name, default)


def precision_word(precision: Any) -> str:
    """Return the word for a precision of jax, whose enumerations have names for it."""
    named = isinstance(precision, enum.Enum)
    return str(precision.name if named else precision).lower()


def varying_axes(aval: Any) -> frozenset:
    """Return the mesh axes over which the value of an abstract array varies.

    They are known inside ``jax.shard_map`` with ``check_vma=True``, and no version of
    jax before that kind of type has the attribute.
    """
    kind = optional_attribute(aval, "manual_axis_type")
    return frozenset() if kind is None else frozenset(kind.varying)
