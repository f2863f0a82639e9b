"""Rows of long arrays, written where they belong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def as_varying(value: Any, others: Sequence[Any]) -> Any:
    """``value``, under ``jax.shard_map`` made to vary over every mesh axis that one of the others does, as a loop demands."""

    def axes_of(v):
        return getattr(jax.typeof(v), "vma", None) or frozenset()

    missing = frozenset().union(*map(axes_of, others)) - axes_of(value)
    return jax.lax.pcast(value, tuple(sorted(missing, key=str)), to="varying") if missing else value


def blank_rows(steps: int, aval: Any, others: Sequence[Any]) -> Any:
    """``(steps, ...)`` to write rows of ``aval`` into, varying as ``others`` do."""
    shape = (steps, *aval.shape)
    if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.prng_key):  # a carry may hold one
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(shape, aval.dtype))
        return jax.random.wrap_key_data(jnp.zeros(data.shape, data.dtype), impl=jax.random.key_impl(aval.dtype))
    return as_varying(jnp.zeros(shape, aval.dtype), others)


def scan_into(
    body: Callable, carry: Any, given: Any, rows: list[Any], first: Any, steps: int, *, reverse: bool, unroll: int
) -> tuple[Any, list[Any]]:
    """``jax.lax.scan``, whose outputs, a list, go to the rows ``first`` and following of ``rows``; returns carry and rows.

    A scan inside a scan would fill an array of its own for its outputs, and the outer one copy that.
    """

    def one(now, each):
        carry, rows, at = now
        carry, outs = body(carry, each)
        rows = [jax.lax.dynamic_update_index_in_dim(r, out, at, 0) for r, out in zip(rows, outs, strict=True)]
        return (carry, rows, at + (-1 if reverse else 1)), None

    at = jnp.asarray(first, jnp.int32) + (steps - 1 if reverse else 0)
    (carry, rows, _), _ = jax.lax.scan(
        one, (carry, rows, at), given, length=steps, reverse=reverse, unroll=max(1, min(unroll, steps))
    )
    return carry, rows
