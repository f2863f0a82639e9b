"""Loops over consecutive parts of a sequence.

`run_in_windows` serves truncation: JAX differentiates it, and gradients are cut between
windows. `scan_over_chunks` serves the forward and backward passes of the recurrence,
which have their own derivative: chunks write their results into buffers that the loop
carries. The last two functions index the carries at chunk starts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ...core.types import Carry, Inputs

RunPart = Callable[[Any, Any, Any], tuple[Any, Any]]


def run_in_windows(
    run_part: RunPart, carry: Carry, xs: Inputs, window: int, reverse: bool
) -> tuple[Any, Any]:
    """Run one window of steps after another, as one compiled loop.

    JAX can differentiate it: windows are cut by reshaping.

    Args:
        run_part: ``run_part(carry, xs, start) -> (carry, ys)`` runs one window, whose
            first step in time is step ``start``.
        carry: the carry before the first window.
        xs: a pytree of arrays ``(T, ...)``.
        window: the number of steps in a window. If it does not divide T, the window
            that runs last is shorter; with ``reverse`` that is the one at the front of
            time.
        reverse: whether the windows run from the end of time to its start.

    Returns:
        The carry after the last window, and the outputs ``(T, ...)`` of all windows.
    """
    steps = jax.tree.leaves(xs)[0].shape[0]
    count, rest = divmod(steps, window)
    # The full windows lie at steps begin to end.
    begin = rest if reverse else 0
    end = begin + count * window
    full_windows = jax.tree.map(
        lambda a: a[begin:end].reshape(count, window, *a.shape[1:]), xs
    )
    window_starts = begin + window * jnp.arange(count, dtype=jnp.int32)
    carry, ys = jax.lax.scan(
        lambda c, part: run_part(c, *part),
        carry,
        (full_windows, window_starts),
        reverse=reverse,
    )
    ys = jax.tree.map(lambda a: a.reshape(count * window, *a.shape[2:]), ys)
    if rest:
        short_window = jax.tree.map(lambda a: a[:begin] if reverse else a[end:], xs)
        carry, short_ys = run_part(
            carry, short_window, jnp.asarray(0 if reverse else end, jnp.int32)
        )
        ys = jax.tree.map(
            lambda a, b: jnp.concatenate([b, a] if reverse else [a, b]), ys, short_ys
        )
    return carry, ys


def scan_over_chunks(
    run_part: Callable[[Any, Any, Any], Any],
    carry: Carry,
    xs: Inputs,
    chunk: int | None,
    reverse: bool,
    *,
    retrace: bool = False,
) -> Any:
    """Run one chunk of steps after another; results are written into the carry.

    Chunks are sliced out of ``xs``, which stay where they are: of reshaped arrays that
    are passed to a loop, XLA:CPU copies the whole sequence.

    Args:
        run_part: ``run_part(carry, xs, start) -> carry`` runs one chunk, whose first
            step in time is step ``start``.
        carry: the carry before the first chunk, buffers for results included.
        xs: a pytree of arrays ``(T, ...)``.
        chunk: the number of steps in a chunk; None for all of T. If it does not divide
            T, the chunk that runs last is shorter.
        reverse: whether the chunks run from the end of time to its start.
        retrace: whether the shorter chunk runs first instead. A backward pass needs
            that to visit the chunks of its forward pass in the opposite order.

    Returns:
        The carry after the last chunk.
    """
    steps = jax.tree.leaves(xs)[0].shape[0]
    chunk = steps if chunk is None else min(chunk, steps)
    count, rest = divmod(steps, chunk)
    if count + bool(rest) == 1:
        return run_part(carry, xs, jnp.asarray(0, jnp.int32))
    short_at_end = reverse == retrace  # whether the short chunk is at the end of time
    begin = 0 if short_at_end else rest

    def run_slice(carry, start, size):
        xs_slice = jax.tree.map(
            lambda a: jax.lax.dynamic_slice_in_dim(a, start, size), xs
        )
        return run_part(carry, xs_slice, start)

    def run_short(carry):
        if not rest:
            return carry
        start = jnp.asarray(count * chunk if short_at_end else 0, jnp.int32)
        return run_slice(carry, start, rest)

    chunk_firsts = begin + chunk * jnp.arange(count, dtype=jnp.int32)
    carry = run_short(carry) if retrace else carry
    carry, _ = jax.lax.scan(
        lambda c, start: (run_slice(c, start, chunk), None),
        carry,
        chunk_firsts,
        reverse=reverse,
    )
    return carry if retrace else run_short(carry)


def chunk_index(start: int | Array, chunk: int) -> Any:
    """Return the index, in time, of the chunk that begins at step ``start``.

    All chunks have ``chunk`` steps but the first or the last one, which may be shorter.
    """
    return (start + chunk - 1) // chunk


def chunk_starts(carry: Carry, carries: Carry, chunk: int | None, reverse: bool) -> Any:
    """Select the carry with which each chunk begins.

    Args:
        carry: the carry before the first step that runs.
        carries: the carries after every step, ``(T, ...)`` per leaf.
        chunk: the number of steps in a chunk; None for all of T.
        reverse: whether the steps run from the last to the first.

    Returns:
        ``(number of chunks, ...)`` per leaf, in the order of time.
    """

    def of_leaf(first, after):
        steps = after.shape[0]
        size = steps if chunk is None else min(chunk, steps)
        if reverse:
            ends = (
                after[steps - (-(-steps // size) - 1) * size : steps - size + 1 : size]
                if steps > size
                else after[:0]
            )
            return jnp.concatenate([ends, first[None]])
        return jnp.concatenate([first[None], after[size - 1 : steps - 1 : size]])

    return jax.tree.map(of_leaf, carry, carries)
