"""Time cut into windows: what truncation, checkpointing and the backward pass share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

WalkOne = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def walk_in_windows(
    walk_one: WalkOne,
    carry: Any,
    parts: Any,
    window: int | None,
    reverse: bool,
    *,
    each: Any = None,
    short_first: bool = False,
) -> tuple[Any, Any]:
    """Walk ``parts``, a pytree of ``(T, ...)``, window after window: one compiled loop, and the shorter window that is left.

    ``walk_one(carry, part, of_each, first) -> (carry, outs)`` walks one window; ``of_each`` is its row of ``each``, whose
    leading axis counts windows in the order of time; ``first`` is the step of the sequence at which it begins.
    In the order of walking the short window comes last (at the front of time when time is walked backwards), or with
    ``short_first`` first, which is how a walk is retraced. ``window=None`` is one window.
    """
    steps = jax.tree.leaves(parts)[0].shape[0]
    window = steps if window is None else min(window, steps)
    count, rest = divmod(steps, window)
    if count + bool(rest) == 1:
        return walk_one(carry, parts, jax.tree.map(lambda a: a[0], each), jnp.asarray(0, jnp.int32))
    at_end = reverse == short_first  # where in time the short window lies
    begin = 0 if at_end else rest  # of the whole windows
    end, skipped = begin + count * window, bool(begin)
    whole = jax.tree.map(lambda a: a[begin:end].reshape(count, window, *a.shape[1:]), parts)
    of_whole = jax.tree.map(lambda a: a[skipped : skipped + count], each)
    firsts = begin + window * jnp.arange(count, dtype=jnp.int32)

    def walk_short(carry):
        part = jax.tree.map(lambda a: a[end:] if at_end else a[:begin], parts)
        of_it = jax.tree.map(lambda a: a[-1 if at_end else 0], each)
        return walk_one(carry, part, of_it, jnp.asarray(end if at_end else 0, jnp.int32))

    if rest and short_first:
        carry, more = walk_short(carry)
    carry, outs = jax.lax.scan(lambda c, now: walk_one(c, *now), carry, (whole, of_whole, firsts), reverse=reverse)
    outs = jax.tree.map(lambda a: a.reshape(count * window, *a.shape[2:]), outs)
    if rest and not short_first:
        carry, more = walk_short(carry)
    if rest:
        outs = jax.tree.map(lambda a, b: jnp.concatenate([a, b] if at_end else [b, a]), outs, more)
    return carry, outs


def starts_of_windows(carry: Any, carries: Any, window: int | None, reverse: bool) -> Any:
    """The carry before every window, in the order of time, from the one before all and those after every step."""

    def of_leaf(first, after):
        steps = after.shape[0]
        size = steps if window is None else min(window, steps)
        if reverse:
            ends = after[steps - (-(-steps // size) - 1) * size : steps - size + 1 : size] if steps > size else after[:0]
            return jnp.concatenate([ends, first[None]])
        return jnp.concatenate([first[None], after[size - 1 : steps - 1 : size]])

    return jax.tree.map(of_leaf, carry, carries)
