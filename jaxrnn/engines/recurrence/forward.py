"""The loop forwards: what needs no carry for a window of steps at once, the rest
step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from ...core.fusion_barrier import cpu_optimization_barrier
from ..jaxpr.evaluate import eval_equations, read_env, select_by_flag
from ..jaxpr.step_program import CARRY, CONST, INPUT, DependencyGraph, StepJaxpr
from ..loops.sequential import LoopFunction, empty_rows

Arrays = Sequence[Any]


class ForwardWindow:
    """A step's equations in the order in which a walk forwards wants them.

    ``before`` are the variables that the loop reads of what was done ahead of it;
    ``kept``, with ``keep``, those of `Adjoint.matmul_values`, which are recorded beside
    the carries (of those, the ones that ``show``).
    """

    def __init__(
        self,
        step: StepJaxpr,
        params: Arrays,
        *,
        hoist: bool,
        reverse: bool,
        loop: LoopFunction,
        keep: bool,
        show: Sequence[bool],
    ):
        self.step, self.reverse, self.loop, self.show = step, reverse, loop, show
        program: DependencyGraph = step.adjoint if keep else step.program
        invars = program.jaxpr.invars
        self.carry, self.inputs = (
            invars[step.params :][: step.carry],
            invars[step.params + step.carry :][: step.inputs],
        )
        self.new = program.jaxpr.outvars[: step.carry]
        self.kept = step.adjoint.matmul_values if keep else []
        self.constants = program.literals | dict(zip(invars, params, strict=False))
        needed = program.needed([*self.new, *self.kept], ())
        eval_equations(
            [eqn for eqn in needed if program.kind[eqn.outvars[0]] == CONST],
            self.constants,
        )

        late = [eqn for eqn in needed if program.kind[eqn.outvars[0]] == CARRY]
        wanted = [
            *program.reads(late, CARRY),
            *(v for v in [*self.new, *self.kept] if program.kind_of(v) == INPUT),
        ]
        if hoist:
            self.before, cheap = program.least_given(wanted, self.inputs)
        else:
            self.before, cheap = (
                list(self.inputs),
                program.needed(wanted, {*self.inputs, *self.constants}),
            )
        self.late = [*cheap, *late]
        self.early = program.needed(self.before, {*self.constants, *self.inputs})

    def blank(self, steps: int) -> list[Any]:
        """Arrays for the carries and the kept values of ``steps`` steps."""
        return [
            empty_rows(steps, a)
            for a in (
                *select_by_flag(self.step.carry_avals, self.show),
                *(v.aval for v in self.kept),
            )
        ]

    def window(
        self, carry: list, rows: list, inputs: Arrays, first: Any
    ) -> tuple[list, list]:
        """Walk the steps of ``inputs``; write the carries and kept values to
        ``rows`` from row ``first`` on.
        """
        return self.loop(
            self.body,
            carry,
            self.given(inputs),
            rows,
            first,
            inputs[0].shape[0],
            reverse=self.reverse,
        )

    def given(self, inputs: Arrays) -> list[Any]:
        """What the loop reads of what is done ahead of it, for all steps of
        ``inputs`` at once.
        """

        def ahead(*x):
            env = {**self.constants, **dict(zip(self.inputs, x, strict=True))}
            eval_equations(self.early, env)
            return [env[v] for v in self.before]

        return jax.vmap(ahead)(*inputs) if self.before else []

    def body(self, carry: list, given: list) -> tuple[list, list]:
        """One step: the new carry, and what of it and of the kept values is
        recorded.
        """
        env = {
            **self.constants,
            **dict(zip(self.before, cpu_optimization_barrier(given), strict=True)),
        }
        env |= dict(zip(self.carry, carry, strict=True))
        eval_equations(self.late, env)
        new = [read_env(env, v) for v in self.new]
        return new, [*select_by_flag(new, self.show), *(env[v] for v in self.kept)]
