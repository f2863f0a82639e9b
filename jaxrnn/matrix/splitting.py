"""A sequence split into chunks of equally many steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Shaped

from ..core.types import PyTree


def split_steps(zs: PyTree, chunk: int, reverse: bool) -> PyTree:
    """Split the inputs of all steps into chunks, in the order of computation.

    The last chunk is filled up by the last step, without a gradient: any other number
    might lie outside the domain of the cell, and 0 times an infinite derivative is NaN.
    The filling is no ``jnp.pad``, whose transpose makes devices that share a batch send
    each other zeros.

    Args:
        zs: ``(T, *B, ...)`` per leaf, T at least 1.
        chunk: the number of steps in a chunk.
        reverse: whether the steps run from the last to the first.

    Returns:
        ``(count, chunk, *B, ...)`` per leaf.
    """

    def split(leaf):
        leaf = jnp.flip(leaf, 0) if reverse else leaf
        last = jax.lax.stop_gradient(leaf[-1:])
        return _join_and_split(leaf, last, chunk)

    return jax.tree.map(split, zs)


def split_flags(flags: Bool[Array, "T *B"] | None, chunk: int, reverse: bool) -> Any:
    """Split flags, or None, as `split_steps` does inputs; the filling is False."""
    if flags is None:
        return None
    flags = jnp.flip(flags, 0) if reverse else flags
    return _join_and_split(flags, jnp.zeros_like(flags[:1]), chunk)


def join_chunks(
    chunks: Shaped[Array, "N C *B"], steps: int, reverse: bool
) -> Shaped[Array, "T *B"]:
    """Return what was computed of all steps, the inverse of `split_steps`."""
    count, size, *rest = chunks.shape
    joined = chunks.reshape(count * size, *rest)[:steps]
    return jnp.flip(joined, 0) if reverse else joined


def _join_and_split(leaf: Array, filler: Array, chunk: int) -> Array:
    steps, rest = leaf.shape[0], leaf.shape[1:]
    count = -(-steps // chunk)
    if missing := count * chunk - steps:
        filling = jnp.broadcast_to(filler, (missing, *rest))
        leaf = jnp.concatenate([leaf, filling])
    return leaf.reshape(count, chunk, *rest)
