"""What a cell sees at masked steps: a valid input of its own row, so that padding may
hold anything.

``where(mask, new, old)`` keeps values clean, but its derivative is 0 times that of
``new``, and 0 * NaN is NaN. No constant is safe in the padding's place: a zero is none
for a logarithm, a one none for 1 / (1 - x). An input that the row walks over anyway is,
for every cell that is finite there, with finite derivatives.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType
from jaxtyping import Array, Bool

from .cell import expand_flags

# where a whole batch has no valid step: inside the domain of log(x), log(1 - x), 1 / x,
# arctanh(x), x / |x|
HALF = 0.5
LAST = 2**31 - 1  # the number of no row


def fill_masked_inputs(xs: Any, mask: Bool[Array, "T *B"] | None) -> Any:
    """``xs``, a pytree of ``(T, *B, ...)``, with each row's first valid input where
    ``mask`` is False.

    A row without one gets that of the first row that has one; in a batch without any,
    floats are a half and the rest zeros. No gradient flows through the filling. Under
    ``vmap`` the mapped axis is one of the batch.
    """
    if mask is None:
        return xs

    def fill(leaf):
        return jnp.where(
            expand_flags(mask, leaf), leaf, _filling.bind(mask, leaf)[None]
        )

    return jax.tree.map(fill, xs)


def _first_valid(mask: Bool[Array, "T *B"], leaf: Array) -> Array:
    """What stands in for the masked steps of every row, ``(*B, ...)``: no reshape,
    which would gather a sharded batch.
    """
    steps, batch = mask.shape[0], mask.shape[1:]
    held = jnp.zeros(leaf.shape[1:], leaf.dtype)
    held = (
        jnp.full_like(held, HALF) if jnp.issubdtype(leaf.dtype, jnp.inexact) else held
    )
    if isinstance(steps, int) and steps == 0:
        return held
    first, found = jnp.argmax(mask, axis=0), mask.any(0)
    if any(
        kind == AxisType.Explicit for kind in jax.typeof(leaf).sharding.mesh.axis_types
    ):  # a gather asks how to shard
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
        return jnp.where(found, of_row, held)
    # Of all rows that have one the first: a number by an all-reduce, then its input by
    # another, where the batch is sharded.
    number, stride = jnp.zeros(batch, jnp.int32), 1
    for axis in reversed(range(len(batch))):
        number = number + stride * jax.lax.broadcasted_iota(jnp.int32, batch, axis)
        stride = stride * batch[axis]
    axes = tuple(range(len(batch)))
    lender = jnp.where(found, number, LAST).min(axes, keepdims=True, initial=LAST)
    lends = expand_flags(found & (number == lender), of_row)
    lent = jnp.where(lends, of_row, jnp.zeros_like(of_row)).sum(
        axes, keepdims=True, dtype=leaf.dtype
    )
    any_found = expand_flags(found.any(axes, keepdims=True), of_row)
    return jnp.where(
        expand_flags(found, of_row), of_row, jnp.where(any_found, lent, held)
    )


# A primitive, for its rule under vmap: a mapped axis joins the batch, whose rows lend
# each other what they have.
_filling = Primitive("jaxrnn_filling")
_compiled = jax.jit(_first_valid)
_filling.def_impl(_compiled)
_filling.def_abstract_eval(
    lambda mask, leaf: jax.make_jaxpr(_first_valid)(mask, leaf).out_avals[0]
)
mlir.register_lowering(_filling, mlir.lower_fun(_first_valid, multiple_results=False))


def _derivative(primals, tangents):
    out = _filling.bind(*primals)
    return out, ad.Zero(jax.typeof(out).to_tangent_aval())


def _mapped(values, axes):
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
