"""Registration of NamedTuples with ``jax.export``.

An exported function with a carry or a window in its signature can then be serialized.
"""

from __future__ import annotations

import contextlib
from typing import TypeVar

import jax.export

Kind = TypeVar("Kind", bound=type)


def register_for_export(kind: Kind) -> Kind:
    """Register a NamedTuple with ``jax.export``, as a class decorator.

    An exported function that takes or returns one can then be serialized. A program
    that reads it back must have imported jaxrnn.

    Args:
        kind: the NamedTuple class; its serialized name is ``jaxrnn.`` and its own.

    Returns:
        ``kind``, unchanged.

    Example:
        >>> from typing import NamedTuple
        >>> import jax, jax.export, jax.numpy as jnp
        >>> from jaxrnn.extending import register_for_export
        >>> @register_for_export
        ... class Leaky(NamedTuple):
        ...     fast: jax.Array
        ...     slow: jax.Array
        >>> state = Leaky(jnp.float32(1.0), jnp.float32(2.0))
        >>> exported = jax.export.export(jax.jit(lambda s: s._replace(slow=s.fast)))
        >>> written = exported(state).serialize()
        >>> float(jax.export.deserialize(written).call(state).slow)
        1.0
    """
    # ValueError: the module was loaded again, and the name is registered already.
    with contextlib.suppress(ValueError):
        jax.export.register_namedtuple_serialization(
            kind, serialized_name=f"jaxrnn.{kind.__name__}"
        )
    return kind
