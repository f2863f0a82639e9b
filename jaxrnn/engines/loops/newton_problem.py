"""The equations that Newton's method solves for the states of a chunk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ...core.types import Inputs
from ..jaxpr.carry_blocks import AUTO, bytes_of_blocks, find_blocks
from ..jaxpr.evaluate import eval_jaxpr
from ..jaxpr.grouping import widest
from ..jaxpr.tangent_program import TangentProgram, from_real_parts, real_parts
from ..jaxpr.unit_blocks import BlockForm, MixedUnitsError
from .block_solve import apply_block, solve_blocks
from .parallel_prefix import carries_before

ROUNDINGS = 50  # the default tolerance, in units of the dtype's epsilon


class Operands(NamedTuple):
    """The arrays on which the states of a chunk depend.

    Attributes:
        carry: the real parts of the carry before the first step.
        consts: the values that are the same at every step.
        xs: the values of every step, ``(steps, ...)``.
    """

    carry: list[Any]
    consts: list[Any]
    xs: list[Any]


class NewtonInfo(NamedTuple):
    """What Newton's method did in a chunk.

    Attributes:
        iterations: how many were taken.
        change: ``max |d| / (1 + |s|)`` of the last one, by step.
        converged: whether a step's state is known: because the last change is at most
            the tolerance, or because there were as many iterations as steps up to it. A
            step counts only if all steps before it do.
    """

    iterations: Int[Array, ""]
    change: Float[Array, " T"]
    converged: Bool[Array, " T"]


class ChunkProblem:
    """The equations ``s_t = f(s_{t-1}, x_t)`` of a chunk.

    Args:
        body: ``body(carry, x) -> (carry, ys)``, on a flat list of leaves.
        carry: the leaves of the carry before the first step.
        xs: a pytree of arrays ``(steps, ...)``.
        steps: the number of steps.
        reverse: whether the steps run from the last to the first.
        jacobian: as in `jaxrnn.engines.jaxpr.carry_blocks.find_blocks`; it is
            ``"auto"`` for a body that is affine in the carry, as is every body
            backwards, so that a gradient is exact.
        prefix: whether linear recurrences are solved by parallel prefixes.

    Attributes:
        operands: the `Operands`.
        step: ``step(leaves, (consts, x)) -> leaves``.
        program: the step and its tangent.
        form: the blocks of the Jacobian.
    """

    def __init__(
        self,
        body: Callable,
        carry: Sequence[Any],
        xs: Inputs,
        steps: int,
        reverse: bool,
        jacobian: str,
        prefix: bool,
    ):
        self.steps, self.reverse, self.prefix = steps, reverse, prefix
        self.leaves = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in carry]
        self.rows = [
            jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in jax.tree.leaves(xs)
        ]
        tree = jax.tree.structure(xs)
        # The values over which the body closes become operands: it may be
        # differentiated.
        closed = jax.make_jaxpr(
            lambda carry, x: list(body(carry, jax.tree.unflatten(tree, x))[0])
        )(self.leaves, self.rows)

        def step(leaves, given):
            return eval_jaxpr(closed.jaxpr, given[0], [*leaves, *given[1]])

        self.operands = Operands(
            real_parts(carry), list(closed.consts), jax.tree.leaves(xs)
        )
        self.step = step
        self.program = self._program()
        jacobian = AUTO if self.program.is_affine else jacobian
        try:
            self.form = find_blocks(self.program, jacobian)
        except MixedUnitsError:  # of a body that the user has not named
            self.form = find_blocks(self.program)

    def _program(self, **options: bool) -> TangentProgram:
        consts = [
            jax.ShapeDtypeStruct(jnp.shape(a), a.dtype) for a in self.operands.consts
        ]
        return TangentProgram(self.step, self.leaves, (consts, self.rows), **options)

    @functools.cached_property
    def whole(self) -> tuple[TangentProgram, BlockForm]:
        """The program that derivatives follow, and its whole Jacobian's blocks."""
        program = self._program(for_gradients=True)
        return program, find_blocks(program)

    @property
    def bytes_a_step(self) -> int:
        """The bytes of the blocks of a step."""
        return bytes_of_blocks(self.form, self.program.part_avals)

    @property
    def tolerance(self) -> float:
        """The default tolerance."""
        return ROUNDINGS * float(jnp.finfo(self.dtype).eps)

    @property
    def dtype(self) -> Any:
        """The dtype in which changes are measured."""
        return widest(self.program.part_avals)

    def before(self, states: Sequence[Any], carry: Sequence[Any]) -> list[Any]:
        """Return the parts of the states before every step."""
        return [
            carries_before(c, s, self.reverse)
            for c, s in zip(carry, states, strict=True)
        ]

    def evaluate(
        self,
        states: Sequence[Any],
        at: Operands,
        program: TangentProgram | None = None,
        form: BlockForm | None = None,
    ) -> tuple[list[Any], Any]:
        """Return ``f(s_{t-1})`` of all steps, as parts, and the blocks there."""
        program, form = program or self.program, form or self.form
        return jax.vmap(
            lambda parts, x: form(program, parts, (at.consts, x)),
            axis_size=self.steps,
        )(self.before(states, at.carry), at.xs)

    def solve(self, blocks: Any, addends: Any, *, guard: bool = False) -> Any:
        """Solve ``d_t = A_t d_{t-1} + b_t``."""
        return solve_blocks(blocks, addends, self.reverse, self.prefix, guard)

    def iteration(self, states: Sequence[Any], at: Operands) -> list[Any]:
        """Return the states after one more Newton iteration."""
        grouping, split = self.form.grouping, jax.vmap(self.form.grouping.split)
        new, blocks = self.evaluate(states, at)
        d = self.solve(blocks, split(new) - split(states), guard=True)
        # What the exact states have not reached yet may be anything.
        d = _finite(d)
        d_before = carries_before(jnp.zeros_like(d[0]), d, self.reverse)
        moved = _finite(apply_block(blocks, d_before, guard=True))
        return grouping.join(split(new) + moved, at.carry)

    def iterate(
        self, at: Operands, max_iterations: int, tolerance: float
    ) -> tuple[list[Any], NewtonInfo]:
        """Iterate from the first carry, repeated, until the states do not change.

        After i iterations the first i states are exact, so as many as there are steps
        suffice.
        """
        most = min(max_iterations, self.steps)

        def goes_on(state):
            iterations, _, change = state
            return (iterations < most) & ~(change.max(initial=0) <= tolerance)

        def iterated(state):
            iterations, states, _ = state
            new = self.iteration(states, at)
            return iterations + 1, new, self.change(new, states)

        guess = [jnp.broadcast_to(_finite(c), (self.steps, *c.shape)) for c in at.carry]
        change = jnp.full(self.steps, jnp.inf, self.dtype)
        iterations, states, change = jax.lax.while_loop(
            goes_on, iterated, (jnp.zeros((), jnp.int32), guess, change)
        )
        place = jnp.arange(self.steps, dtype=jnp.int32)
        place = place[::-1] if self.reverse else place
        flags = ((change <= tolerance) | (place < iterations)).astype(jnp.int32)
        converged = jax.lax.cumprod(flags, reverse=self.reverse) > 0
        return states, NewtonInfo(iterations, change, converged)

    def change(self, new: list[Any], old: list[Any]) -> Any:
        """Return ``max |d| / (1 + |s|)`` by step; infinite where s is not finite."""

        def of_part(a, b):
            a, b = a.astype(self.dtype), b.astype(self.dtype)
            size = jnp.abs(a - b) / (1 + jnp.abs(a))
            size = jnp.where(jnp.isfinite(size), size, jnp.full_like(size, jnp.inf))
            return size.reshape(self.steps, -1).max(1, initial=0)

        return jnp.stack(list(map(of_part, new, old))).max(0)

    def solve_affine(self, at: Operands) -> list[Any]:
        """Return the states of a body that is affine in the carry."""
        zeros = [jnp.zeros((self.steps, *c.shape), c.dtype) for c in at.carry]
        addends, blocks = self.evaluate(zeros, at)
        d = self.solve(blocks, jax.vmap(self.form.grouping.split)(addends))
        return self.form.grouping.join(d, at.carry)

    def scan(self, at: Operands) -> list[Any]:
        """Return the states step by step."""

        def step(leaves, x):
            leaves = self.step(leaves, (at.consts, x))
            return leaves, leaves

        first = from_real_parts(at.carry, self.leaves)
        _, states = jax.lax.scan(
            step, first, at.xs, length=self.steps, reverse=self.reverse
        )
        return real_parts(states)

    def tangents(self, states: list[Any], at: Operands, moved: Any) -> list[Any]:
        """Return the tangents of the states that solve the equations.

        They solve a linear recurrence: ``s'_t = A_t s'_{t-1} + b_t``, where ``b_t`` is
        the tangent of the step along all but the state before it.

        Args:
            states: the states.
            at: the operands.
            moved: the tangents of the operands' floating-point arrays, in order.
        """
        program, form = self.whole
        flat, tree = jax.tree.flatten(at)
        places = [i for i, a in enumerate(flat) if jnp.issubdtype(a.dtype, jnp.inexact)]

        def steps(values):
            full = dict(enumerate(flat)) | dict(zip(places, values, strict=True))
            now = jax.tree.unflatten(tree, [full[i] for i in range(len(flat))])

            def one(parts, x):
                leaves = from_real_parts(parts, self.leaves)
                return real_parts(self.step(leaves, (now.consts, x)))

            before = self.before(states, now.carry)
            return jax.vmap(one, axis_size=self.steps)(before, now.xs)

        _, addends = jax.jvp(steps, ([flat[i] for i in places],), (list(moved),))
        _, blocks = self.evaluate(states, at, program, form)
        d = self.solve(blocks, jax.vmap(form.grouping.split)(addends))
        return form.grouping.join(d, at.carry)


def _finite(a: Any) -> Any:
    """Replace what is not finite by zero."""
    return jnp.where(jnp.isfinite(a), a, jnp.zeros_like(a))
