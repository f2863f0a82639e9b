"""A run of `jaxrnn.Newton` that returns what its chunks did."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.cell import Cell
from ..core.types import Carry, Params
from ..engines import Newton
from ..engines.jaxpr.carry_blocks import find_blocks, program_of_step
from ..engines.jaxpr.costs import count_flops
from ..engines.jaxpr.grouping import widest
from ..engines.jaxpr.step_program import StepJaxpr
from ..engines.jaxpr.unit_blocks import BlockForm
from ..engines.loops.block_solve import apply_block
from ..engines.loops.kinds import loop_function
from ..engines.loops.newton import NewtonIteration, solve_chunk
from ..engines.loops.newton_problem import ChunkProblem
from ..engines.recurrence.chunks import chunk_index, scan_over_chunks
from ..engines.recurrence.forward import ForwardLoop
from ..engines.recurrence.run import Sequence, flat_step
from ..engines.recurrence.schedule import LoopSchedule, resolve_schedule


@dataclasses.dataclass(frozen=True, eq=False)
class ResolvedRun:
    """A cell's traced step and the schedule by which it runs.

    Attributes:
        step: the traced step.
        params: the params that it takes.
        schedule: the resolved schedule.
        chunk: the steps in a chunk.
    """

    step: StepJaxpr
    params: list[Any]
    schedule: LoopSchedule
    chunk: int

    @property
    def newton(self) -> NewtonIteration:
        """The loop."""
        loop: Any = self.schedule.loop
        return loop


class Measured(NamedTuple):
    """What the chunks of a run did.

    Attributes:
        iterations, change, converged: of each chunk, ``(W,)``; see
            `jaxrnn.diagnostics.NewtonLayerReport`.
        residual, amplification: the largest of all steps.
    """

    iterations: Any
    change: Any
    converged: Any
    residual: Any
    amplification: Any


def resolved_run(
    engine: Newton,
    cell: Cell,
    params: Params,
    carry: Carry,
    sequence: Sequence,
    reverse: bool,
) -> ResolvedRun:
    """Trace a cell's step and resolve the engine's schedule for this machine."""
    steps = jax.tree.leaves(sequence)[0].shape[0]
    step, p_flat = flat_step(cell, params, carry, sequence)
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    asked = engine.schedule(cell, steps).replace(reverse=reverse)
    schedule = resolve_schedule(asked, step, steps, platform, backward=False).schedule
    return ResolvedRun(step, p_flat, schedule, min(schedule.chunk or steps, steps))


def run_measured(
    run: ResolvedRun, carry: Carry, sequence: Sequence, key: Array
) -> Measured:
    """Run all chunks, and return what they did."""
    arguments = (run.params, jax.tree.leaves(carry), jax.tree.leaves(sequence), key)
    return jax.jit(functools.partial(_run, run))(*arguments)


def _run(
    run: ResolvedRun, params: list[Any], carry: list[Any], inputs: list[Any], key: Array
) -> Measured:
    forward = ForwardLoop(
        run.step,
        params,
        hoist=True,
        reverse=run.schedule.reverse,
        loop=loop_function(run.newton),
        keep=False,
        show=[False] * run.step.carry,
    )
    count = -(-inputs[0].shape[0] // run.chunk)

    def run_chunk(state, inputs, start):
        carry, d, chunks, (residual, amplification) = state
        steps, index = inputs[0].shape[0], chunk_index(start, run.chunk)
        problem = run.newton.problem(
            forward.body,
            carry,
            forward.run_prologue(inputs),
            steps,
            run.schedule.reverse,
        )
        of_chunk, d, largest = _measure_chunk(
            problem, run.newton, d, jax.random.fold_in(key, index)
        )
        last, _ = forward.run_chunk(carry, [], inputs, 0)
        chunks = [
            jax.lax.dynamic_update_index_in_dim(a, value.astype(a.dtype), index, 0)
            for a, value in zip(chunks, of_chunk, strict=True)
        ]
        residual, amplification = map(jnp.maximum, (residual, amplification), largest)
        return last, d, chunks, (residual, amplification)

    program = program_of_step(run.step)
    wide = widest(program.part_avals)
    chunks = [
        jnp.zeros(count, jnp.int32),
        jnp.zeros(count, wide),
        jnp.zeros(count, bool),
    ]
    zero = jnp.zeros((), wide)
    d = [jnp.zeros(a.shape, wide) for a in program.part_avals]
    _, _, chunks, largest = scan_over_chunks(
        run_chunk,
        (carry, d, chunks, (zero, zero)),
        inputs,
        run.chunk,
        run.schedule.reverse,
    )
    return Measured(*chunks, *largest)


def _measure_chunk(
    problem: ChunkProblem, newton: NewtonIteration, d: list[Any], key: Array
) -> tuple[list[Any], list[Any], list[Any]]:
    """Solve a chunk.

    Returns its iterations, last change and whether it converged; the trajectory's
    deviation at its end, by parts; the largest residual and deviation of its steps.
    """
    at = problem.operands
    states, info = solve_chunk(problem, newton)
    form = find_blocks(problem.program)  # all of the Jacobian, whatever was asked for
    new, blocks = problem.evaluate(states, at, form=form)
    residual = problem.change(states, new).max(initial=0)
    split, steps = form.grouping.split, problem.steps
    signs = jax.random.rademacher(key, (steps, *split(d).shape), residual.dtype)
    first = -1 if problem.reverse else 0
    addends = signs.at[first].add(apply_block(blocks[first], split(d)))
    deviation = problem.solve(blocks.astype(addends.dtype), addends)
    end = form.grouping.join(deviation[0 if problem.reverse else -1], d)
    largest = [residual, jnp.abs(deviation).max(initial=0)]
    if info is None:  # affine in the carry: one iteration, exact
        one = jnp.ones((), jnp.int32)
        finite = jnp.isfinite(residual)
        return [one, jnp.zeros((), residual.dtype), finite], end, largest
    of_chunk = [info.iterations, info.change.max(initial=0), info.converged.all()]
    return of_chunk, end, largest


def operations_ratio(step: StepJaxpr, form: BlockForm) -> float:
    """Return the arithmetic of one iteration against that of the steps themselves.

    An iteration evaluates m tangents and multiplies blocks once (m^3) and vectors
    three times.
    """
    program = program_of_step(step)
    size = form.grouping.size(program.part_avals)
    groups = math.prod(form.grouping.shape(program.part_avals))
    plain = count_flops(step.program.eqns)
    tangents = count_flops(program.closed.jaxpr.eqns) - plain
    solved = groups * (2 * size**3 + 6 * size**2)
    return (plain + size * max(tangents, 0) + solved) / max(plain, 1)
