"""A sequence on a matrix state, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval as pe
from jaxtyping import Array, Bool, Int

from ..core.flags import expand_flags
from ..core.types import PyTree
from .chunk import run_chunk
from .splitting import join_chunks, split_flags, split_steps
from .terms import (
    MatrixMemory,
    Terms,
    has_channel_decay,
    join_micro_steps,
    leave_out,
    map_terms,
    rotate_keys,
)
from .turn import without_turns


def walk(
    terms_of: Callable[[PyTree], Terms],
    show: Callable[[Array, Array | None, PyTree], PyTree],
    memory: MatrixMemory,
    initial: MatrixMemory | None,
    zs: PyTree,
    live: Bool[Array, "T *B"],
    resets: Bool[Array, "T *B"] | None,
    *,
    chunk: int,
    reverse: bool,
    reads: str = "after",
    micro_steps: int = 1,
) -> tuple[MatrixMemory, Any]:
    """Run the recurrence over a sequence, ``chunk`` steps at once.

    A chunk is computed again for its gradient, so that beyond inputs and outputs memory
    grows with T by one state a chunk.

    Args:
        terms_of: returns the terms of steps from ``zs``, with any leading axes.
        show: returns what is wanted of a step from what it reads ``(..., heads, d_v)``,
            m (or None) and ``zs``, likewise.
        memory: the state before the first step.
        initial: the state that a reset brings in; None if it is zero.
        zs: the projected inputs of all steps, ``(T, *B, ...)`` per leaf.
        live: False where the state is held.
        resets: True where the initial state replaces the state before a step, or None.
        chunk: the number of steps that are computed at once.
        reverse: whether to run from the last step to the first.
        reads: ``"after"`` or ``"before"``.
        micro_steps: the number of micro steps in a step; see `join_micro_steps`.

    Returns:
        The last state; and of every step what ``show`` returns, ``(T, *B, ...)``, and
        whether it was left out because its terms are not finite, ``(T, *B)``.
    """
    steps = live.shape[0]
    size = min(chunk, steps)

    def body(memory, now):
        z, live, resets = now
        terms = terms_of(z)
        bad = terms_not_finite(terms, live)
        terms = leave_out(terms, live & ~bad)
        segment = None
        if micro_steps > 1:
            terms = join_micro_steps(terms, micro_steps)
        if resets is not None:
            segment = jnp.cumsum(resets, 0, dtype=jnp.int32)
            segment = jnp.repeat(segment, micro_steps, 0)
        if terms.a is not None or has_channel_decay(terms):
            terms, segment = _pad_to_power(terms, segment)
        angles = None
        if terms.turn is not None:
            terms, angles = without_turns(terms, segment)
        memory, (y, m) = run_chunk(memory, initial, terms, segment, reads)
        if angles is not None:
            back = -_of_heads(angles, memory.S)
            memory = memory._replace(S=rotate_keys(memory.S, back))
        y = y[: size * micro_steps][micro_steps - 1 :: micro_steps]
        return memory, (show(y, m, z), bad)

    body = jax.checkpoint(body, prevent_cse=False)
    flags = (split_flags(x, chunk, reverse) for x in (live, resets))
    split = (split_steps(zs, chunk, reverse), *flags)
    memory, shown = jax.lax.scan(body, memory, split)
    return memory, jax.tree.map(lambda x: join_chunks(x, steps, reverse), shown)


def reads_first(f: Callable, first: PyTree, *rest: PyTree) -> bool:
    """Whether the result of a function depends on its first argument."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), rest)
    traced = jax.make_jaxpr(f)(first, *shapes)
    _, used = pe.dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals))
    return any(used[: len(jax.tree.leaves(first))])


def power_of_two(steps: int) -> int:
    """Return the least power of two that is at least ``steps``."""
    return 1 << (steps - 1).bit_length()


