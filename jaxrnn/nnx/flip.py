"""Sequences turned round in time, padding left where it is."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Integer, Shaped


def flip_sequences(
    inputs: Shaped[Array, "..."], seq_lengths: Integer[Array, "*B"] | None, num_batch_dims: int, time_major: bool
) -> Array:
    """``y_t = x_(L-1-t)`` for t < L, the length of each sequence; what lies behind it stays.

    Args:
        inputs: ``(*B, T, ...)``, or ``(T, *B, ...)`` where ``time_major``.
        seq_lengths: ``(*B,)``; None turns whole sequences round.
        num_batch_dims: how many axes ``*B`` stands for.
    """
    axis = 0 if time_major else num_batch_dims
    steps = inputs.shape[axis]
    if seq_lengths is None:
        return jnp.flip(inputs, axis)
    batch = inputs.shape[1 : 1 + num_batch_dims] if time_major else inputs.shape[:num_batch_dims]
    if jnp.shape(seq_lengths) != batch:
        raise ValueError(
            f"flip_sequences: seq_lengths must have one length a sequence, shape {batch}, but have {jnp.shape(seq_lengths)}"
        )
    t = jnp.arange(steps, dtype=seq_lengths.dtype).reshape(-1, *[1] * num_batch_dims)
    places = jnp.where(t < seq_lengths[None], seq_lengths[None] - 1 - t, t)
    places = jnp.moveaxis(places, 0, axis)
    return jnp.take_along_axis(inputs, places.reshape(places.shape + (1,) * (inputs.ndim - places.ndim)), axis)
