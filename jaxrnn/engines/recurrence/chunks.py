"""Time cut into windows: what truncation, checkpointing and the backward pass share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

WalkOne = Callable[[Any, Any, Any], tuple[Any, Any]]


def run_in_windows(
    walk_one: WalkOne, carry: Any, parts: Any, window: int, reverse: bool
) -> tuple[Any, Any]:
    """Walk ``parts``, a pytree of ``(T, ...)``, window after window: one compiled loop,
    and the shorter window that is left.

    ``walk_one(carry, part, first) -> (carry, outs)`` walks one window, ``first`` being
    the step at which it begins. In the order of walking the short window comes last: at
    the front of time when time is walked backwards. Made to be differentiated by JAX:
    windows are cut by reshaping.
    """
    steps = jax.tree.leaves(parts)[0].shape[0]
    count, rest = divmod(steps, window)
    begin = rest if reverse else 0  # of the whole windows
    end = begin + count * window
    whole = jax.tree.map(
        lambda a: a[begin:end].reshape(count, window, *a.shape[1:]), parts
    )
    firsts = begin + window * jnp.arange(count, dtype=jnp.int32)
    carry, outs = jax.lax.scan(
        lambda c, now: walk_one(c, *now), carry, (whole, firsts), reverse=reverse
    )
    outs = jax.tree.map(lambda a: a.reshape(count * window, *a.shape[2:]), outs)
    if rest:
        short = jax.tree.map(lambda a: a[:begin] if reverse else a[end:], parts)
        carry, more = walk_one(
            carry, short, jnp.asarray(0 if reverse else end, jnp.int32)
        )
        outs = jax.tree.map(
            lambda a, b: jnp.concatenate([b, a] if reverse else [a, b]), outs, more
        )
    return carry, outs


def scan_over_chunks(
    walk_one: Callable[[Any, Any, Any], Any],
    carry: Any,
    parts: Any,
    window: int | None,
    reverse: bool,
    *,
    retrace: bool = False,
) -> Any:
    """The same for loops that write what they make into rows of their carry:
    ``walk_one(carry, part, first) -> carry``.

    With ``retrace`` the short window comes first, as a walk backwards over a walk's
    windows needs. Windows are sliced out of arrays that stay where they are: handed to
    a loop as a reshaped array, XLA:CPU copies the inputs of the whole sequence.
    ``window=None`` is one window.
    """
    steps = jax.tree.leaves(parts)[0].shape[0]
    window = steps if window is None else min(window, steps)
    count, rest = divmod(steps, window)
    if count + bool(rest) == 1:
        return walk_one(carry, parts, jnp.asarray(0, jnp.int32))
    at_end = reverse == retrace  # where in time the short window lies
    begin = 0 if at_end else rest

    def walk_part(carry, first, size):
        return walk_one(
            carry,
            jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), parts),
            first,
        )

    def walk_short(carry):
        return (
            walk_part(
                carry, jnp.asarray(count * window if at_end else 0, jnp.int32), rest
            )
            if rest
            else carry
        )

    firsts = begin + window * jnp.arange(count, dtype=jnp.int32)
    carry = walk_short(carry) if retrace else carry
    carry, _ = jax.lax.scan(
        lambda c, first: (walk_part(c, first, window), None),
        carry,
        firsts,
        reverse=reverse,
    )
    return carry if retrace else walk_short(carry)


def chunk_index(first: Any, window: int) -> Any:
    """Which window of ``window`` steps, or shorter at either end, begins at step
    ``first``.
    """
    return (first + window - 1) // window


def chunk_starts(carry: Any, carries: Any, window: int | None, reverse: bool) -> Any:
    """The carry before every window, in the order of time, from the one before all
    and those after every step.
    """

    def of_leaf(first, after):
        steps = after.shape[0]
        size = steps if window is None else min(window, steps)
        if reverse:
            ends = (
                after[steps - (-(-steps // size) - 1) * size : steps - size + 1 : size]
                if steps > size
                else after[:0]
            )
            return jnp.concatenate([ends, first[None]])
        return jnp.concatenate([first[None], after[size - 1 : steps - 1 : size]])

    return jax.tree.map(of_leaf, carry, carries)
