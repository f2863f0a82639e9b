"""Time cut into windows: what truncation and checkpointing share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..cell import Carry

WalkOne = Callable[[Carry, Any, Array], tuple[Carry, Carry]]


def walk_in_windows(walk_one: WalkOne, carry: Carry, parts: Any, window: int, reverse: bool) -> tuple[Carry, Carry]:
    """Walk ``parts``, a pytree of ``(T, ...)``, window after window: one compiled loop, and the shorter window that is left.

    ``walk_one(carry, part, first) -> (carry, carries)`` walks one window; ``first`` is a bool scalar. In the order of
    walking the short window comes last: at the front of time when time is walked backwards.
    """
    steps = jax.tree.leaves(parts)[0].shape[0]
    count, rest = divmod(steps, window)
    cut = rest if reverse else count * window
    front, back = jax.tree.map(lambda a: a[:cut], parts), jax.tree.map(lambda a: a[cut:], parts)
    whole, short = (back, front) if reverse else (front, back)

    firsts = jnp.arange(count) == (count - 1 if reverse else 0)
    windows = jax.tree.map(lambda a: a.reshape(count, window, *a.shape[1:]), whole)
    carry, carries = jax.lax.scan(lambda c, now: walk_one(c, *now), carry, (windows, firsts), reverse=reverse)
    carries = jax.tree.map(lambda a: a.reshape(count * window, *a.shape[2:]), carries)
    if rest:
        carry, more = walk_one(carry, short, jnp.asarray(count == 0))
        carries = jax.tree.map(lambda a, b: jnp.concatenate([b, a] if reverse else [a, b]), carries, more)
    return carry, carries
