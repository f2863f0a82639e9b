"""The last few inputs before a stretch of time, where devices hold a stretch each.

What a stretch leaves for later steps are its own last inputs, W at most, and as many of
those before it as are then missing; after a reset there are none before it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

from .flags import select
from .lagged_inputs import lagged_inputs
from .time_split import TimeSplit


class RecentStretch(NamedTuple):
    """What a stretch makes of the last inputs before it.

    Attributes:
        inputs: ``(*B, W, D)``, its own last inputs, the newest last.
        number: ``(*B)``, how many of them there are.
        cut: ``(*B)``, whether a reset keeps out what came before.
    """

    inputs: Array
    number: Int[Array, "*B"]
    cut: Bool[Array, "*B"]

    def after(self, before: Array) -> Array:
        """Return the last inputs after the stretch, from those before it."""
        width = before.shape[-2]
        both = jnp.concatenate([before, self.inputs], axis=-2)
        # The last W of the W before and the ``number`` of the stretch.
        place = jnp.arange(width, dtype=self.number.dtype)
        place = place.reshape((1,) * self.number.ndim + (width,))
        count = self.number[..., None]
        index = jnp.where(place < width - count, place + count, place + width)
        joined = jnp.take_along_axis(
            both, index[..., None], axis=-2, mode="promise_in_bounds"
        )
        return select(self.cut, self.inputs, joined)

    def then(self, late: RecentStretch) -> RecentStretch:
        """Return what the stretch and a later one make of the last inputs before."""
        width = jnp.asarray(self.inputs.shape[-2], self.number.dtype)
        count = jnp.where(
            late.cut, late.number, jnp.minimum(self.number + late.number, width)
        )
        return RecentStretch(late.after(self.inputs), count, self.cut | late.cut)


def recent_before(
    split: TimeSplit,
    carry: Shaped[Array, "*B W D"],
    xs: Shaped[Array, "T *B D"],
    mask: Bool[Array, "T *B"] | None,
    resets: Bool[Array, "T *B"] | None,
    reverse: bool,
) -> Any:
    """Return the last W inputs before this device's stretch.

    Args:
        split: the axis over which time is split.
        carry: the W inputs before the first step of all, the newest last.
        xs: the inputs of this device's steps.
        mask: False where an input does not count, or None.
        resets: True before a step that sees no earlier input, or None.
        reverse: whether the steps run from the last to the first.
    """
    if split.size == 1:
        return carry
    nothing = jnp.zeros_like(carry)
    inputs, _ = lagged_inputs(nothing, xs, mask, resets, reverse)
    batch, width = carry.shape[:-2], carry.shape[-2]
    counts = jnp.ones((xs.shape[0], *batch), bool) if mask is None else mask
    cut = jnp.zeros(batch, bool)
    if resets is not None:
        in_order = resets[::-1] if reverse else resets
        later = jnp.cumsum(in_order[::-1], axis=0, dtype=jnp.int32)[::-1]
        later = later - in_order.astype(jnp.int32)  # resets after each step
        counts = counts & ((later[::-1] if reverse else later) == 0)
        cut = resets.any(0)
    count = jnp.minimum(counts.sum(0, dtype=jnp.int32), jnp.asarray(width, jnp.int32))
    stretch = RecentStretch(inputs, count, cut)
    return split.carry_before(
        stretch, carry, RecentStretch.then, RecentStretch.after, reverse
    )
