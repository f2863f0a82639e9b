"""Linear cells whose time is split over devices.

The steps of a stretch are one elementwise map ``s -> A s + S``. Backwards, with g_t the
cotangent of s_t and ``e_t = a_t (g_t + e_{t+1})`` that of s_{t-1}, they are the map
``e -> A e + E``, with the same A. So either way the devices exchange two states each,
and the engine inside, with its own derivative, runs the steps of every stretch once.

Forward mode runs the tangent of every stretch twice: from a carry without tangent, for
what the others must know, and then from that which enters.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...core.cell import Cell
from ...core.engine import AbstractEngine
from ...core.flags import expand_flags
from ...core.time_split import TimeSplit
from ...core.types import Carry, Params, PyTree
from ..jaxpr.evaluate import is_differentiable
from ..recurrence.chunks import scan_over_chunks
from ..recurrence.heuristics import (
    LEAST_PREFIX_CHUNK,
    PREFIX_CHUNK_BYTES,
    PREFIX_CHUNK_BYTES_ELSEWHERE,
    nearest_divisor,
)
from ..recurrence.run import Sequence, one_step
from .linear_map import linear_map

LEAST = 1e-30  # what multiplies a state by less leaves nothing of it
Maps = tuple[Any, Any]  # A and S, or those of every step


def run_linear(
    split: TimeSplit,
    engine: AbstractEngine,
    cell: Cell,
    params: Params,
    carry: Carry,
    sequence: Sequence,
    reverse: bool,
) -> tuple[Carry, Carry]:
    """Run a linear cell over this device's stretch of time.

    Args:
        split: the axis over which time is split.
        engine: the engine that runs the steps of a stretch.
        cell: a cell that is linear in its state.
        params: its parameters.
        carry: the carry before the first step of all.
        sequence: inputs, mask and resets of this device's steps.
        reverse: whether the steps run from the last to the first.

    Returns:
        The carry after the last step of all, on every device, and the carries after
        every step of this device.
    """
    return _SplitRun(split, engine, cell, reverse).run(params, carry, sequence)


class _SplitRun(NamedTuple):
    """How the stretches run; see `run_linear`."""

    split: TimeSplit
    engine: AbstractEngine
    cell: Cell
    reverse: bool

    def run(self, params: Params, carry: Carry, sequence: Sequence) -> Any:
        """Return the last carry of all, and the carries of this device's steps."""

        @jax.custom_jvp
        def run(params, carry, sequence):
            before, _ = self.enter(params, carry, sequence)
            last, carries = self.steps(params, before, sequence)
            return self.split.of_last(last, self.reverse), carries

        run.defjvp(self.differentiated)
        return run(params, carry, sequence)

    def steps(self, params: Params, carry: Carry, sequence: Sequence) -> Any:
        """Run this device's steps from the carry that enters them."""
        return self.engine.run(self.cell, params, carry, *sequence, self.reverse)

    def enter(self, params: Params, carry: Carry, sequence: Sequence) -> Any:
        """Return the carry that enters this device's steps, and their A."""
        of_chunk = functools.partial(_steps, self.cell, params, carry)
        stretch = _joined(of_chunk, carry, sequence, self.reverse)
        return self.carry_before(stretch, carry, self.reverse), stretch[0]

    def carry_before(self, stretch: Maps, first: Carry, reverse: bool) -> Any:
        """Return what enters this device's stretch, from the maps of all."""
        return self.split.carry_before(stretch, first, join, apply, reverse)

    def differentiated(self, primals: Any, tangents: Any) -> Any:
        """Return the results of `run` and their tangents."""
        params, carry, sequence = primals
        before, A = self.enter(params, carry, sequence)
        moving, put_back = _moving((params, sequence))

        def recurrence(moving, before):
            params, sequence = put_back(moving)
            return self.steps(params, before, sequence)

        (last, carries), line = jax.linearize(recurrence, moving, before)
        results = self.split.of_last(last, self.reverse), carries
        d_params, d_first, d_sequence = tangents
        moved = _chosen((d_params, d_sequence), (params, sequence))
        known, of_known = jax.tree.flatten((line, A, params, carry, sequence))
        given, of_given = jax.tree.flatten((moved, d_first))
        of_results = jax.tree.structure(results)

        def function(known, given):
            primals = jax.tree.unflatten(of_known, known)
            return jax.tree.leaves(
                self.forward(primals, jax.tree.unflatten(of_given, given))
            )

        def transpose(known, cotangents):
            primals = jax.tree.unflatten(of_known, known)
            return jax.tree.leaves(
                self.backward(primals, jax.tree.unflatten(of_results, cotangents))
            )

        d_results = linear_map(function, transpose, known, given)
        return results, jax.tree.unflatten(of_results, d_results)

    def forward(self, known: Any, tangents: Any) -> Any:
        """Return the tangents of the results.

        Args:
            known: the linearized steps, A, parameters, first carry and sequence.
            tangents: those of parameters and sequence, and that of the first carry.
        """
        line, A, *_ = known
        moved, d_first = tangents
        d_last, _ = line(moved, jax.tree.map(jnp.zeros_like, d_first))
        d_before = self.carry_before((A, d_last), d_first, self.reverse)
        d_last, d_carries = line(moved, d_before)
        return self.split.of_last(d_last, self.reverse), d_carries

    def backward(self, known: Any, cotangents: Any) -> Any:
        """Return the cotangents of what has tangents; see `forward`."""
        line, _, params, carry, sequence = known
        d_last, d_carries = cotangents
        # Every device holds the last carry, and may use it.
        d_last = self.split.sum(d_last)

        def of_chunk(now):
            (*sequence, d_carries) = now
            a, _ = _steps(self.cell, params, carry, tuple(sequence))
            return a, jax.tree.map(_times, a, d_carries)

        back = not self.reverse
        stretch = _joined(of_chunk, carry, (*sequence, d_carries), back)
        d_after = self.carry_before(stretch, d_last, back)
        moving, _ = _moving((params, sequence))
        pull = jax.linear_transpose(line, moving, carry)
        d_moving, d_before = pull((d_after, d_carries))
        is_first = self.split.rank(self.reverse) == 0
        d_first = jax.tree.map(
            lambda d: jnp.where(is_first, d, jnp.zeros_like(d)), d_before
        )
        return d_moving, d_first


