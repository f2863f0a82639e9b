"""The loop that is parallel in time for any step, by Newton's method on all states.

The states of a chunk are the solution of ``s_t - f(s_{t-1}) = 0`` for all its t. From a
guess of all of them, a Newton iteration evaluates ``f`` and its Jacobian ``A_t`` at all
states at once, and solves a linear recurrence for the change of the states (Lim et al.
2024, arXiv:2309.12252; Gonzalez et al. 2024, arXiv:2407.19115)::

    r_t = f(s_{t-1}) - s_t,        d_t = A_t d_{t-1} + r_t,        d_0 = 0
    s_t <- f(s_{t-1}) + A_t d_{t-1}                                (= s_t + d_t)

After i iterations the first i states are exact, whatever A is: the change before them
is zero. So K steps take K iterations at most. They take few where the recurrence
contracts: a disturbance must not grow over the chunk.

The loop backwards is affine in the cotangent. Such a body takes one iteration from a
guess of zeros, which is the solution itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.types import Inputs, Size
from ..jaxpr.carry_blocks import AUTO
from ..jaxpr.evaluate import is_differentiable
from ..jaxpr.tangent_program import NoTangentError, from_real_parts
from .newton_problem import ChunkProblem, NewtonInfo, Operands
from .parallel_prefix import carries_before
from .sequential import scan_into_buffers

SCAN, NAN = "scan", "nan"  # what becomes of a chunk that has not converged
MOST_BLOCK_BYTES = 256_000_000  # of the Jacobian's blocks of one step


@dataclasses.dataclass(frozen=True)
class NewtonIteration:
    """Run the steps of a chunk in parallel by Newton's method.

    Args:
        jacobian: ``"auto"``, ``"units"`` or ``"full"``; see
            `jaxrnn.engines.jaxpr.carry_blocks.find_blocks`.
        max_iterations: the most iterations a chunk.
        tolerance: the largest change ``|d| / (1 + |s|)`` of the last iteration; None
            for 50 epsilon.
        fallback: what becomes of a chunk that has not converged: ``"scan"``, it is run
            step by step, or ``"nan"``.
        prefix: whether linear recurrences are solved by parallel prefixes;
            ``"auto"`` for every platform but a CPU.

    Example:
        >>> import jaxrnn
        >>> loop = jaxrnn.Newton(max_iterations=8).schedule(jaxrnn.GRU(8), 100).loop
        >>> loop.max_iterations, loop.fallback, loop.prefix
        (8, 'scan', 'auto')
    """

    jacobian: str = AUTO
    max_iterations: int = 32
    tolerance: float | None = None
    fallback: str = SCAN
    prefix: bool | str = AUTO

    def problem(
        self, body: Callable, carry: list[Any], xs: Inputs, steps: int, reverse: bool
    ) -> ChunkProblem:
        """Return the equations of a chunk; the arguments are those of the loop."""
        prefix = self.prefix is True
        return ChunkProblem(body, carry, xs, steps, reverse, self.jacobian, prefix)


def newton_into_buffers(
    body: Callable,
    carry: list[Any],
    xs: Inputs,
    buffers: list[Any],
    offset: Size,
    steps: int,
    *,
    reverse: bool,
    newton: NewtonIteration,
) -> tuple[list[Any], list[Any]]:
    """Run a body by Newton's method.

    The other arguments are those of
    `jaxrnn.engines.loops.sequential.scan_into_buffers`. A body whose Jacobian is too
    large, or that has none, runs step by step. That is one backwards, or one without a
    carry: an engine refuses other cells.
    """
    problem = _problem_if_any(newton, body, carry, xs, steps, reverse)
    if problem is None:
        return scan_into_buffers(
            body, carry, xs, buffers, offset, steps, reverse=reverse, unroll=1
        )
    states, info = solve_chunk(problem, newton)
    before = from_real_parts(
        problem.before(states, problem.operands.carry), problem.leaves
    )
    # With all states known, the outputs of all steps are computed at once.
    after, ys = jax.vmap(body, axis_size=steps)(before, xs)
    if info is not None and newton.fallback == NAN:
        known = known_steps(problem, info)
        after, ys = ([_nan_unless(known, a) for a in each] for each in (after, ys))
    buffers = [
        jax.lax.dynamic_update_slice_in_dim(b, y, offset, 0)
        for b, y in zip(buffers, ys, strict=True)
    ]
    return [a[0 if reverse else -1] for a in after], buffers


def _problem_if_any(newton: NewtonIteration, *arguments: Any) -> ChunkProblem | None:
    """Return the equations of a chunk, or None if they cannot be solved together."""
    try:
        problem = newton.problem(*arguments)
    except NoTangentError:
        return None
    solvable = problem.leaves and problem.bytes_a_step <= MOST_BLOCK_BYTES
    return problem if solvable else None


def known_steps(problem: ChunkProblem, info: NewtonInfo) -> Any:
    """Return for each step whether its state is known: that before it converged.

    Nothing is known where the carry before the chunk is NaN.
    """
    known = carries_before(jnp.asarray(True), info.converged, problem.reverse)
    for c in problem.operands.carry:
        known &= ~jnp.isnan(c).any()
    return known


def _nan_unless(known: Any, values: Any) -> Any:
    """Return NaN in place of the values of steps not known; integers stay."""
    if not is_differentiable(values):
        return values
    known = known.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.where(known, values, jnp.full_like(values, jnp.nan))


def solve_chunk(
    problem: ChunkProblem, newton: NewtonIteration
) -> tuple[list[Any], NewtonInfo | None]:
    """Return the states of a chunk as real parts, and what was done.

    The iterations are not differentiated, and the guess has no gradient: the tangents
    of the states solve a linear recurrence. With ``fallback="scan"``, what has not
    converged is run step by step.

    Returns:
        The states after every step, and a `NewtonInfo`, or None for a body that is
        affine in the carry, which needs no iteration.
    """
    if problem.program.is_affine:
        states = problem.solve_affine(problem.operands)
        if newton.fallback == SCAN:
            finite = jnp.stack([jnp.isfinite(s).all() for s in states]).all()
            states = _unless(finite, problem, states, problem.operands)
        return states, None
    tolerance = newton.tolerance
    tolerance = problem.tolerance if tolerance is None else tolerance

    @jax.custom_jvp
    def solve(operands):
        states, info = problem.iterate(operands, newton.max_iterations, tolerance)
        if newton.fallback == SCAN:
            states = _unless(info.converged.all(), problem, states, operands)
        return states, info

    @solve.defjvp
    def _(primals, tangents):
        (operands,), (moved,) = primals, tangents
        states, info = solve(operands)
        moved = [t for t in jax.tree.leaves(moved) if t.dtype != jax.dtypes.float0]
        no_tangents = jax.tree.map(_zero_tangent, info)
        return (states, info), (problem.tangents(states, operands, moved), no_tangents)

    return solve(problem.operands)


def _unless(
    good: Any, problem: ChunkProblem, states: list[Any], operands: Operands
) -> Any:
    """Return the states if they are good, and otherwise those of the loop."""
    return jax.lax.cond(
        good, lambda states, _: states, lambda _, at: problem.scan(at), states, operands
    )


def _zero_tangent(value: Any) -> Any:
    if is_differentiable(value):
        return jnp.zeros_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)
