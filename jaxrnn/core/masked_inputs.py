"""Replacement of masked inputs by a valid one, so that padding may hold anything.

``where(mask, new, old)`` keeps values clean, but its derivative is 0 times that of
``new``, and 0 * NaN is NaN. No constant is a safe replacement for padding: zero is not
for a logarithm, one is not for 1 / (1 - x). An input that the same row has at a valid
step is safe for every cell that is finite there and has finite derivatives.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType
from jaxtyping import Array, Bool

from .flags import expand_flags
from .types import Inputs

# Fills a batch without any valid step. It lies within the domain of log(x), log(1 - x),
# 1 / x, arctanh(x) and x / |x|.
HALF = 0.5
LAST = 2**31 - 1  # larger than the number of any row


def fill_masked_inputs(xs: Inputs, mask: Bool[Array, "T *B"] | None) -> Any:
    """Replace masked inputs by the first valid input of the same row.

    A row without a valid step gets the first valid input of the first row that has one.
    In a batch without any, floats become 0.5 and other numbers 0. No gradient flows
    through the replacements. Under ``vmap`` the mapped axis belongs to the batch.

    Args:
        xs: a pytree of arrays ``(T, *B, ...)``.
        mask: True at valid steps; with None, ``xs`` is returned as it is.

    Returns:
        A pytree like ``xs``.

    Example::

        >>> xs = jnp.array([[1.0], [2.0], [jnp.nan]])
        >>> fill_masked_inputs(xs, jnp.array([True, True, False])).tolist()
        [[1.0], [2.0], [1.0]]
    """
    if mask is None:
        return xs

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            numbers, kind = jax.random.key_data(leaf), jax.random.key_impl(leaf)
            return jax.random.wrap_key_data(fill(numbers), impl=kind)
        return jnp.where(
            expand_flags(mask, leaf), leaf, _filling.bind(mask, leaf)[None]
        )

    return jax.tree.map(fill, xs)


def _first_valid(mask: Bool[Array, "T *B"], leaf: Array) -> Array:
    """Return the replacement for each row's masked inputs, ``(*B, ...)``.

    There is no reshape in it, because that would gather a sharded batch.
    """
    steps, batch = mask.shape[0], mask.shape[1:]
    default = jnp.zeros(leaf.shape[1:], leaf.dtype)
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        default = jnp.full_like(default, HALF)
    if isinstance(steps, int) and steps == 0:
        return default
    first, has_valid = jnp.argmax(mask, axis=0), mask.any(0)
    if any(
        kind == AxisType.Explicit for kind in jax.typeof(leaf).sharding.mesh.axis_types
    ):
        # On an explicit mesh a gather would need an output sharding; a masked sum does
        # not.
        at_first = (
            jnp.arange(steps, dtype=first.dtype).reshape(-1, *[1] * len(batch))
            == first[None]
        )
        of_row = jnp.where(
            expand_flags(at_first, leaf), leaf, jnp.zeros_like(leaf)
        ).sum(0, dtype=leaf.dtype)
    else:
        index = expand_flags(first[None], leaf)
        of_row = jnp.take_along_axis(leaf, index, axis=0, mode="promise_in_bounds")[0]
    if not batch:
        return jnp.where(has_valid, of_row, default)
    # Find the first row that has a valid input, by its number in the batch, and take
    # its input by a masked sum. With a sharded batch these are two all-reduces.
    number, stride = jnp.zeros(batch, jnp.int32), 1
    for axis in reversed(range(len(batch))):
        number = number + stride * jax.lax.broadcasted_iota(jnp.int32, batch, axis)
        stride = stride * batch[axis]
    axes = tuple(range(len(batch)))
    source = jnp.where(has_valid, number, LAST).min(axes, keepdims=True, initial=LAST)
    is_source = expand_flags(has_valid & (number == source), of_row)
    of_source = jnp.where(is_source, of_row, jnp.zeros_like(of_row)).sum(
        axes, keepdims=True, dtype=leaf.dtype
    )
    any_valid = expand_flags(has_valid.any(axes, keepdims=True), of_row)
    return jnp.where(
        expand_flags(has_valid, of_row),
        of_row,
        jnp.where(any_valid, of_source, default),
    )


# This is a primitive for the sake of its batching rule: a mapped axis becomes a batch
# axis, so that a row without valid inputs can use those of the other rows.
_filling = Primitive("jaxrnn_filling")
_compiled = jax.jit(_first_valid)
_filling.def_impl(_compiled)
_filling.def_abstract_eval(
    lambda mask, leaf: jax.make_jaxpr(_first_valid)(mask, leaf).out_avals[0]
)
mlir.register_lowering(_filling, mlir.lower_fun(_first_valid, multiple_results=False))


def _derivative(primals, tangents):
    """Return a zero tangent: no gradient flows through the replacements."""
    out = _filling.bind(*primals)
    return out, ad.Zero(jax.typeof(out).to_tangent_aval())


def _mapped(values, axes):
    """Insert the mapped axis behind time, as the first batch axis."""
    size = next(
        v.shape[axis] for v, axis in zip(values, axes, strict=True) if axis is not None
    )

    def behind_time(v, axis):
        return (
            jnp.moveaxis(v, axis, 1)
            if axis is not None
            else jnp.broadcast_to(v[:, None], (v.shape[0], size, *v.shape[1:]))
        )

    return _filling.bind(
        *(behind_time(v, axis) for v, axis in zip(values, axes, strict=True))
    ), 0


ad.primitive_jvps[_filling] = _derivative
batching.primitive_batchers[_filling] = _mapped
