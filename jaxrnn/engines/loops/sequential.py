"""The sequential loop, which writes its outputs into rows of longer arrays.

All loops have the signature of `scan_into_buffers`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray

from ...core.fusion_barrier import LEAST_BYTES, gpu_optimization_barrier, rows_together
from ...core.types import Carry, Inputs, Size

# ``loop(body, carry, xs, buffers, offset, steps, reverse=) -> (carry, buffers)``
LoopFunction = Callable[..., tuple[Any, list[Any]]]


def empty_rows(steps: int, aval: ShapedArray) -> Any:
    """Allocate an array ``(steps, ...)`` into which rows of ``aval`` are written."""
    return jnp.zeros((steps, *aval.shape), aval.dtype)


def scan_into_buffers(
    body: Callable,
    carry: Carry,
    xs: Inputs,
    buffers: list[Any],
    offset: Size,
    steps: int,
    *,
    reverse: bool,
    unroll: int,
) -> tuple[Any, list[Any]]:
    """Run ``jax.lax.scan``, with its outputs written into buffers.

    A scan inside a scan would write its outputs to an array of its own, which the outer
    scan would then copy. Where a whole buffer is written and a step has few numbers,
    the outputs are the buffers: that loop has one index less to count.

    Args:
        body: ``body(carry, x) -> (carry, ys)``, with a list ``ys``.
        carry: the carry before the first step.
        xs: a pytree of arrays ``(steps, ...)``.
        buffers: arrays ``(T, ...)``, one for each of ``ys``.
        offset: the row to which the output of the first step in time is written.
        steps: the number of steps.
        reverse: whether the steps run from the last to the first.
        unroll: the number of steps in an iteration of the compiled loop.

    Returns:
        The carry after the last step, and the buffers.
    """

    def computed(carry, x):
        carry, ys = body(carry, x)
        return carry, gpu_optimization_barrier(ys)

    xs = rows_together(xs)
    step_bytes = sum(
        a.size * a.dtype.itemsize for a in (*buffers, *jax.tree.leaves(xs))
    ) // max(steps, 1)
    if step_bytes < LEAST_BYTES and all(b.shape[0] == steps for b in buffers):
        return jax.lax.scan(
            computed,
            carry,
            xs,
            length=steps,
            reverse=reverse,
            unroll=max(1, min(unroll, steps)),
        )

    def write_step(state, x):
        carry, buffers, row = state
        carry, ys = computed(carry, x)
        buffers = [
            jax.lax.dynamic_update_index_in_dim(b, y, row, 0)
            for b, y in zip(buffers, ys, strict=True)
        ]
        return (carry, buffers, row + (-1 if reverse else 1)), None

    row = jnp.asarray(offset, jnp.int32) + (steps - 1 if reverse else 0)
    (carry, buffers, _), _ = jax.lax.scan(
        write_step,
        (carry, buffers, row),
        xs,
        length=steps,
        reverse=reverse,
        unroll=max(1, min(unroll, steps)),
    )
    return carry, rows_together(buffers)
