"""Rows of long arrays, written where they belong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...core.fusion_barrier import LEAST_BYTES

# `scan_into_buffers` with its ``unroll`` given, or what does the same
LoopFunction = Callable[..., tuple[Any, list[Any]]]


def empty_rows(steps: int, aval: Any) -> Any:
    """``(steps, ...)`` to write rows of ``aval`` into."""
    return jnp.zeros((steps, *aval.shape), aval.dtype)


def scan_into_buffers(
    body: Callable,
    carry: Any,
    given: Any,
    rows: list[Any],
    first: Any,
    steps: int,
    *,
    reverse: bool,
    unroll: int,
) -> tuple[Any, list[Any]]:
    """``jax.lax.scan``, whose outputs, a list, go to the rows ``first`` and following
    of ``rows``; returns carry and rows.

    A scan inside a scan would fill an array of its own for its outputs, and the outer
    one copy that. Where all rows are written and a step has few numbers, the outputs
    are the rows: that loop has one number less to count.
    """
    each = sum(
        a.size * a.dtype.itemsize for a in (*rows, *jax.tree.leaves(given))
    ) // max(steps, 1)
    if each < LEAST_BYTES and all(r.shape[0] == steps for r in rows):
        return jax.lax.scan(
            body,
            carry,
            given,
            length=steps,
            reverse=reverse,
            unroll=max(1, min(unroll, steps)),
        )

    def one(now, each):
        carry, rows, at = now
        carry, outs = body(carry, each)
        rows = [
            jax.lax.dynamic_update_index_in_dim(r, out, at, 0)
            for r, out in zip(rows, outs, strict=True)
        ]
        return (carry, rows, at + (-1 if reverse else 1)), None

    at = jnp.asarray(first, jnp.int32) + (steps - 1 if reverse else 0)
    (carry, rows, _), _ = jax.lax.scan(
        one,
        (carry, rows, at),
        given,
        length=steps,
        reverse=reverse,
        unroll=max(1, min(unroll, steps)),
    )
    return carry, rows
