"""Scalar arguments: Python's and NumPy's numbers, and arrays without axes."""

from __future__ import annotations

import contextlib
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import is_array
from .validation import describe

# An integer without axes whose value must be known when a program is traced.
Size = int | np.integer | np.ndarray | jax.Array
# A real number without axes, which may be traced.
Number = float | np.number | np.ndarray | jax.Array


def as_size(who: str, name: str, value: Any) -> int:
    """Convert ``value`` to an int of at least 1.

    Raises:
        ValueError: for anything else, also for a traced value.
    """
    is_flag = isinstance(value, bool) or (
        is_array(value) and value.dtype == np.dtype(bool)
    )
    size = 0
    # TypeError: it is no integer, or it is traced, but a size must be known before.
    with contextlib.suppress(TypeError):
        size = 0 if is_flag else operator.index(value)
    if size < 1:
        raise ValueError(
            f"{who}: {name} must be an int of at least 1, but it is {_words(value)}"
        )
    return size


def as_number(who: str, name: str, value: Any) -> Any:
    """Convert ``value`` to a finite float of at least 0; a traced one is returned.

    Raises:
        ValueError: for anything else.
    """
    kind = value.dtype if is_array(value) else np.asarray(value).dtype
    real = jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.integer)
    if not real or jnp.shape(value) != ():
        raise ValueError(
            f"{who}: {name} must be a finite number of at least 0, but it is "
            f"{_words(value)}"
        )
    if isinstance(value, jax.core.Tracer):
        return value
    if not 0 <= float(value) < float("inf"):
        raise ValueError(
            f"{who}: {name} must be a finite number of at least 0, but it is {value!r}"
        )
    return float(value)


def _words(value: object) -> str:
    """Describe a value for an error: arrays by shape and dtype, others by repr."""
    return describe(value) if is_array(value) else repr(value)
