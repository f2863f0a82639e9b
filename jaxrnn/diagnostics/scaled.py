"""Cotangents as a unit vector and the logarithm of its length: finite where a float
has long been zero or infinite.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.cell import accumulator, expand_flags


def log_norm(leaves: list[Array], kept: int) -> Float[Array, "*B"]:
    """Log of the 2-norm over all axes but the first ``kept``; -inf for zero. No
    square under- or overflows.
    """
    parts = [
        jnp.abs(leaf).astype(_wide(leaf)).reshape(*leaf.shape[:kept], -1)
        for leaf in leaves
        if leaf.size
    ]
    if not parts:
        shape = leaves[0].shape[:kept] if leaves else ()
        return jnp.full(shape, -jnp.inf, jnp.result_type(float))
    dtype = jnp.result_type(*parts)
    flat = jnp.concatenate([part.astype(dtype) for part in parts], axis=-1)
    most = flat.max(-1)
    # An infinite or NaN entry makes the sum NaN; one that is infinite alone means an
    # infinite norm.
    divisor = jnp.where((most > 0) & jnp.isfinite(most), most, jnp.ones_like(most))
    total = jnp.square(flat / divisor[..., None]).sum(-1)
    something = (
        total != 0
    )  # so that zero, whose logarithm has no derivative, has a derivative of zero and not NaN  # noqa: E501
    log = (
        jnp.log(divisor)
        + jnp.log(jnp.where(something, total, jnp.ones_like(total))) / 2
    )
    return jnp.where(jnp.isposinf(most), most, jnp.where(something, log, -jnp.inf))


def log_norms_by_leaf(tree: Any, kept: int) -> Any:
    """`log_norm` of every leaf."""
    return jax.tree.map(lambda leaf: log_norm([leaf], kept), tree)


def normalize(tree: Any, kept: int) -> tuple[Any, Float[Array, "*B"]]:
    """``(unit, log)``: the tree divided by its norm, and the norm's logarithm; zero
    stays zero, with log -inf.
    """
    log = log_norm(jax.tree.leaves(tree), kept)
    # In two steps: exp(-log) may overflow where log is near the smallest number, and
    # one over that number is infinite.
    half = jnp.where(jnp.isfinite(log), jnp.exp(-log / 2), jnp.ones_like(log))

    return jax.tree.map(lambda leaf: _times(_times(leaf, half), half), tree), log


class CompensatedSum(NamedTuple):
    """A running sum and what rounding has kept out of it (Kahan 1965): thousands of
    logarithms add up to one rounding.
    """

    value: Array
    rest: Array

    @classmethod
    def of(cls, value: Array) -> CompensatedSum:
        return cls(value, jnp.zeros_like(value))

    def plus(self, term: Array) -> CompensatedSum:
        term = term + self.rest
        value = self.value + term
        rest = term - (value - self.value)
        return CompensatedSum(
            value, jnp.where(jnp.isfinite(rest), rest, jnp.zeros_like(rest))
        )


def scale_by_log(tree: Any, log: Float[Array, "*B"]) -> Any:
    """The tree times exp(log), per element of the leading axes."""
    factor = jnp.exp(log)
    return jax.tree.map(lambda leaf: _times(leaf, factor), tree)


def _times(leaf: Array, factor: Array) -> Array:
    """Computed in a wide dtype, kept in the leaf's."""
    dtype = leaf.dtype if jnp.iscomplexobj(leaf) else _wide(leaf)
    return (leaf.astype(dtype) * expand_flags(factor, leaf).astype(dtype)).astype(
        leaf.dtype
    )


def finite(log: Array) -> Array:
    """0 in place of -inf, which stands for nothing at all, so that differences are
    no NaN.
    """
    return jnp.where(jnp.isneginf(log), jnp.zeros_like(log), log)


def log_mean_exp(logs: Array, axis: Any) -> Array:
    """Log of the mean of exp(logs) over ``axis``, leaving NaN out; NaN where all
    are.
    """
    there = ~jnp.isnan(logs)
    count = there.sum(axis)
    total = jax.nn.logsumexp(jnp.where(there, logs, -jnp.inf), axis=axis)
    return jnp.where(
        count > 0, total - jnp.log(jnp.maximum(count, 1).astype(logs.dtype)), jnp.nan
    )


def _wide(leaf: Array) -> Any:
    """The real dtype in which norms of ``leaf`` are taken."""
    return accumulator(jnp.finfo(leaf.dtype).dtype)
