"""The forward loop of a chunk.

What does not depend on the carry (the prologue) is computed for all steps of a chunk at
once; the rest is computed step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.convolution import own_convolutions
from ...core.fusion_barrier import LEAST_BYTES_FORWARDS, cpu_optimization_barrier
from ...core.types import Size
from ..jaxpr.dependency_graph import CARRY, CONST, INPUT, DependencyGraph
from ..jaxpr.evaluate import eval_all_steps, eval_equations, read_env, select_by_flag
from ..jaxpr.step_program import StepJaxpr
from ..loops.sequential import LoopFunction, empty_rows

Arrays = Sequence[Any]


class ForwardLoop:
    """A step's equations, divided into a prologue and a loop body.

    Args:
        step: the traced step.
        params: the values of the parameters. What depends on them alone is computed
            when the object is made.
        hoist: whether the prologue computes what does not depend on the carry.
            Otherwise the loop reads the inputs as they are.
        reverse: whether the steps run from the last to the first.
        loop: the function that runs the body over a chunk.
        keep: whether the values of `StepVJP.matmul_values` are recorded at every step.
        show: for each leaf of the carry, whether it is recorded after every step.

    Attributes:
        prologue_outs: the variables that the loop reads of the prologue's results.
        prologue_eqns: the equations of the prologue.
        loop_eqns: the equations of the loop body.
        kept: the variables besides the carries that are recorded.
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

        # The loop body needs these variables that do not depend on the carry. They are
        # either computed by the prologue, from the fewest bytes (`least_given`), or by
        # the body, from the inputs.
        carry_eqns = [eqn for eqn in needed if program.kind[eqn.outvars[0]] == CARRY]
        body_reads = [
            *program.reads(carry_eqns, CARRY),
            *(v for v in [*self.new, *self.kept] if program.kind_of(v) == INPUT),
        ]
        if hoist:
            self.prologue_outs, cheap = program.least_given(body_reads, self.inputs)
        else:
            self.prologue_outs, cheap = (
                list(self.inputs),
                program.needed(body_reads, {*self.inputs, *self.constants}),
            )
        self.loop_eqns = [*cheap, *carry_eqns]
        self.convolutions = own_convolutions(self.loop_eqns)
        self.prologue_eqns = program.needed(
            self.prologue_outs, {*self.constants, *self.inputs}
        )

    def empty_buffers(self, steps: int) -> list[Any]:
        """Allocate arrays ``(steps, ...)`` for the recorded carries and values."""
        return [
            empty_rows(steps, a)
            for a in (
                *select_by_flag(self.step.carry_avals, self.show),
                *(v.aval for v in self.kept),
            )
        ]

    def run_chunk(
        self, carry: list, buffers: list, inputs: Arrays, offset: Size
    ) -> tuple[list, list]:
        """Run the steps of ``inputs``, and record into ``buffers`` from row ``offset``.

        Returns the carry after the last step, and the buffers.
        """
        return self.loop(
            self.body,
            carry,
            self.run_prologue(inputs),
            buffers,
            offset,
            inputs[0].shape[0],
            reverse=self.reverse,
        )

    def run_prologue(self, inputs: Arrays) -> list[Any]:
        """Compute what the loop reads, for all steps of ``inputs`` at once."""
        stacked = dict(zip(self.inputs, inputs, strict=True))
        return eval_all_steps(
            self.prologue_eqns, self.constants, stacked, self.prologue_outs
        )

    def body(self, carry: list, xs: list) -> tuple[list, list]:
        """Run one step on a row of the prologue's results.

        Returns the new carry, and what is recorded of it and of the kept values.
        """
        xs = cpu_optimization_barrier(xs, LEAST_BYTES_FORWARDS)
        env = {**self.constants, **dict(zip(self.prologue_outs, xs, strict=True))}
        env |= dict(zip(self.carry, carry, strict=True))
        eval_equations(self.loop_eqns, env, self.convolutions)
        new = [read_env(env, v) for v in self.new]
        return new, [*select_by_flag(new, self.show), *(env[v] for v in self.kept)]
