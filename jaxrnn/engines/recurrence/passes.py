"""The three passes of a recurrence: forward, jvp and backward.

They implement the primitives of `jaxrnn.engines.recurrence.primitives`, whose
docstring derives them. All arrays are in flat lists, with time as the leading axis of
whatever there is for every step, and the forward and backward passes run in chunks of
consecutive steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..jaxpr.evaluate import (
    eval_all_steps,
    is_differentiable,
    split_by_sizes,
)
from ..jaxpr.step_program import StepJaxpr
from ..loops.kinds import Sequential, loop_function, steps_an_iteration
from ..loops.parallel_prefix import carries_before
from ..loops.sequential import empty_rows
from .backward import BackwardLoop, WrtMask
from .chunks import chunk_index, scan_over_chunks
from .forward import ForwardLoop
from .schedule import LoopSchedule

Arrays = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Residuals:
    """What the backward pass reads of the forward pass.

    Attributes:
        inputs: the inputs, ``(T, ...)`` each.
        carries: the carries after every step, ``(T, ...)`` each, without the leaves
            that `StepVJP.not_kept` names. None if only ``starts`` were saved: each
            chunk then repeats its forward pass.
        kept: the values of `StepVJP.matmul_values` at every step, or None.
        starts: the carries at chunk starts, ``(number of chunks, ...)`` each: the same
            leaves as in ``carries``, or all leaves where ``carries`` is None.
    """

    inputs: Arrays
    carries: Arrays | None
    kept: Arrays | None
    starts: Arrays

    @property
    def steps(self) -> int:
        """Return T."""
        return self.inputs[0].shape[0]


def forward_pass(
    step: StepJaxpr,
    params: Arrays,
    carry: Arrays,
    inputs: Arrays,
    schedule: LoopSchedule,
    *,
    kept: bool,
    starts: bool,
    show: Sequence[bool],
) -> tuple[list, list, list]:
    """Run the recurrence forwards, and save what a derivative needs.

    Args:
        step: the traced step.
        params: the parameters.
        carry: the carry before the first step.
        inputs: the inputs, ``(T, ...)`` each.
        schedule: a resolved schedule.
        kept: whether the values of `StepVJP.matmul_values` are returned.
        starts: whether the carries at chunk starts are returned.
        show: for each leaf of the carry, whether it is returned after every step.

    Returns:
        The last carry; the shown leaves of the carries after every step; and what was
        asked for by ``kept`` or ``starts``.
    """
    forward = ForwardLoop(
        step,
        params,
        hoist=bool(schedule.hoist),
        reverse=schedule.reverse,
        loop=loop_function(schedule.loop),
        keep=kept,
        show=show,
    )
    steps = inputs[0].shape[0]
    size = schedule.steps_of_chunk(steps)
    count = -(-steps // size)

    def run_chunk(state, inputs, start):
        carry, buffers, start_carries = state
        index = chunk_index(start, size)
        start_carries = [
            jax.lax.dynamic_update_index_in_dim(b, c, index, 0)
            for b, c in zip(start_carries, carry, strict=False)
        ]
        return *forward.run_chunk(carry, buffers, inputs, start), start_carries

    start_carries = [empty_rows(count, a) for a in step.carry_avals] if starts else []
    state = (list(carry), forward.empty_buffers(steps), start_carries)
    last, buffers, start_carries = scan_over_chunks(
        run_chunk, state, list(inputs), schedule.chunk, schedule.reverse
    )
    carries, saved_values = split_by_sizes(buffers, (sum(show),))
    return last, carries, start_carries if starts else saved_values


def plain_forward_pass(
    step: StepJaxpr,
    params: Arrays,
    carry: Arrays,
    inputs: Arrays,
    schedule: LoopSchedule,
) -> tuple[list, list]:
    """Run the recurrence by one ``jax.lax.scan``, which JAX differentiates.

    What does not depend on the carry is computed before the loop, unless the schedule
    says otherwise, or the step calls a ``jax.custom_vjp`` function: its rule may not be
    linear, so that it has to see the cotangent of every step, and not their sum.
    Returns the last carry and the carries after every step.
    """
    options: dict[str, Any] = {
        "length": inputs[0].shape[0],
        "reverse": schedule.reverse,
        "unroll": steps_an_iteration(schedule.loop),
    }
    if step.calls_custom_vjp:

        def one_step(carry, now):
            new = step(params, carry, now)
            return new, new

        return jax.lax.scan(one_step, list(carry), list(inputs), **options)
    show = [True] * step.carry
    forward = ForwardLoop(
        step,
        params,
        hoist=schedule.hoist is not False,
        reverse=schedule.reverse,
        loop=loop_function(schedule.loop),
        keep=False,
        show=show,
    )
    body, xs = forward.body, forward.run_prologue(inputs)
    return jax.lax.scan(body, list(carry), xs, **options)


def jvp_pass(
    step: StepJaxpr,
    params: Arrays,
    carry: Arrays,
    inputs: Arrays,
    directions: Mapping[int, Any],
    schedule: LoopSchedule,
) -> tuple[list, list]:
    """Run the recurrence and its tangent forwards, by one ``jax.lax.scan``.

    Args:
        step: the traced step.
        params: the parameters.
        carry: the carry before the first step.
        inputs: the inputs, ``(T, ...)`` each.
        directions: the tangents of some operands, by their position among params,
            leaves of the first carry, and inputs.
        schedule: gives the direction of time and the steps in an iteration.

    Returns:
        The tangents of the floating leaves of the last carry, and of those of the
        carries after every step. Leaves that depend on no operand with a tangent are
        not differentiated; their tangents are zeros.
    """
    groups = (step.params, step.carry)
    # Positions of the params, carry leaves and inputs among all operands.
    param_ids, carry_ids, input_ids = split_by_sizes(
        list(range(len(step.avals))), groups
    )
    # The leaves of the carry that have a tangent after some step, and their tangents
    # before the first one.
    leaves = sorted(step.moved_by(directions))
    diff_carry_ids = [carry_ids[i] for i in leaves]
    diff_input_ids = [i for i in input_ids if i in directions]
    first_d_carry = [
        directions[i] if i in directions else jnp.zeros_like(carry[i - step.params])
        for i in diff_carry_ids
    ]

    def body(state, xs):
        (carry, d_carry), (x, d_x) = state, xs
        primals = [*params, *carry, *x]
        tangents = {i: directions[i] for i in param_ids if i in directions}
        tangents |= dict(zip(diff_carry_ids, d_carry, strict=True)) | dict(
            zip(diff_input_ids, d_x, strict=True)
        )

        def step_of(values):
            new = step(
                *split_by_sizes(
                    [values.get(i, a) for i, a in enumerate(primals)], groups
                )
            )
            return [new[i] for i in leaves], new

        _, d_new, new = jax.jvp(
            step_of, ({i: primals[i] for i in tangents},), (tangents,), has_aux=True
        )
        return (new, d_new), d_new

    xs = (list(inputs), [directions[i] for i in diff_input_ids])
    (_, d_last), d_carries = jax.lax.scan(
        body,
        (list(carry), first_d_carry),
        xs,
        reverse=schedule.reverse,
        unroll=steps_an_iteration(schedule.loop),
    )
    steps = inputs[0].shape[:1]
    return _with_zeros(step, leaves, d_last, ()), _with_zeros(
        step, leaves, d_carries, steps
    )


def _with_zeros(
    step: StepJaxpr, leaves: Sequence[int], tangents: Arrays, lead: tuple[int, ...]
) -> list[Any]:
    """Return the tangents of all floating leaves: zeros for those not in ``leaves``.

    ``lead`` is the shape of the leading axes: ``(T,)`` or nothing.
    """
    by_leaf = dict(zip(leaves, tangents, strict=True))
    return [
        by_leaf[i] if i in by_leaf else jnp.zeros((*lead, *a.shape), a.dtype)
        for i, a in enumerate(step.carry_avals)
        if is_differentiable(a)
    ]


def backward_pass(
    step: StepJaxpr,
    params: Arrays,
    given: Residuals,
    last: Arrays,
    every: Arrays,
    wrt: Sequence[bool],
    schedule: LoopSchedule,
    batch_parts: int = 1,
) -> list[Any]:
    """Run the adjoint of the recurrence, one chunk of steps after another.

    The chunks of the forward pass are visited in the opposite order. Each chunk has a
    prologue (the linearization, for all its steps at once), a loop (the carry's
    cotangent, step by step) and an epilogue (the cotangents of the inputs and the
    weight gradients, for all its steps at once); see `BackwardLoop.run_chunk`. Where
    only the carries at chunk starts were saved, the chunk first repeats its forward
    pass.

    Args:
        step: the traced step.
        params: the parameters.
        given: what the forward pass saved.
        last: the cotangent of each leaf of the last carry; None for integers.
        every: the cotangents ``(T, ...)`` of the carries after every step; None for
            zero.
        wrt: for each of params, carry and inputs, whether its cotangent is returned.
        schedule: the resolved schedule of the forward pass.
        batch_parts: the number of parts of the batch in which weight gradients are
            summed; see `WeightGradientSum`.

    Returns:
        The cotangents of the params, the first carry and the inputs; None where ``wrt``
        is False.
    """
    wanted = WrtMask(*split_by_sizes(wrt, (step.params, step.carry)))
    backward = BackwardLoop(
        step,
        params,
        wanted,
        [g is not None for g in every],
        with_kept=given.kept is not None or given.carries is None,
        by_steps=isinstance(schedule.loop, Sequential),
        parts=batch_parts,
    )
    chunks = _BackwardChunks(
        backward,
        _repeated_forward(step, params, given, backward, schedule),
        given,
        schedule,
    )
    xs = (
        list(given.inputs),
        given.carries,
        given.kept,
        [g for g in every if g is not None],
    )
    d_inputs = [empty_rows(given.steps, v.aval) for v in backward.d_inputs]
    state = (
        [g for g in last if g is not None],
        backward.zero_sums(),
        chunks.empty_scratch(chunks.size),
        d_inputs,
    )
    d_carry, sums, _, d_inputs = scan_over_chunks(
        chunks.run, state, xs, schedule.chunk, not schedule.reverse, retrace=True
    )
    return backward.assemble(sums, d_carry, d_inputs)


def _repeated_forward(
    step: StepJaxpr,
    params: Arrays,
    given: Residuals,
    backward: BackwardLoop,
    schedule: LoopSchedule,
) -> ForwardLoop | None:
    """Return the forward pass that a chunk repeats, or None where all was saved."""
    if given.carries is not None:
        return None
    return ForwardLoop(
        step,
        params,
        hoist=bool(schedule.hoist),
        reverse=schedule.reverse,
        loop=loop_function(schedule.loop),
        keep=True,
        show=[i in backward.leaves for i in range(step.carry)],
    )


@dataclasses.dataclass(frozen=True)
class _BackwardChunks:
    """The chunks of a backward pass.

    Attributes:
        backward: the adjoint of a chunk.
        forward: the forward pass that a chunk repeats first, or None.
        given: what the forward pass saved.
        schedule: the resolved schedule of the forward pass.
    """

    backward: BackwardLoop
    forward: ForwardLoop | None
    given: Residuals
    schedule: LoopSchedule

    @property
    def size(self) -> int:
        """Return the number of steps of a chunk; the last one may be shorter."""
        return self.schedule.steps_of_chunk(self.given.steps)

    def empty_scratch(self, steps: int) -> tuple[list, list]:
        """Return the buffers of both loops, for a chunk of so many steps."""
        emitted = self.backward.empty_buffers(steps)
        return emitted, self.forward.empty_buffers(steps) if self.forward else []

    def run(self, state: tuple, chunk_xs: tuple, start: Any) -> tuple:
        """Run the adjoint of the chunk that begins at step ``start``.

        The buffers are reused by all chunks of the same size; the shorter chunk has its
        own.
        """
        d_carry, sums, scratch, d_inputs = state
        inputs, carries, kept, every = chunk_xs
        steps = inputs[0].shape[0]
        whole = steps == self.size
        emitted, recomputed = scratch if whole else self.empty_scratch(steps)
        index = chunk_index(start, self.size)
        start_carry = [
            jax.lax.dynamic_index_in_dim(a, index, keepdims=False)
            for a in self.given.starts
        ]
        leaves = self.backward.leaves
        if self.forward:
            _, recomputed = self.forward.run_chunk(start_carry, recomputed, inputs, 0)
            carries, kept = split_by_sizes(recomputed, (len(leaves),))
            start_carry = [start_carry[i] for i in leaves]
        reverse = self.schedule.reverse
        after = dict(zip(leaves, carries, strict=True))
        before = {
            i: carries_before(a, after[i], reverse)
            for i, a in zip(leaves, start_carry, strict=True)
        }
        stacked = self.backward.saved_values(before, inputs, after, kept or [])
        d_carry, emitted, sums, d_chunk_inputs = self.backward.run_chunk(
            d_carry,
            emitted,
            sums,
            stacked,
            every,
            not reverse,
            loop_function(self.schedule.loop),
        )
        d_inputs = [
            jax.lax.dynamic_update_slice_in_dim(a, d, start, 0)
            for a, d in zip(d_inputs, d_chunk_inputs, strict=True)
        ]
        scratch = (emitted, recomputed) if whole else scratch
        return d_carry, sums, scratch, d_inputs


def recompute_saved_values(
    step: StepJaxpr,
    params: Arrays,
    carry: Arrays,
    inputs: Arrays,
    carries: Arrays,
    reverse: bool,
) -> list[Any]:
    """Recompute the values of `StepVJP.matmul_values` at every step from the carries.

    Args:
        step: the traced step.
        params: the parameters.
        carry: the carry before the first step.
        inputs: the inputs, ``(T, ...)`` each.
        carries: the carries after every step, ``(T, ...)`` each.
        reverse: whether the steps ran from the last to the first.
    """
    program = step.adjoint
    before = [
        carries_before(a, after, reverse)
        for a, after in zip(carry, carries, strict=True)
    ]
    eqns = program.needed(program.matmul_values, {*program.carry, *program.inputs})
    constants = program.literals | dict(zip(program.params, params, strict=True))
    changing = zip([*program.carry, *program.inputs], [*before, *inputs], strict=True)
    return eval_all_steps(eqns, constants, dict(changing), program.matmul_values)
