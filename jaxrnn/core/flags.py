"""Flags for each row of a batch: a mask, resets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from .types import Carry


def expand_flags(flags: Shaped[Array, "*B"], leaf: Array) -> Array:
    """Add trailing axes to flags, to broadcast against a leaf ``(*B, ...)``."""
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - flags.ndim))


def select(flags: Shaped[Array, "*B"], yes: Carry, no: Carry) -> Carry:
    """Select, leaf by leaf, ``yes`` where ``flags`` is True and ``no`` elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(expand_flags(flags, a), a, b), yes, no)