def _of_heads(angles: Array, S: Array) -> Array:
    """Return the angles of every head of S, in its dtype."""
    times = S.shape[-3] // angles.shape[-2]
    return jnp.repeat(angles.astype(S.dtype), times, axis=-2)


def _pad_to_power(terms: Terms, segment: Any) -> tuple[Terms, Any]:
    """Add steps that do nothing until their number is a power of two."""
    steps = terms.q.shape[0]
    missing = power_of_two(steps) - steps
    if not missing:
        return terms, segment

    def pad(x, mode="constant"):
        return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode=mode)

    return map_terms(pad, terms), None if segment is None else pad(segment, "edge")


def steps_not_finite(zs: PyTree, batch_ndim: int) -> Bool[Array, "T *B"]:
    """Find the steps whose inputs are not finite."""
    leaves = jax.tree.leaves(zs)
    bad = jnp.zeros(leaves[0].shape[: 1 + batch_ndim], bool)
    for leaf in leaves:  # tokens, which are no floats, are always finite
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            features = tuple(range(1 + batch_ndim, leaf.ndim))
            bad = bad | ~jnp.isfinite(leaf).all(features)
    return bad


def terms_not_finite(terms: Terms, live: Bool[Array, "T *B"]) -> Bool[Array, "T *B"]:
    """Find the live steps whose terms are not finite, but for q, which only reads.

    A logarithm may be -inf.
    """
    bad = jnp.zeros_like(live)
    for name, x in zip(Terms._fields[1:], terms[1:], strict=True):
        if x is not None:
            fits = x < jnp.inf if name in ("g", "w") else jnp.isfinite(x)
            bad = bad | ~fits.all(tuple(range(live.ndim, x.ndim)))
    return bad & live


def spoiled_steps(
    bad: Bool[Array, "T *B"], resets: Bool[Array, "T *B"] | None, reverse: bool
) -> Bool[Array, "T *B"]:
    """Find the steps that bad ones make NaN: those from a bad one to the next reset.

    The sums over a chunk would instead spread a NaN to earlier steps and across resets,
    so that bad steps are left out and the NaNs written afterwards.
    """

    def latest(flags):  # number of the latest flagged step up to each step, or 0
        return jax.lax.cummax(places(flags, reverse), axis=0, reverse=reverse)

    latest_bad = latest(bad)
    if resets is None:
        return latest_bad > 0
    return (latest_bad > 0) & (latest_bad >= latest(resets))


def places(flags: Bool[Array, "T *B"], reverse: bool) -> Int[Array, "T *B"]:
    """Number the flagged steps by their order of computation, from 1; others get 0."""
    numbers = jnp.arange(1, len(flags) + 1, dtype=jnp.int32)
    numbers = jnp.flip(numbers) if reverse else numbers
    return jnp.where(flags, expand_flags(numbers, flags), 0)


def last_shown(
    h: Array,
    hs: Array,
    mask: Bool[Array, "T *B"] | None,
    resets: Bool[Array, "T *B"] | None,
    initial_h: Array | None,
    reverse: bool,
) -> Array:
    """Return h of the last carry.

    It is the h of the last step computed that is not masked; or that of the initial
    carry if a reset came later; or, if there is neither, the one before all steps.
    """
    steps = hs.shape[0]
    if mask is None:
        return hs[0 if reverse else -1]
    latest_valid = places(mask, reverse).max(0)
    index = steps - latest_valid if reverse else latest_valid - 1
    index = jnp.clip(index, 0, steps - 1)[None, ..., None]
    last_h = jnp.take_along_axis(hs, index, axis=0)[0]
    latest_reset = jnp.zeros_like(latest_valid)
    if resets is not None and initial_h is not None:
        latest_reset = places(resets, reverse).max(0)
        h = jnp.where((latest_reset > 0)[..., None], initial_h, h)
    valid = (latest_valid > 0) & (latest_valid >= latest_reset)
    return jnp.where(valid[..., None], last_h, h)
