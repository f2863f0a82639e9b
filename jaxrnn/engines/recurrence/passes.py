"""The three walks of a recurrence: its states, its tangents, and its cotangents
backwards.

All run on flat lists of arrays, with time leading, in windows of steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..jaxpr.evaluate import eval_equations, is_differentiable, split_by_sizes
from ..jaxpr.step_program import StepJaxpr
from ..loops.kinds import Sequential, loop_function, steps_an_iteration
from ..loops.parallel_prefix import carries_before
from ..loops.sequential import empty_rows
from .backward import BackwardWindow, WrtMask
from .chunks import chunk_index, scan_over_chunks
from .forward import ForwardWindow
from .schedule import LoopSchedule

Arrays = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Residuals:
    """What the backward walk is given of the forward one: the carries that
    `Adjoint.not_kept` does not name and perhaps the kept values, or, where ``carries``
    is None, only ``starts``, all carries at which windows start (their insides are then
    walked again). Beside ``carries``, ``starts`` are those of the same leaves.
    """

    inputs: Arrays
    carries: Arrays | None
    kept: Arrays | None
    starts: Arrays


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
    """The last carry, the parts of the carries after every step that ``show``, and if
    asked for the values of `Adjoint.matmul_values` at every step (``kept``) or the
    carries at which windows start (``starts``).
    """
    forward = ForwardWindow(
        step,
        params,
        hoist=bool(schedule.hoist),
        reverse=schedule.reverse,
        loop=loop_function(schedule.loop),
        keep=kept,
        show=show,
    )
    steps = inputs[0].shape[0]
    size = steps if schedule.chunk is None else min(schedule.chunk, steps)
    count = -(-steps // size)

    def window(now, inputs, first):
        carry, rows, begun = now
        at = chunk_index(first, size)
        begun = [
            jax.lax.dynamic_update_index_in_dim(b, c, at, 0)
            for b, c in zip(begun, carry, strict=False)
        ]
        return *forward.window(carry, rows, inputs, first), begun

    begun = [empty_rows(count, a) for a in step.carry_avals] if starts else []
    first = (list(carry), forward.blank(steps), begun)
    last, rows, begun = scan_over_chunks(
        window, first, list(inputs), schedule.chunk, schedule.reverse
    )
    carries, kept_rows = split_by_sizes(rows, (sum(show),))
    return last, carries, begun if starts else kept_rows


def plain_forward_pass(
    step: StepJaxpr,
    params: Arrays,
    carry: Arrays,
    inputs: Arrays,
    schedule: LoopSchedule,
) -> tuple[list, list]:
    """The last carry and the carries after every step by ``jax.lax.scan`` as JAX
    differentiates it, what needs no carry done before the loop unless the schedule says
    otherwise.
    """
    show = [True] * step.carry
    forward = ForwardWindow(
        step,
        params,
        hoist=schedule.hoist is not False,
        reverse=schedule.reverse,
        loop=loop_function(schedule.loop),
        keep=False,
        show=show,
    )
    body, given = forward.body, forward.given(inputs)
    return jax.lax.scan(
        body,
        list(carry),
        given,
        length=inputs[0].shape[0],
        reverse=schedule.reverse,
        unroll=steps_an_iteration(schedule.loop),
    )


def jvp_pass(
    step: StepJaxpr,
    params: Arrays,
    carry: Arrays,
    inputs: Arrays,
    directions: Mapping[int, Any],
    schedule: LoopSchedule,
) -> tuple[list, list]:
    """Tangents of the floating leaves of the last carry and of all carries;
    ``directions`` are those of some params, leaves of the first carry and inputs, which
    are counted through in this order. Leaves that nothing moves are not differentiated.
    """
    groups = (step.params, step.carry)
    of_params, of_carry, of_inputs = split_by_sizes(
        list(range(len(step.avals))), groups
    )
    moves = step.moved_by(directions)
    moving = [of_carry[i] for i in sorted(moves)]
    moving_inputs = [i for i in of_inputs if i in directions]
    start = [
        directions[i] if i in directions else jnp.zeros_like(carry[i - step.params])
        for i in moving
    ]

    def body(now, given):
        (carry, d_carry), (x, d_x) = now, given
        primals = [*params, *carry, *x]
        along = {i: directions[i] for i in of_params if i in directions}
        along |= dict(zip(moving, d_carry, strict=True)) | dict(
            zip(moving_inputs, d_x, strict=True)
        )

        def moved(values):
            new = step(
                *split_by_sizes(
                    [values.get(i, a) for i, a in enumerate(primals)], groups
                )
            )
            return [new[i] for i in sorted(moves)], new

        _, d_new, new = jax.jvp(
            moved, ({i: primals[i] for i in along},), (along,), has_aux=True
        )
        return (new, d_new), d_new

    given = (list(inputs), [directions[i] for i in moving_inputs])
    (_, last), every = jax.lax.scan(
        body,
        (list(carry), start),
        given,
        reverse=schedule.reverse,
        unroll=steps_an_iteration(schedule.loop),
    )
    places, steps = sorted(moves), inputs[0].shape[:1]
    return _among_still(step, places, last, ()), _among_still(
        step, places, every, steps
    )


def _among_still(
    step: StepJaxpr, places: Sequence[int], tangents: Arrays, steps: tuple[int, ...]
) -> list[Any]:
    """Tangents of the leaves of the carry at ``places``, and zeros for the other
    floating ones.
    """
    found = dict(zip(places, tangents, strict=True))
    return [
        found[i] if i in found else jnp.zeros((*steps, *a.shape), a.dtype)
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
    """Cotangents of the params, the first carry and the inputs for which ``wrt`` is
    True, None for the others.

    Args:
        last: cotangent of each leaf of the last carry (None for integers).
        every: cotangents ``(T, ...)`` of the carries after every step; None is zero.
        batch_parts: in how many parts of the batch weight gradients are summed, see
            `TimeSum`.
    """
    wanted = WrtMask(*split_by_sizes(wrt, (step.params, step.carry)))
    with_kept = given.kept is not None or given.carries is None
    present = [g is not None for g in every]
    by_steps = isinstance(schedule.loop, Sequential)
    backward = BackwardWindow(
        step,
        params,
        wanted,
        present,
        with_kept=with_kept,
        by_steps=by_steps,
        parts=batch_parts,
    )
    leaves = backward.leaves
    forward = None
    if given.carries is None:
        show = [i in leaves for i in range(step.carry)]
        forward = ForwardWindow(
            step,
            params,
            hoist=bool(schedule.hoist),
            reverse=schedule.reverse,
            loop=loop_function(schedule.loop),
            keep=True,
            show=show,
        )
    steps = given.inputs[0].shape[0]
    size = steps if schedule.chunk is None else min(schedule.chunk, steps)

    def blank(steps):
        return backward.blank(steps), forward.blank(steps) if forward else []

    def window(now, part, first):
        (carry, sums, scratch, d_rows), (inputs, carries, kept, every) = now, part
        here = inputs[0].shape[0]
        rows, walked = scratch if here == size else blank(here)
        at = chunk_index(first, size)
        start = [
            jax.lax.dynamic_index_in_dim(a, at, keepdims=False) for a in given.starts
        ]
        if forward:
            _, walked = forward.window(start, walked, inputs, 0)
            carries, kept = split_by_sizes(walked, (len(leaves),))
            start = [start[i] for i in leaves]
        after = dict(zip(leaves, carries, strict=True))
        before = {
            i: carries_before(a, after[i], schedule.reverse)
            for i, a in zip(leaves, start, strict=True)
        }
        known = backward.known_of(before, inputs, after, kept if with_kept else [])
        carry, rows, sums, d_inputs = backward.window(
            carry,
            rows,
            sums,
            known,
            every,
            not schedule.reverse,
            loop_function(schedule.loop),
        )
        d_rows = [
            jax.lax.dynamic_update_slice_in_dim(a, d, first, 0)
            for a, d in zip(d_rows, d_inputs, strict=True)
        ]
        return carry, sums, (rows, walked) if here == size else scratch, d_rows

    parts = (
        list(given.inputs),
        given.carries,
        given.kept,
        [g for g in every if g is not None],
    )
    d_rows = [empty_rows(steps, v.aval) for v in backward.d_inputs]
    first = (
        [g for g in last if g is not None],
        backward.zero_sums(),
        blank(size),
        d_rows,
    )
    carry, sums, _, d_rows = scan_over_chunks(
        window, first, parts, schedule.chunk, not schedule.reverse, retrace=True
    )
    return backward.assemble(sums, carry, d_rows)


def recompute_saved_values(
    step: StepJaxpr,
    params: Arrays,
    carry: Arrays,
    inputs: Arrays,
    carries: Arrays,
    reverse: bool,
) -> list[Any]:
    """The values of `Adjoint.matmul_values` at every step, made again from the
    carries.
    """
    program = step.adjoint
    before = [
        carries_before(a, after, reverse)
        for a, after in zip(carry, carries, strict=True)
    ]
    needed = program.needed(program.matmul_values, {*program.carry, *program.inputs})

    def one(carry, inputs):
        env = program.literals | dict(
            zip(
                [*program.params, *program.carry, *program.inputs],
                [*params, *carry, *inputs],
            )
        )
        eval_equations(needed, env)
        return [env[v] for v in program.matmul_values]

    return jax.vmap(one)(before, list(inputs))