def join(early: Maps, late: Maps) -> Maps:
    """Return the map of two stretches, or steps, one after the other.

    A is 0 only behind a reset. A product that underflows is the smallest number
    instead, so that NaN, which a state never gets rid of, is not taken for reset.
    """
    return jax.tree.map(_product, late[0], early[0]), apply(late, early[1])


def apply(stretch: Maps, carry: Carry) -> Carry:
    """Return ``A carry + S``; where A is 0, as after a reset, it is S in any case."""
    return jax.tree.map(
        lambda A, S, s: jnp.where(A == 0, S, A * s + S), *stretch, carry
    )


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ``a * b``, and 0 where a is, whatever b is."""
    return jnp.where(a == 0, jnp.zeros_like(a), a * b)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return ``a * b``, which is 0 only where a or b is."""
    return jnp.where((a == 0) | (b == 0), jnp.zeros_like(a), _nonzero(a * b))


def _nonzero(a: jax.Array) -> jax.Array:
    """Replace zeros by the smallest number; not in float16, whose is too large.

    It is added, so that a second derivative goes through zeros, too.
    """
    tiny = jnp.finfo(a.dtype).tiny
    if tiny > LEAST:
        return a
    return a + jnp.where(a == 0, jnp.full_like(a, tiny), jnp.zeros_like(a))


def _steps(cell: Cell, params: Params, carry: Carry, sequence: Sequence) -> Maps:
    """Return a and b of every step: at a carry of zeros a step returns b, and a tangent
    of ones becomes a. a is 0 at resets, and nowhere else.
    """
    zeros, ones = (
        jax.tree.map(like, carry) for like in (jnp.zeros_like, jnp.ones_like)
    )

    def maps(now):
        return jax.jvp(lambda s: one_step(cell, params, s, now), (zeros,), (ones,))

    b, a = jax.vmap(maps)(sequence)
    _, _, resets = sequence
    if resets is None:
        return jax.tree.map(_nonzero, a), b

    def kept(a):
        return jnp.where(expand_flags(resets, a), a, _nonzero(a))

    return jax.tree.map(kept, a), b


def _joined(of_chunk: Any, carry: Carry, sequence: PyTree, reverse: bool) -> Maps:
    """Return the map of a whole stretch, a chunk of steps at a time.

    Args:
        of_chunk: returns a and b of the steps of a chunk.
        carry: a carry, for its shapes.
        sequence: what ``of_chunk`` takes, of all steps.
        reverse: whether the steps run from the last to the first.
    """

    def add_chunk(stretch, chunk, start):
        return join(stretch, _reduced(of_chunk(chunk), reverse))

    def by(budget, carry, sequence):
        nothing = (
            jax.tree.map(jnp.ones_like, carry),
            jax.tree.map(jnp.zeros_like, carry),
        )
        chunk = _chunk_of(jax.tree.leaves(sequence)[0].shape[0], carry, budget)
        return scan_over_chunks(add_chunk, nothing, sequence, chunk, reverse)

    return jax.lax.platform_dependent(
        carry,
        sequence,
        cpu=functools.partial(by, PREFIX_CHUNK_BYTES),
        default=functools.partial(by, PREFIX_CHUNK_BYTES_ELSEWHERE),
    )


def _chunk_of(steps: int, carry: Carry, budget: int) -> int:
    """Return as many steps as have so many bytes of state, or a divisor near it."""
    state = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(carry))
    fitting = max(budget // max(state, 1), LEAST_PREFIX_CHUNK)
    return nearest_divisor(steps, min(fitting, steps))


def _reduced(maps: Maps, reverse: bool) -> Maps:
    """Join the maps of all steps of a chunk, in pairs."""
    steps = jax.tree.leaves(maps)[0].shape[0]
    if reverse:
        maps = jax.tree.map(lambda x: jnp.flip(x, 0), maps)
    for _ in range(math.ceil(math.log2(max(steps, 1)))):
        pairs = jax.tree.leaves(maps)[0].shape[0] // 2
        even, odd, rest = (
            jax.tree.map(lambda x, part=part: x[part], maps)
            for part in (
                slice(0, 2 * pairs, 2),
                slice(1, 2 * pairs, 2),
                slice(2 * pairs, None),
            )
        )
        maps = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), join(even, odd), rest)
    return jax.tree.map(lambda x: x[0], maps)


def _moving(tree: PyTree) -> tuple[list, Any]:
    """Return the arrays that have tangents, and what puts others in their place."""
    leaves, structure = jax.tree.flatten(tree)
    moves = [is_differentiable(jax.typeof(a)) for a in leaves]

    def put_back(moving):
        rest = iter(moving)
        return jax.tree.unflatten(
            structure,
            [next(rest) if m else a for a, m in zip(leaves, moves, strict=True)],
        )

    return [a for a, m in zip(leaves, moves, strict=True) if m], put_back


def _chosen(tangents: PyTree, primals: PyTree) -> list:
    """Return the tangents of the arrays that have them."""
    both = zip(jax.tree.leaves(tangents), jax.tree.leaves(primals), strict=True)
    return [t for t, a in both if is_differentiable(jax.typeof(a))]
