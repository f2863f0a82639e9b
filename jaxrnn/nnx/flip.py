"""Sequences turned round in time, padding left where it is."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Shaped

from ..core.validation import describe

Lengths = Integer[Array, "*B"] | Integer[np.ndarray, "*B"] | Sequence[int]


def flip_sequences(
    inputs: Shaped[Array, "..."],
    seq_lengths: Lengths | None,
    num_batch_dims: int,
    time_major: bool,
) -> Array:
    """``y_t = x_(L-1-t)`` for t < L, the length of each sequence; what lies behind it
    stays.

    Args:
        inputs: ``(*B, T, ...)``, or ``(T, *B, ...)`` where ``time_major``.
        seq_lengths: ``(*B,)`` integers of any dtype, or a list; None turns whole
            sequences round.
        num_batch_dims: how many axes ``*B`` stands for.
    """
    axis = 0 if time_major else num_batch_dims
    steps = inputs.shape[axis]
    if seq_lengths is None:
        return jnp.flip(inputs, axis)
    seq_lengths = whole(seq_lengths)
    batch = (
        inputs.shape[1 : 1 + num_batch_dims]
        if time_major
        else inputs.shape[:num_batch_dims]
    )
    if jnp.shape(seq_lengths) != batch:
        raise ValueError(
            f"flip_sequences: seq_lengths must have one length a sequence, shape "
            f"{batch}, but have {jnp.shape(seq_lengths)}"
        )
    t = jnp.arange(steps, dtype=jnp.int32).reshape(-1, *[1] * num_batch_dims)
    places = jnp.where(t < seq_lengths[None], seq_lengths[None] - 1 - t, t)
    places = jnp.moveaxis(places, 0, axis)
    return jnp.take_along_axis(
        inputs, places.reshape(places.shape + (1,) * (inputs.ndim - places.ndim)), axis
    )


def whole(lengths: Lengths) -> Integer[Array, "*B"]:
    """Lengths as int32: in int8 the steps themselves would wrap."""
    given = jnp.asarray(lengths)
    if not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(
            f"seq_lengths must be integers, one a sequence, but they are "
            f"{describe(given)}"
        )
    return given.astype(jnp.int32)
