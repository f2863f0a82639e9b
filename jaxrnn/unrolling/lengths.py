"""Masks of ragged batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Integer

from ..core.arrays import is_array
from ..core.validation import (
    check_ours,
    describe,
)


def mask_from_lengths(lengths: Integer[Array, "*B"], steps: int) -> Bool[Array, "T *B"]:
    """Make the mask of sequences that are padded at their end.

    Args:
        lengths: ``(*B,)`` integers in [0, T]. A sequence of length 0 returns its
            initial carry.
        steps: T.

    Returns:
        ``(T, *B)`` bool: True at step t (counted from 0) where ``t < lengths``.

    Raises:
        TypeError: for lengths that are not integers.
        ValueError: for concrete lengths outside [0, T]. Inside ``jit`` they are not
            checked.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> print(jaxrnn.mask_from_lengths(jnp.array([3, 1]), 3))
        [[ True  True]
         [ True False]
         [ True False]]
    """
    check_ours("lengths", lengths)
    if not is_array(lengths):
        if not isinstance(lengths, (list, tuple, int)):
            raise TypeError(
                f"lengths must be an array of integers (*B,), but it is "
                f"{describe(lengths)}"
            )
        lengths = np.asarray(lengths)
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(
            f"lengths must be integers, but their dtype is {lengths.dtype}: pass "
            f"lengths.astype('int32')"
        )
    if not isinstance(lengths, jax.core.Tracer) and lengths.size:
        # jnp would trace the minimum when this runs inside a compiled function.
        concrete = np.asarray(lengths)
        low, high = int(concrete.min()), int(concrete.max())
        if low < 0 or high > steps:
            raise ValueError(
                f"lengths must lie between 0 and T = {steps}, but they run from {low} "
                f"to {high}: T is xs.shape[0], since time comes first in xs (T, *B, D)"
            )
    return (
        jnp.arange(steps, dtype=jnp.int32).reshape(-1, *[1] * lengths.ndim)
        < jnp.asarray(lengths, jnp.int32)[None]
    )
