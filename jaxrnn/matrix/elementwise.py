"""A sequence on a state that is multiplied and added to elementwise, chunk by chunk.

The states are read inside a chunk, and a chunk is computed again for its gradient. So
the states of one chunk are in memory at a time, and beside them one state a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..core.flags import expand_flags, select
from ..core.types import PyTree
from .splitting import join_chunks, split_flags, split_steps


class Recurrence(NamedTuple):
    """The recurrence ``s_t = a_t * s_{t-1} + b_t``, of which ``y_t`` is read.

    Attributes:
        affine: returns a and b from ``z``, with any leading axes, each a pytree like s
            of arrays that broadcast against s.
        read: returns y ``(..., F)`` from s and ``z``, with any leading axes.
    """

    affine: Callable[[PyTree], tuple[PyTree, PyTree]]
    read: Callable[[PyTree, PyTree], Array]


class StepInputs(NamedTuple):
    """What is known of every step of a sequence, or of a chunk of it.

    Attributes:
        z: ``(T, *B, ...)`` per leaf.
        live: ``(T, *B)``, False where the state is held.
        resets: ``(T, *B)``, True where the initial state replaces the state before the
            step, or None.
    """

    z: PyTree
    live: Bool[Array, "T *B"]
    resets: Bool[Array, "T *B"] | None


def run_elementwise(
    recurrence: Recurrence,
    state: PyTree,
    initial: PyTree,
    steps: StepInputs,
    *,
    chunk: int,
    reverse: bool,
) -> tuple[PyTree, Array]:
    """Run the recurrence over a sequence, ``chunk`` steps at once.

    On a CPU the steps of a chunk run one after another, on other platforms by parallel
    prefixes, whichever the program is compiled for. The products of the factors of a
    chunk must be finite, as they are for ``|a| <= 1``.

    Args:
        recurrence: the recurrence and its reading.
        state: s before the first step, ``(*B, ...)`` per leaf.
        initial: s that a reset brings in; not read where ``steps.resets`` is None.
        steps: all steps.
        chunk: the number of steps that are computed at once.
        reverse: whether to run from the last step to the first.

    Returns:
        The last state, and what was read after every step, ``(T, *B, F)``.
    """

    def run(run_chunk: Callable, state: PyTree, initial: PyTree, steps: StepInputs):
        def body(state, now):
            return run_chunk(recurrence, state, initial, now)

        body = jax.checkpoint(body, prevent_cse=False)
        length = steps.live.shape[0]
        size = min(chunk, length)
        flags = (split_flags(x, size, reverse) for x in steps[1:])
        split = StepInputs(split_steps(steps.z, size, reverse), *flags)
        state, ys = jax.lax.scan(body, state, split)
        return state, join_chunks(ys, length, reverse)

    return jax.lax.platform_dependent(
        state,
        initial,
        steps,
        cpu=lambda *inputs: run(run_steps, *inputs),
        default=lambda *inputs: run(run_prefixes, *inputs),
    )


def run_steps(
    recurrence: Recurrence, state: PyTree, initial: PyTree, steps: StepInputs
) -> tuple[PyTree, Array]:
    """Run the steps of a chunk one after another.

    Returns:
        The last state, and what was read after every step.
    """

    def step(state, now):
        if now.resets is not None:
            state = select(now.resets, initial, state)
        a, b = recurrence.affine(now.z)
        state = select(now.live, advance(a, b, state), state)
        return state, recurrence.read(state, now.z)

    return jax.lax.scan(step, state, steps)


def advance(a: PyTree, b: PyTree, state: PyTree) -> Any:
    """Return ``a * state + b``, leaf by leaf, in the dtype of the state."""
    return jax.tree.map(lambda a, b, s: _like(a, s) * s + _like(b, s), a, b, state)


def _like(x: Any, s: Array) -> Array:
    """Return x in the dtype of s, with as many axes as s at least."""
    x = jnp.asarray(x, s.dtype)
    return x.reshape((1,) * (s.ndim - x.ndim) + x.shape)


def run_prefixes(
    recurrence: Recurrence, state: PyTree, initial: PyTree, steps: StepInputs
) -> tuple[PyTree, Array]:
    """Run the steps of a chunk by parallel prefixes.

    Returns:
        The last state, and what was read after every step.
    """
    length = steps.live.shape[0]
    a, b = recurrence.affine(steps.z)

    def prefixes(a, b, first, fresh):
        shape = (length, *first.shape)
        a, b = (jnp.broadcast_to(jnp.asarray(x, first.dtype), shape) for x in (a, b))
        live = expand_flags(steps.live, b)
        a, b = (
            jnp.where(live, a, jnp.ones_like(a)),
            jnp.where(live, b, jnp.zeros_like(b)),
        )
        if steps.resets is None:
            b = b.at[0].add(a[0] * first)
            return jax.lax.associative_scan(join_steps, (a, b))[1]
        # A reset is a step whose factor is 0 and whose addend has the initial state.
        reset = expand_flags(steps.resets, b)
        b = jnp.where(reset, a * fresh[None] + b, b)
        a = jnp.where(reset, jnp.zeros_like(a), a)
        a, b = jax.lax.associative_scan(join_steps, (a, b))
        # The first state is not part of these products, so that where it is not finite
        # it stays before the first reset.
        late = expand_flags(jnp.cumsum(steps.resets, 0, dtype=jnp.int32) > 0, b)
        return a * jnp.where(late, jnp.zeros_like(b), first[None]) + b

    states = jax.tree.map(prefixes, a, b, state, initial)
    last = jax.tree.map(lambda s: s[-1], states)
    return last, recurrence.read(states, steps.z)


def join_steps(
    earlier: tuple[Array, Array], later: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Return a and b of two steps, or runs of steps, as one."""
    return later[0] * earlier[0], later[0] * earlier[1] + later[1]
