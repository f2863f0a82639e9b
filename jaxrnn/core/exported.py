"""NamedTuples that ``jax.export`` may write: a carry or a window in the signature of
an exported function.
"""

from __future__ import annotations

import contextlib
from typing import TypeVar

import jax.export

Kind = TypeVar("Kind", bound=type)


def register_for_export(kind: Kind) -> Kind:
    """``kind``, a NamedTuple, with its name told to ``jax.export``: to be put before
    its definition.

    An exported function that takes or returns one can then be serialized; who reads it
    back must have imported jaxrnn.
    """
    with contextlib.suppress(
        ValueError
    ):  # a module that is loaded again: the name is taken by its first self
        jax.export.register_namedtuple_serialization(
            kind, serialized_name=f"jaxrnn.{kind.__name__}"
        )
    return kind
