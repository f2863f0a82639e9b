"""The last few inputs of every step, as a convolution over time reads them.

The carry ``(*B, W, D)`` holds the last W inputs, the newest last. The inputs that step
t reads are found in all of time at once: they are the same sequence, moved by 0 to
W - 1 steps, where the carry stands before the first input. With a mask the j-th
previous *valid* input is gathered. An input from before a reset counts as zero. One
from an earlier truncation window, which would have come through the carry, is read
without a gradient.

Where the carries after every step are asked for, or the gradients between steps are
scaled, the inputs go through a cell whose step moves the carry on by one input. It is
also what the tests compare the rest with.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from ..core.cell import Cell
from ..core.lagged_inputs import lagged_inputs
from ..core.lagged_stretch import recent_before
from ..core.unroll_spec import UnrollSpec
from ..unrolling import unroll_unchecked


def unroll_recent_inputs(
    carry: Shaped[Array, "*B W D"], xs: Shaped[Array, "T *B D"], spec: UnrollSpec
) -> tuple[Array, list[Array], Any]:
    """Return what a layer reads at every step.

    Args:
        carry: the W inputs before the first step, the newest last.
        xs: the inputs; masked ones are finite.
        spec: the other arguments of `jaxrnn.unroll`.

    Returns:
        The last carry; ``[x_t, x_{t-1}, ..., x_{t-W+1}]``, each ``(T, *B, D)``; and the
        carries after every step ``(T, *B, W, D)``, or None if they are not asked for.
    """
    split = spec.time_split
    if split is not None:
        carry = recent_before(split, carry, xs, spec.mask, spec.resets, spec.reverse)
    last, lags, carries = _unroll_recent_inputs(carry, xs, spec)
    return last if split is None else split.of_last(last, spec.reverse), lags, carries


def _unroll_recent_inputs(
    carry: Shaped[Array, "*B W D"], xs: Shaped[Array, "T *B D"], spec: UnrollSpec
) -> tuple[Array, list[Array], Any]:
    """Return `unroll_recent_inputs` of steps that one device holds."""
    steps, width = xs.shape[0], carry.shape[-2]
    if spec.gradient_scale is None and (not spec.all_carries or steps <= 1):
        last, lags = lagged_inputs(
            carry, xs, spec.mask, spec.resets, spec.reverse, spec.window
        )
        return last, lags, last[None][:steps] if spec.all_carries else None
    cell = RecentInputs(width, carry.shape[-1], carry.dtype.name)
    last, _, carries = unroll_unchecked(cell, (), carry, xs, spec.replace(engine=None))
    lags = [carries[..., width - 1 - j, :].astype(xs.dtype) for j in range(width)]
    return last, lags, carries


@dataclasses.dataclass(frozen=True)
class RecentInputs(Cell):
    """A cell whose carry is the last inputs ``(*B, width, features)``."""

    width: int
    features: int
    dtype: str

    def initial_carry(self, params, batch_shape=(), dtype=None):
        return jnp.zeros((*batch_shape, self.width, self.features), self.dtype)

    def step(self, params, carry, z):
        newest = z[..., None, :].astype(carry.dtype)
        return jnp.concatenate([carry[..., 1:, :], newest], axis=-2)


def check_carry_dtype(name: str, carry: Array, xs: Array) -> None:
    """Check that the carry can hold the inputs without loss."""
    with jax.numpy_dtype_promotion("standard"):
        holding = jnp.promote_types(carry.dtype, xs.dtype)
    if holding != carry.dtype:
        raise TypeError(
            f"{name}: the inputs are {xs.dtype}, which a carry of {carry.dtype} does "
            f"not hold: cast one of them"
        )
