"""The last few inputs of every step, found in all of time at once.

They are the same sequence, moved by 0 to W - 1 steps, where what was carried in stands
before the first input. With a mask the j-th previous *valid* input is gathered. An
input from before a reset counts as zero. One from an earlier truncation window, which
would have come through the carry, is read without a gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from .flags import expand_flags


def lagged_inputs(
    carry: Shaped[Array, "*B W D"],
    xs: Any,
    mask: Bool[Array, "T *B"] | None,
    resets: Bool[Array, "T *B"] | None,
    reverse: bool,
    window: int | None = None,
) -> tuple[Array, list[Array]]:
    """Return the last W inputs of every step.

    Args:
        carry: the W inputs before the first step, the newest last.
        xs: the inputs, ``(T, *B, D)``.
        mask: False where an input does not count, or None.
        resets: True before a step that sees no earlier input, or None.
        reverse: whether the steps run from the last to the first.
        window: the truncation length, or None.

    Returns:
        The last carry, and ``[x_t, x_{t-1}, ..., x_{t-W+1}]``, each ``(T, *B, D)``.
    """
    steps, width = xs.shape[0], carry.shape[-2]
    xs, mask, resets = (
        leaf[::-1] if reverse and leaf is not None else leaf
        for leaf in (xs, mask, resets)
    )
    # Entry i of all that follows is the carry's for i < W, and then that of step i - W.
    inputs = jnp.concatenate([jnp.moveaxis(carry, -2, 0).astype(xs.dtype), xs])
    entries = Entries(width, steps, mask)
    segment, cuts = None, None
    if resets is not None:
        before = jnp.zeros((width, *resets.shape[1:]), jnp.int32)
        count = jnp.cumsum(resets, axis=0, dtype=jnp.int32)
        segment = jnp.concatenate([before, count])
    if window is not None and window < steps:
        cuts = jnp.maximum(jnp.arange(-width, steps), 0) // window
        cuts = cuts.reshape(-1, *[1] * (xs.ndim - 2))
        cuts = jnp.broadcast_to(cuts, (width + steps, *xs.shape[1:-1]))

    def visible(read: Callable[[Array], Array], segment_now: Any, window_now: Any):
        """Return the inputs that ``read`` picks, as a step sees them."""
        x = read(inputs)
        if segment is not None:
            same = expand_flags(read(segment) == segment_now, x)
            x = jnp.where(same, x, jnp.zeros_like(x))
        if cuts is not None:
            same = expand_flags(read(cuts) == window_now, x)
            x = jnp.where(same, x, jax.lax.stop_gradient(x))
        return x

    def read_all(read: Callable[[int, Array], Array], at: Any) -> list[Array]:
        """Return the inputs of every lag, as the steps ``at`` see them."""
        segment_now = None if segment is None else segment[at]
        window_now = None if cuts is None else cuts[at]
        return [
            visible(functools.partial(read, j), segment_now, window_now)
            for j in range(width)
        ]

    lags = read_all(entries.at_steps, slice(width, None))
    newest_first = read_all(entries.at_end, -1)
    last = jnp.stack(newest_first[::-1], axis=-2).astype(carry.dtype)
    return last, [lag[::-1] for lag in lags] if reverse else lags


class Entries:
    """Finds the j-th previous entry of every step, and of the end.

    Args:
        width: W, the number of entries before the first step.
        steps: T.
        mask: ``(T, *B)`` or None. Where it is given, only valid steps count.
    """

    def __init__(self, width: int, steps: Any, mask: Bool[Array, "T *B"] | None):
        self.width, self.steps = width, steps
        self.order: Any = None
        if mask is not None:
            valid_first = jnp.argsort(~mask, axis=0, stable=True).astype(jnp.int32)
            before = jnp.arange(width, dtype=jnp.int32)
            before = before.reshape(-1, *[1] * (mask.ndim - 1))
            before = jnp.broadcast_to(before, (width, *mask.shape[1:]))
            # The numbers of all entries that count, in their order.
            self.order = jnp.concatenate([before, width + valid_first])
            count = jnp.cumsum(mask, axis=0, dtype=jnp.int32)
            self.rank = count - mask.astype(jnp.int32)
            self.count = mask.sum(0, dtype=jnp.int32)

    def at_steps(self, j: int, leaf: Array) -> Array:
        """Return the j-th previous entry of every step, ``(T, *B, ...)``."""
        if self.order is None:
            start = self.width - j
            return leaf[start : start + self.steps]
        return _gather(leaf, self._numbers(self.width - j + self.rank))

    def at_end(self, j: int, leaf: Array) -> Array:
        """Return the j-th previous entry of the last one, ``(*B, ...)``."""
        if self.order is None:
            return leaf[-1 - j]
        numbers = self._numbers(self.width - 1 - j + self.count[None])
        return _gather(leaf, numbers)[0]

    def _numbers(self, places: Int[Array, "N *B"]) -> Int[Array, "N *B"]:
        return jnp.take_along_axis(self.order, places, axis=0, mode="promise_in_bounds")


def _gather(leaf: Array, numbers: Int[Array, "N *B"]) -> Array:
    """Return the entries of each row that have these numbers."""
    index = expand_flags(numbers, leaf)
    return jnp.take_along_axis(leaf, index, axis=0, mode="promise_in_bounds")
