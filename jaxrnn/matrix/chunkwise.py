"""A sequence on a matrix state, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval as pe
from jaxtyping import Array, Bool, Int

from ..core.flags import expand_flags
from ..core.fusion_barrier import cpu_optimization_barrier
from ..core.types import PyTree
from .block import chunks_in_block, run_block
from .splitting import join_chunks, split_flags, split_steps
from .terms import (
    MatrixMemory,
    Terms,
    has_channel_decay,
    join_micro_steps,
    leave_out,
    map_terms,
)
from .weighted import (
    WeightedMemory,
    in_parts,
    join_columns,
    joined,
    run_weighted_chunk,
)

CHUNK = 32  # steps in a chunk on a CPU
CHUNK_ELSEWHERE = 64  # steps in a chunk on other platforms
FEW_CHUNKS = 8  # fewer are not worth to be prepared together


State = MatrixMemory | WeightedMemory


class Plan(NamedTuple):
    """How the steps are divided.

    Attributes:
        chunk: steps that are computed at once.
        block: chunks that are prepared side by side.
    """

    chunk: int
    block: int


def plans(
    steps: int,
    chunk: int | None,
    S: Array,
    *,
    weighted: bool,
    usual: tuple[int, int] = (CHUNK, CHUNK_ELSEWHERE),
) -> tuple[Plan, Plan]:
    """Choose the `Plan` for a CPU, and that for other platforms.

    A CPU is fastest with chunks of 32 steps, one after another (benchmarks/cpu/matrix).
    Elsewhere a chunk costs some fifty kernel launches whatever its size, so that there
    are fewer and larger ones, prepared side by side. No accelerator has measured this;
    what is known are the launches of a program compiled for an H100: for the gradient
    of a gated delta rule over 2,048 steps 6,938 in single chunks of 32, 3,643 in those
    of 64, and in chunks of 64 of which 16 are prepared together 842, and 932 that
    overlap with them (benchmarks/accelerator/launches).

    Args:
        steps: T.
        chunk: the steps in a chunk, or None to choose.
        S: the state of all heads.
        weighted: whether the writes have strengths, so that no chunk can be prepared.
        usual: the steps in a chunk where none are given, on a CPU and elsewhere.
    """
    on_cpu = Plan(min(chunk or usual[0], steps), 1)
    size = min(chunk or usual[1], steps)
    count = -(-steps // size)
    if weighted or count < FEW_CHUNKS:
        return on_cpu, Plan(size, 1)
    return on_cpu, Plan(size, chunks_in_block(count, size, S))


class Settings(NamedTuple):
    """How a sequence is computed; see `run_chunkwise`."""

    terms_of: Callable[[PyTree], Terms]
    show: Callable[[Array, Array | None, PyTree], PyTree]
    reads: str
    micro_steps: int
    reverse: bool
    check: bool
    batch_ndim: int


def run_chunkwise(
    terms_of: Callable[[PyTree], Terms],
    show: Callable[[Array, Array | None, PyTree], PyTree],
    memory: MatrixMemory,
    initial: MatrixMemory | None,
    zs: PyTree,
    live: Bool[Array, "T *B"] | None,
    resets: Bool[Array, "T *B"] | None,
    *,
    chunk: int | None,
    reverse: bool,
    reads: str = "after",
    micro_steps: int = 1,
    check: bool = True,
    usual: tuple[int, int] = (CHUNK, CHUNK_ELSEWHERE),
) -> tuple[MatrixMemory, Any]:
    """Run the recurrence over a sequence, chunk by chunk.

    What a chunk computes without its first state is computed for all chunks of a block
    side by side. A block is computed again for its gradient, so that beyond inputs and
    outputs memory grows with T by one state a block.

    Args:
        terms_of: returns the terms of steps from ``zs``, with any leading axes.
        show: returns what is wanted of a step from what it reads ``(..., heads, d_v)``,
            m (or None) and ``zs``, likewise.
        memory: the state before the first step.
        initial: the state that a reset brings in; None if it is zero.
        zs: the projected inputs of all steps, ``(T, *B, ...)`` per leaf.
        live: False where the state is held, or None if it is nowhere.
        resets: True where the initial state replaces the state before a step, or None.
        chunk: the number of steps that are computed at once; None chooses for the
            platform, by `plans`.
        reverse: whether to run from the last step to the first.
        reads: ``"after"`` or ``"before"``.
        micro_steps: the number of micro steps in a step; see `join_micro_steps`.
        check: whether to leave out the steps whose terms are not finite.
        usual: as in `plans`.

    Returns:
        The last state; and of every step what ``show`` returns, ``(T, *B, ...)``, and
        whether it was left out because its terms are not finite, ``(T, *B)``, or None
        without ``check``.
    """
    batch, steps = memory.S.shape[:-3], len(jax.tree.leaves(zs)[0])
    how = Settings(terms_of, show, reads, micro_steps, reverse, check, len(batch))
    weighted = memory.m is not None
    on_cpu, elsewhere = plans(steps, chunk, memory.S, weighted=weighted, usual=usual)
    sizes = {plan.chunk * plan.block for plan in (on_cpu, elsewhere)}
    if live is None and any(steps % size for size in sizes):
        live = jnp.ones((steps, *batch), bool)
    state: Any = in_parts(memory) if weighted else memory
    fresh: Any = initial
    if weighted and initial is not None:
        fresh = in_parts(initial)
    # XLA's CPU compiler (jax 0.10.2 to 0.12.0.1) reads memory that nobody wrote where
    # it fuses a matrix product with an operand that is one number everywhere, such as
    # a first state of zeros, or its cotangent. A barrier keeps them apart.
    inputs = cpu_optimization_barrier(state), fresh, (zs, live, resets)
    if on_cpu == elsewhere:
        state, shown = _run_blocks(how, on_cpu, *inputs)
    else:
        state, shown = jax.lax.platform_dependent(
            *inputs,
            cpu=lambda *inputs: _run_blocks(how, on_cpu, *inputs),
            default=lambda *inputs: _run_blocks(how, elsewhere, *inputs),
        )
    state = cpu_optimization_barrier(state)
    return joined(state) if weighted else state, shown


def _run_blocks(
    how: Settings,
    plan: Plan,
    memory: State,
    initial: State | None,
    sequence: PyTree,
) -> tuple[State, Any]:
    """Run the recurrence block by block."""
    zs, *flags = sequence
    steps, size = len(jax.tree.leaves(zs)[0]), plan.chunk * plan.block

    def in_chunks(leaf):
        return leaf.reshape(len(leaf), plan.block, plan.chunk, *leaf.shape[2:])

    def join(leaf):
        leaf = leaf.reshape(len(leaf), size, *leaf.shape[3:])
        return join_chunks(leaf, steps, how.reverse)

    def body(memory, now):
        return _run_block(how, plan.chunk, memory, initial, now)

    body = jax.checkpoint(body, prevent_cse=False)
    split = (
        split_steps(zs, size, how.reverse),
        *(split_flags(x, size, how.reverse) for x in flags),
    )
    memory, shown = jax.lax.scan(body, memory, jax.tree.map(in_chunks, split))
    return memory, jax.tree.map(join, shown)


def _run_block(
    how: Settings,
    size: int,
    memory: State,
    initial: Any,
    now: tuple[PyTree, Array | None, Array | None],
) -> tuple[State, PyTree]:
    """Compute the chunks of a block; ``now`` is ``(block, chunk, *B, ...)``."""
    z, micro_steps = now[0], how.micro_steps

    def chunk_of(now):
        z, live, resets = now
        terms, segment, bad = how.terms_of(z), None, None
        if how.check:
            bad = terms_not_finite(terms, live, how.batch_ndim)
            live = ~bad if live is None else live & ~bad
        if live is not None:
            terms = leave_out(terms, live)
        if micro_steps > 1:
            terms = join_micro_steps(terms, micro_steps)
        if resets is not None:
            segment = jnp.cumsum(resets, 0, dtype=jnp.int32)
            segment = jnp.repeat(segment, micro_steps, 0)
        if terms.a is not None or has_channel_decay(terms):
            terms, segment = _pad_to_power(terms, segment)
        return (terms, segment), bad

    @jax.vmap
    def show(y, m, z):
        """Show what the last micro step of every step reads."""
        y, m = jax.tree.map(
            lambda x: x[: size * micro_steps][micro_steps - 1 :: micro_steps], (y, m)
        )
        return how.show(y, m, z)

    given, bad = jax.vmap(chunk_of)(now)
    if isinstance(memory, WeightedMemory):

        def run(memory, given):
            return run_weighted_chunk(memory, initial, *given)

        parts, (ys, m) = jax.lax.scan(run, memory, given)
        y = join_columns(cpu_optimization_barrier(ys))
        return parts, (show(y, m, z), bad)
    first = None if initial is None else initial.S
    S, y = run_block(memory.S, first, given, how.reads)
    y = cpu_optimization_barrier(y)
    return MatrixMemory(S), (show(y, None, z), bad)


def reads_first(f: Callable, first: PyTree, *rest: PyTree) -> bool:
    """Whether the result of a function depends on its first argument."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), a.dtype), rest)
    traced = jax.make_jaxpr(f)(first, *shapes)
    _, used = pe.dce_jaxpr(traced.jaxpr, [True] * len(traced.out_avals))
    return any(used[: len(jax.tree.leaves(first))])


def power_of_two(steps: int) -> int:
    """Return the least power of two that is at least ``steps``."""
    return 1 << (steps - 1).bit_length()


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


def terms_not_finite(
    terms: Terms, live: Bool[Array, "T *B"] | None, batch_ndim: int
) -> Bool[Array, "T *B"]:
    """Find the live steps whose terms are not finite, but for q, which only reads.

    A logarithm may be -inf.
    """
    bad = jnp.zeros(terms.q.shape[: 1 + batch_ndim], bool)
    for name, x in zip(Terms._fields[1:], terms[1:], strict=True):
        if x is not None:
            fits = x < jnp.inf if name in ("g", "w") else jnp.isfinite(x)
            bad = bad | ~fits.all(tuple(range(bad.ndim, x.ndim)))
    return bad if live is None else bad & live


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
