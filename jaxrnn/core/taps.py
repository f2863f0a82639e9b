"""Values inside a step that a diagnostic may ask for."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

_FOUND: contextvars.ContextVar[dict[str, Any] | None] = contextvars.ContextVar(
    "jaxrnn_taps", default=None
)


def tap(value: object, name: str) -> Any:
    """Name a value inside a cell's ``project``, ``step`` or ``output``.

    It returns the value as it is. `jaxrnn.diagnostics.tapped` gives the named values of
    all steps as arrays; everywhere else a tap leaves no trace in the program. It cannot
    stand in a ``jax.lax.scan``, ``cond`` or ``jax.jit`` inside the step: name what
    those return.

    Args:
        value: an array ``(*B, ...)``, or a pytree of arrays.
        name: its name, once in a cell.

    Returns:
        ``value``.

    Raises:
        ValueError: if two values of one cell have the same name.

    Example:
        >>> import dataclasses, jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> from jaxrnn.extending import tap
        >>> @dataclasses.dataclass(frozen=True)
        ... class Leaky(jaxrnn.Cell):
        ...     hidden_size: int
        ...
        ...     def step(self, params, carry, z):
        ...         keep = tap(jax.nn.sigmoid(z), "keep")
        ...         return keep * carry + (1 - keep) * z
        >>> xs = jnp.zeros((5, 2, 3))
        >>> values = jaxrnn.diagnostics.tapped(Leaky(3), {}, xs)
        >>> values["keep"].shape, float(values["keep"].max())
        ((5, 2, 3), 0.5)
    """
    found = _FOUND.get()
    if found is None:
        return value
    if name in found:
        raise ValueError(
            f"tap: two values of one cell are named {name!r}: give each a name of its "
            f"own"
        )
    found[name] = value
    return value


@contextlib.contextmanager
def taps_into(found: dict[str, Any]) -> Iterator[None]:
    """Let `tap` put values into ``found``."""
    token = _FOUND.set(found)
    try:
        yield
    finally:
        _FOUND.reset(token)
