"""Arithmetic on a unit vector and the logarithm of its norm.

The pair stays finite where the vector itself would underflow to zero or overflow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.dtypes import accumulator
from ..core.flags import expand_flags
from ..core.types import PyTree


def log_norm(leaves: list[Array], batch_ndim: int) -> Float[Array, "*B"]:
    """Return the log 2-norm over all axes but the first ``batch_ndim``; -inf for zero.

    The squares are taken relative to the largest entry, so that none under- or
    overflows.
    """
    parts = [
        jnp.abs(leaf).astype(_wide(leaf)).reshape(*leaf.shape[:batch_ndim], -1)
        for leaf in leaves
        if leaf.size
    ]
    if not parts:
        shape = leaves[0].shape[:batch_ndim] if leaves else ()
        return jnp.full(shape, -jnp.inf, jnp.result_type(float))
    dtype = jnp.result_type(*parts)
    flat = jnp.concatenate([part.astype(dtype) for part in parts], axis=-1)
    largest = flat.max(-1)
    # A NaN entry, or the quotient of two infinite ones, makes the sum NaN. If the
    # largest entry is +inf, there is no NaN, and the norm is infinite (last line).
    divisor = jnp.where(
        (largest > 0) & jnp.isfinite(largest), largest, jnp.ones_like(largest)
    )
    total = jnp.square(flat / divisor[..., None]).sum(-1)
    # The inner where keeps log(0), whose derivative is NaN, out of the computation: a
    # zero vector then has derivative zero.
    nonzero = total != 0
    log = (
        jnp.log(divisor) + jnp.log(jnp.where(nonzero, total, jnp.ones_like(total))) / 2
    )
    return jnp.where(jnp.isposinf(largest), largest, jnp.where(nonzero, log, -jnp.inf))


def log_norms_by_leaf(tree: PyTree, batch_ndim: int) -> Any:
    """Return `log_norm` of every leaf."""
    return jax.tree.map(lambda leaf: log_norm([leaf], batch_ndim), tree)


def normalize(tree: PyTree, batch_ndim: int) -> tuple[Any, Float[Array, "*B"]]:
    """Return ``(unit, log)``: the tree divided by its norm, and the log of the norm.

    A zero tree stays zero, with log -inf.
    """
    log = log_norm(jax.tree.leaves(tree), batch_ndim)
    # The division is done in two steps: for a norm near the smallest number exp(-log)
    # overflows, but exp(-log / 2) does not.
    half = jnp.where(jnp.isfinite(log), jnp.exp(-log / 2), jnp.ones_like(log))
    return jax.tree.map(lambda leaf: _times(_times(leaf, half), half), tree), log


class CompensatedSum(NamedTuple):
    """A running sum with its rounding error (Kahan 1965).

    Thousands of logarithms add up with the error of about one rounding.

    Attributes:
        value: the sum.
        rest: the part of the true sum that rounding has left out of ``value``.
    """

    value: Array
    rest: Array

    @classmethod
    def of(cls, value: Array) -> CompensatedSum:
        """Start a sum at ``value``."""
        return cls(value, jnp.zeros_like(value))

    def plus(self, term: Array) -> CompensatedSum:
        """Return the sum with ``term`` added."""
        # value - self.value is what the addition has really added to the sum; the
        # difference to term was lost to rounding and is added with the next term.
        # (The rest of an infinite sum would be inf - inf, so it is dropped.)
        term = term + self.rest
        value = self.value + term
        rest = term - (value - self.value)
        return CompensatedSum(
            value, jnp.where(jnp.isfinite(rest), rest, jnp.zeros_like(rest))
        )


def scale_by_log(tree: PyTree, log: Float[Array, "*B"]) -> Any:
    """Multiply the tree by exp(log), per element of the leading axes."""
    factor = jnp.exp(log)
    return jax.tree.map(lambda leaf: _times(leaf, factor), tree)


def _times(leaf: Array, factor: Array) -> Array:
    """Multiply in the accumulation dtype and round to the leaf's dtype."""
    dtype = leaf.dtype if jnp.iscomplexobj(leaf) else _wide(leaf)
    return (leaf.astype(dtype) * expand_flags(factor, leaf).astype(dtype)).astype(
        leaf.dtype
    )


def finite(log: Array) -> Array:
    """Replace -inf, the log of zero, by 0, so that differences of logs are not NaN."""
    return jnp.where(jnp.isneginf(log), jnp.zeros_like(log), log)


def log_mean_exp(logs: Array, axis: int | tuple[int, ...] | None) -> Array:
    """Return the log of the mean of exp(logs) over ``axis``.

    NaN entries are left out; the result is NaN where all entries are.
    """
    valid = ~jnp.isnan(logs)
    count = valid.sum(axis)
    total = jax.nn.logsumexp(jnp.where(valid, logs, -jnp.inf), axis=axis)
    return jnp.where(
        count > 0, total - jnp.log(jnp.maximum(count, 1).astype(logs.dtype)), jnp.nan
    )


def _wide(leaf: Array) -> Any:
    """Return the real dtype in which norms of ``leaf`` are computed."""
    return accumulator(jnp.finfo(leaf.dtype).dtype)
