"""Reversal of sequences in time that leaves padding at the end."""

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
    """Reverse each sequence within its length; padding stays at the end.

    ::

        y_t = x_(L-1-t)  for t < L,    y_t = x_t  for t >= L

    where L is the length of the sequence.

    Args:
        inputs: ``(*B, T, ...)``, or ``(T, *B, ...)`` if ``time_major``.
        seq_lengths: ``(*B,)`` integers of any dtype, or a list; None reverses whole
            sequences.
        num_batch_dims: the number of axes of ``*B``.
        time_major: whether the time axis is the first one.

    Returns:
        An array of the shape of ``inputs``.

    Raises:
        TypeError: if the lengths are not integers.
        ValueError: if their shape is not that of the batch.

    Example::

        >>> import jax.numpy as jnp
        >>> from jaxrnn.nnx import flip_sequences
        >>> xs = jnp.array([[1, 2, 3], [4, 5, 0]])
        >>> flip_sequences(xs, jnp.array([3, 2]), 1, time_major=False).tolist()
        [[3, 2, 1], [5, 4, 0]]
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
            f"flip_sequences: seq_lengths must have one length per sequence, shape "
            f"{batch}, but have {jnp.shape(seq_lengths)}"
        )
    t = jnp.arange(steps, dtype=jnp.int32).reshape(-1, *[1] * num_batch_dims)
    indices = jnp.where(t < seq_lengths[None], seq_lengths[None] - 1 - t, t)
    indices = jnp.moveaxis(indices, 0, axis)
    return jnp.take_along_axis(
        inputs,
        indices.reshape(indices.shape + (1,) * (inputs.ndim - indices.ndim)),
        axis,
    )


def whole(lengths: Lengths) -> Integer[Array, "*B"]:
    """Convert lengths to int32, because step numbers could overflow in int8."""
    array = jnp.asarray(lengths)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"seq_lengths must be integers, one per sequence, but they are "
            f"{describe(array)}"
        )
    return array.astype(jnp.int32)
