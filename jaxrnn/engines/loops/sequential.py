"""The sequential loop, which writes its outputs into rows of longer arrays.

All loops have the signature of `scan_into_buffers`.

On NVIDIA GPUs rows are recorded in parts of one width, because XLA puts into one kernel
only results of one shape: a GRU that records r and z as one row has a kernel for them,
another one for the state, and a third one that joins both halves of the row's
cotangent. With one array of rows for each half there are 3 kernels instead of 4 in a
step forwards, and 5 instead of 6 backwards (compiled for a described H100, not run).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Var

from ...core.fusion_barrier import LEAST_BYTES, gpu_optimization_barrier, rows_together
from ...core.types import Carry, Inputs, Size

# ``loop(body, carry, xs, buffers, offset, steps, reverse=) -> (carry, buffers)``
LoopFunction = Callable[..., tuple[Any, list[Any]]]
MOST_PARTS = 4  # of a row, as many as the gates of an LSTM
MATMULS = {"dot_general", "conv_general_dilated", "jaxrnn_convolution"}
SLICES = {"slice", "split"}


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
    parts: bool = False,
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
        parts: whether rows are recorded in parts, where all of every buffer is written;
            see `parts_of_rows`.

    Returns:
        The carry after the last step, and the buffers.
    """
    whole = all(b.shape[0] == steps for b in buffers)
    counts = parts_of_rows(buffers) if parts and whole else []
    if any(count > 1 for count in counts):
        apart = rows_that_fall_apart(body, carry, xs)
        counts = [count if a else 1 for count, a in zip(counts, apart, strict=True)]
    if any(count > 1 for count in counts):
        carry, buffers = scan_into_buffers(
            _in_parts(body, counts),
            carry,
            xs,
            _empty_parts(buffers, counts),
            offset,
            steps,
            reverse=reverse,
            unroll=unroll,
        )
        return carry, _joined(buffers, counts)

    def computed(carry, x):
        carry, ys = body(carry, x)
        return carry, gpu_optimization_barrier(ys)

    xs = rows_together(xs)
    step_bytes = sum(
        a.size * a.dtype.itemsize for a in (*buffers, *jax.tree.leaves(xs))
    ) // max(steps, 1)
    if step_bytes < LEAST_BYTES and whole:
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


def parts_of_rows(buffers: list[Any]) -> list[int]:
    """Choose in how many parts the rows of each buffer are recorded.

    Of buffers whose rows differ in their last axis alone, the narrowest is recorded as
    it is, and each that is two to `MOST_PARTS` times as wide in parts of that width.

    Args:
        buffers: arrays ``(T, ...)``.
    """
    narrowest: dict[tuple[int, ...], int] = {}
    for b in buffers:
        if b.ndim > 1:
            lead = b.shape[1:-1]
            narrowest[lead] = min(narrowest.get(lead, b.shape[-1]), b.shape[-1])

    def of_buffer(b: Any) -> int:
        width = narrowest[b.shape[1:-1]] if b.ndim > 1 else 0
        count, rest = divmod(b.shape[-1], width) if width else (1, 0)
        return count if not rest and count <= MOST_PARTS else 1

    return [of_buffer(b) for b in buffers]


def rows_that_fall_apart(body: Callable, carry: Carry, xs: Inputs) -> list[bool]:
    """Return for each row that a body records whether parts of it are made or read.

    It is so if the body slices the row, or joins it, and no matmul makes or reads it as
    a whole. A body with sums, which normalizes rows, has none that falls apart.

    Args:
        body: ``body(carry, x) -> (carry, ys)``.
        carry: the carry before the first step.
        xs: a pytree of arrays ``(steps, ...)``.
    """
    x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    jaxpr = jax.make_jaxpr(body)(carry, x).jaxpr
    makers = {v: eqn for eqn in jaxpr.eqns for v in eqn.outvars}
    readers: dict[Any, set[str]] = {}
    for eqn in jaxpr.eqns:
        for v in filter(_is_variable, eqn.invars):
            readers.setdefault(v, set()).add(eqn.primitive.name)

    def falls_apart(row: Any) -> bool:
        read, made = readers.get(row, set()), set()
        stack, seen = [row], set()
        while stack:  # what the row is made of, element by element
            v = stack.pop()
            if v in seen or v not in makers:
                continue
            seen.add(v)
            name = makers[v].primitive.name
            made.add(name)
            if name not in MATMULS | SLICES | {"concatenate"}:
                stack += filter(_is_variable, makers[v].invars)
        maker = makers[row].primitive.name if row in makers else ""
        whole = MATMULS & (read | {maker})
        return not whole and bool(SLICES & read or "concatenate" in made)

    rows = jaxpr.outvars[len(jax.tree.leaves(carry)) :]
    sums = any(eqn.primitive.name.startswith("reduce_") for eqn in jaxpr.eqns)
    return [not sums and _is_variable(v) and falls_apart(v) for v in rows]


def _is_variable(atom: Any) -> bool:
    return isinstance(atom, Var)


def _in_parts(body: Callable, counts: list[int]) -> Callable:
    """Return the body with each of its outputs split into parts."""

    def parted(carry: Any, x: Any) -> tuple[Any, list[Any]]:
        carry, ys = body(carry, x)
        return carry, [
            part
            for y, count in zip(ys, counts, strict=True)
            for part in (jnp.split(y, count, axis=-1) if count > 1 else [y])
        ]

    return parted


def _empty_parts(buffers: list[Any], counts: list[int]) -> list[Any]:
    """Allocate arrays for the parts of the rows of each buffer."""
    return [
        jnp.zeros((*b.shape[:-1], b.shape[-1] // count), b.dtype)
        for b, count in zip(buffers, counts, strict=True)
        for _ in range(count)
    ]


def _joined(parts: list[Any], counts: list[int]) -> list[Any]:
    """Return the buffers that consist of these parts."""
    rest = iter(parts)
    each = [[next(rest) for _ in range(count)] for count in counts]
    return [some[0] if len(some) == 1 else jnp.concatenate(some, -1) for some in each]
