"""The backward loop of a chunk.

All carries are known, so only the carry's cotangent is sequential (the derivation is in
`jaxrnn.engines.recurrence.primitives`). The equations of the step's pullback are
divided into

    prologue    the linearization: what the rest reads of the forward pass, for all
                steps of a chunk at once. It repeats no matmul whose result was saved.
    loop        from the carry's cotangent after a step to the one before it.
    epilogue    the cotangents of the inputs and the factors of the weight gradients,
                for all steps of a chunk at once; then one matmul per weight.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import Var

from ...core.convolution import own_convolutions
from ...core.dtypes import accumulator
from ...core.fusion_barrier import cpu_optimization_barrier
from ..jaxpr.costs import is_slower_batched
from ..jaxpr.dependency_graph import CONST, COT, EXPENSIVE
from ..jaxpr.evaluate import (
    deduplicate,
    eval_all_steps,
    eval_equations,
    is_differentiable,
    nbytes,
    read_env,
    select_by_flag,
    split_by_sizes,
)
from ..jaxpr.step_program import StepJaxpr, StepVJP, pretranspose_constants
from ..loops.sequential import LoopFunction, empty_rows
from .running_sums import RunningSum
from .weight_gradients import WeightGradientSum

Arrays = Sequence[Any]
LEAST_ROW = 256  # bytes per step that may always be stored for a sum


@dataclasses.dataclass(frozen=True)
class WrtMask:
    """Whether the cotangent of each param, carry leaf and input is wanted."""

    params: Sequence[bool]
    carry: Sequence[bool]
    inputs: Sequence[bool]


class BackwardPlan:
    """A pullback's equations, divided into prologue, loop and epilogue.

    Args:
        program: the step and its pullback.
        wanted: which cotangents are wanted.
        with_kept: whether the values of `StepVJP.matmul_values` were saved.
        by_steps: whether the loop runs step by step, so that it can carry running sums
            of values that are too large to be stored for every step.
        parts: the number of parts of the batch in which weight gradients are summed.

    Attributes:
        kept: the saved values of matmuls.
        leaves: the leaves of the carry that were saved at every step.
        sums: the weight gradients that are summed after the loop.
        totals: the running sums that the loop carries.
        prologue_eqns, loop_eqns, epilogue_eqns: the equations of the three parts.
        pullback_eqns: those of ``loop_eqns`` that depend on the cotangent.
        prologue_outs: the variables that the prologue computes for the two others.
        per_step_reads: those of them that the loop reads, sliced step by step.
        stacked: the variables whose values at every step are results of the chunk.
        emitted: the variables that the loop stores at every step for the epilogue.
    """

    def __init__(
        self,
        program: StepVJP,
        wanted: WrtMask,
        *,
        with_kept: bool,
        by_steps: bool = True,
        parts: int = 1,
    ):
        self.program = program
        self.kept = program.matmul_values if with_kept else []
        self.leaves = [
            i for i in range(len(program.carry)) if i not in program.not_kept(with_kept)
        ]
        self.carries = program.known_carries(program.not_kept(with_kept))
        self.d_params = select_by_flag(program.d_params, wanted.params)
        self.d_inputs = select_by_flag(program.d_inputs, wanted.inputs)
        self.d_carry = [v for v in program.d_carry if v is not None]
        self.cotangents = [v for v in program.cotangents if v is not None]
        # The cotangents of inputs are stored at every step.
        d_input_rows = [v for v in self.d_inputs if program.kind_of(v) > CONST]
        self.sums = WeightGradientSum(
            program,
            self.d_params,
            d_input_rows,
            max_row_bytes(program) if by_steps else math.inf,
            parts,
        )
        self.totals = [
            RunningSum(program, variables, which)
            for which, variables in enumerate(self.sums.direct)
            if variables
        ]
        self.totals += [RunningSum(program, [v], None) for v in self.sums.indirect]
        self._divide(d_input_rows)

    def _divide(self, d_input_rows: list[Any]) -> None:
        """Divide the equations into prologue, loop and epilogue."""
        program = self.program
        saved = {*program.inputs, *self.carries, *self.kept}
        self.stacked = deduplicate([*self.sums.operands, *d_input_rows])

        # The loop computes the carry's cotangent, what running sums add, and what
        # would be slower for all steps at once.
        loop_outs = [
            *self.d_carry,
            *(v for total in self.totals for v in total.reads),
        ]
        unbatched = [
            eqn
            for eqn in program.needed(self.stacked, ())
            if program.kind[eqn.outvars[0]] == COT and is_slower_batched(eqn)
        ]
        loop_outs += [v for eqn in unbatched for v in eqn.outvars]
        self.pullback_eqns = [
            eqn
            for eqn in program.needed(loop_outs, ())
            if program.kind[eqn.outvars[0]] == COT
        ]
        in_loop = {v for eqn in self.pullback_eqns for v in eqn.outvars} | set(
            self.cotangents
        )

        # The epilogue computes the rest that depends on a cotangent.
        self.epilogue_eqns = [
            eqn
            for eqn in program.needed(self.stacked, in_loop)
            if program.kind[eqn.outvars[0]] == COT
        ]
        in_epilogue = {v for eqn in self.epilogue_eqns for v in eqn.outvars}
        epilogue_reads = [
            v
            for v in deduplicate(
                [*self.stacked, *program.reads(self.epilogue_eqns, COT + 1)]
            )
            if v not in in_epilogue
        ]
        self.emitted = [v for v in epilogue_reads if v in in_loop]

        # Of the linearization, the loop reads slices, step by step: the fewest bytes
        # from which cheap arithmetic gives the rest (`least_given`). The epilogue reads
        # the values of the whole chunk. The prologue computes both.
        whole_chunk_reads = [v for v in epilogue_reads if v not in in_loop]
        passed_on = [v for v in loop_outs if CONST < program.kind_of(v) < COT]
        self.per_step_reads, cheap_eqns = program.least_given(
            [*program.reads(self.pullback_eqns, COT), *passed_on], saved
        )
        self.loop_eqns = [*cheap_eqns, *self.pullback_eqns]
        self.prologue_outs = deduplicate([*self.per_step_reads, *whole_chunk_reads])
        self.prologue_eqns = program.needed(
            self.prologue_outs,
            {v for v in program.kind if program.kind[v] == CONST} | saved,
        )

    @property
    def bytes_held(self) -> int:
        """The bytes per step that a chunk holds in memory, saved values included."""
        carries = [self.program.carry[i] for i in self.leaves]
        in_epilogue = {v for eqn in self.epilogue_eqns for v in eqn.outvars}
        results = [v for v in self.stacked if v in in_epilogue]
        held = [
            # the carries before and after every step
            *carries,
            *carries,
            *self.kept,
            *self._linearization,
            *self.emitted,
            *results,
        ]
        return sum(map(nbytes, held))

    @property
    def bytes_allocated(self) -> int:
        """Those of `bytes_held` that XLA has a place for in a program.

        What one elementwise operation makes of saved values is computed where it is
        read.
        """
        saved = self._saved
        fused = [
            eqn.outvars[0]
            for eqn in self.prologue_eqns
            if eqn.primitive.name not in EXPENSIVE
            and all(
                v in saved and v.aval.shape == eqn.outvars[0].aval.shape
                for v in eqn.invars
                if not isinstance(v, core.Literal)
            )
        ]
        computed = sum(nbytes(v) for v in self._linearization if v in fused)
        return self.bytes_held - computed

    @property
    def _saved(self) -> set[Any]:
        return {*self.kept, *self.program.inputs, *self.carries}

    @property
    def _linearization(self) -> list[Any]:
        return [v for v in self.prologue_outs if v not in self._saved]


@functools.lru_cache(maxsize=256)
def whole_plan(step: StepJaxpr, lean: bool) -> BackwardPlan:
    """Make the plan for all gradients.

    Unless ``lean``, the values of matmuls are saved.
    """
    everything = WrtMask(
        [True] * step.params, [True] * step.carry, [True] * step.inputs
    )
    return BackwardPlan(
        step.adjoint, _differentiable(step, everything), with_kept=not lean
    )


def _differentiable(step: StepJaxpr, wanted: WrtMask) -> WrtMask:
    """Clear the flags of integer operands, which have no cotangent."""
    flags = [is_differentiable(aval) for aval in step.avals]
    return WrtMask(
        *(
            [a and b for a, b in zip(*pair, strict=True)]
            for pair in zip(
                (wanted.params, wanted.carry, wanted.inputs),
                split_by_sizes(flags, (step.params, step.carry)),
                strict=True,
            )
        )
    )


class BackwardLoop(BackwardPlan):
    """A `BackwardPlan` with the values of the parameters, which runs a chunk.

    What depends on the parameters alone is computed when the object is made.

    Args:
        step: the traced step.
        params: the values of the parameters.
        wanted: which cotangents are wanted.
        present: for each leaf of the carry, whether the carries after every step have
            a cotangent.
        **options: those of `BackwardPlan`.
    """

    def __init__(
        self,
        step: StepJaxpr,
        params: Arrays,
        wanted: WrtMask,
        present: Sequence[bool],
        **options: Any,
    ):
        super().__init__(step.adjoint, wanted, **options)
        self.step, self.params, self.wanted = step, params, wanted
        self.present = [
            p
            for p, v in zip(present, self.program.cotangents, strict=True)
            if v is not None
        ]
        self._set_constants()
        self.instead = own_convolutions(self.loop_eqns) | pretranspose_constants(
            self.program, self.pullback_eqns, self.constants
        )

    def _set_constants(self) -> None:
        """Compute all variables of class CONST that the pullback needs."""
        outs = [*self.d_params, *self.d_carry, *self.d_inputs, *self.program.residuals]
        self.constants = self.program.literals | dict(
            zip(self.program.jaxpr.invars, self.params, strict=False)
        )
        eval_equations(
            [
                e
                for e in self.program.needed(outs, ())
                if self.program.kind[e.outvars[0]] == CONST
            ],
            self.constants,
        )

    def saved_values(
        self,
        before: dict[int, Any],
        inputs: Arrays,
        after: dict[int, Any],
        values: Arrays,
    ) -> dict[Any, Any]:
        """Map the variables that were saved to their values at every step of a chunk.

        Args:
            before: the carries before every step, by the number of their leaf.
            inputs: the inputs.
            after: the carries after every step, by the number of their leaf.
            values: the saved values of matmuls.
        """
        program = self.program
        stacked = dict(zip(self.kept, values, strict=True)) | {
            program.carry[i]: a for i, a in before.items()
        }
        stacked |= {
            v: a
            for v, a in ((program.new[i], a) for i, a in after.items())
            if _is_among(v, self.carries)
        }
        return stacked | dict(zip(program.inputs, inputs, strict=True))

    def empty_buffers(self, steps: int) -> list[Any]:
        """Allocate arrays ``(steps, ...)`` for what the loop emits."""
        return [empty_rows(steps, v.aval) for v in self.emitted]

    def zero_sums(self) -> list[Any]:
        """Return zeros to which weight gradients are added, in float32 at least."""
        lead = (self.sums.parts,) if self.sums.parts > 1 else ()
        return [
            jnp.zeros((*lead, *p.shape), accumulator(p.dtype))
            for p in select_by_flag(self.params, self.wanted.params)
        ]

    def run_chunk(
        self,
        d_carry: list,
        buffers: list,
        sums: list,
        stacked: dict[Any, Any],
        every: Arrays,
        reverse: bool,
        loop: LoopFunction,
    ):
        """Run prologue, loop and epilogue of one chunk.

        Args:
            d_carry: the cotangent of the carry after the chunk.
            buffers: arrays for what the loop emits, from `empty_buffers`.
            sums: the weight gradients of the chunks that ran before.
            stacked: values at every step, from `saved_values`.
            every: the cotangents of the carries after every step, where present.
            reverse: whether the loop runs from the last step to the first, as it does
                unless the forward pass does.
            loop: the function that runs the body.

        Returns:
            The cotangent of the carry before the chunk, the buffers, the weight
            gradients with those of the chunk added, and the cotangents of the inputs.
        """
        # Prologue: the linearization, for all steps at once.
        steps = next(iter(stacked.values())).shape[0]
        stacked = stacked | self._eval_batched(
            self.prologue_eqns, self.prologue_outs, stacked
        )
        count = len(d_carry)

        # Loop: delta_{t-1} = A_t^T (delta_t + g_t), and the running sums.
        def body(state, xs):
            (d_carry, totals), (values, every) = (
                split_by_sizes(state, (count,)),
                cpu_optimization_barrier(xs),
            )
            cotangents = iter(every)
            d_carry = [
                g + next(cotangents) if p else g
                for g, p in zip(d_carry, self.present, strict=True)
            ]
            env = {
                **self.constants,
                **dict(zip(self.per_step_reads, values, strict=True)),
            }
            env |= dict(zip(self.cotangents, d_carry, strict=True))
            eval_equations(self.loop_eqns, env, self.instead)
            totals = [
                total.add(value, env)
                for total, value in zip(self.totals, totals, strict=True)
            ]
            return [*(read_env(env, v) for v in self.d_carry), *totals], [
                env[v] for v in self.emitted
            ]

        xs = ([stacked[v] for v in self.per_step_reads], list(every))
        first_totals = [self._first_total(total, sums) for total in self.totals]
        state = [*d_carry, *first_totals]
        state, buffers = loop(body, state, xs, buffers, 0, steps, reverse=reverse)
        d_carry, totals = split_by_sizes(state, (count,))

        # Epilogue: what reads the cotangents but is not sequential, for all steps at
        # once, and the weight gradients.
        stacked |= dict(zip(self.emitted, buffers, strict=True))
        stacked |= self._eval_batched(self.epilogue_eqns, self.stacked, stacked)
        return (
            d_carry,
            buffers,
            self._add_to_sums(sums, totals, stacked, steps),
            [self._values_at_steps(v, stacked, steps) for v in self.d_inputs],
        )

    def _first_total(self, total: RunningSum, sums: list) -> Any:
        """Return the value with which a running sum begins in a chunk.

        It is the weight gradient so far, if the running sum is the only term of that
        gradient and the batch has no parts; otherwise zero.
        """
        return (
            total.zero()
            if total.which is None or self.sums.parts > 1
            else sums[total.which]
        )

    def _add_to_sums(
        self, sums: list, totals: list, stacked: dict[Any, Any], steps: int
    ) -> list[Any]:
        """Add the weight gradients of a chunk.

        Args:
            sums: the weight gradients of the chunks that ran before.
            totals: the running sums of the loop.
            stacked: values at every step.
            steps: the number of steps in the chunk.
        """
        of_param = {
            total.which: value for total, value in zip(self.totals, totals, strict=True)
        }
        of_variable = {
            total.variables[0]: value
            for total, value in zip(self.totals, totals, strict=True)
            if total.which is None
        }
        chunk_sums = self.sums.take(self.constants, stacked, of_variable, steps)
        if self.sums.parts == 1:
            sums = [of_param.get(i, value) for i, value in enumerate(sums)]
        else:
            sums = [
                value + self.sums.first_part(of_param[i]) if i in of_param else value
                for i, value in enumerate(sums)
            ]
        return [
            s if chunk_sum is None else s + chunk_sum.astype(s.dtype)
            for s, chunk_sum in zip(sums, chunk_sums, strict=True)
        ]

    def _eval_batched(
        self, eqns: Sequence[Any], outs: Iterable[Any], stacked: dict[Any, Any]
    ) -> dict[Any, Any]:
        """Evaluate equations for all steps of a chunk at once.

        Returns the values at every step of those of ``outs`` that are not in
        ``stacked``.
        """
        outs = [v for v in outs if v not in stacked]
        reads = deduplicate(
            v for v in self.program.reads(eqns, COT + 1) if v in stacked
        )
        values = eval_all_steps(
            eqns, self.constants, {v: stacked[v] for v in reads}, outs
        )
        return dict(zip(outs, values, strict=True))

    def _values_at_steps(self, var: Var, stacked: dict[Any, Any], steps: int) -> Any:
        """Return the values of a variable at every step; a constant is broadcast."""
        if self.program.kind_of(var) > CONST:
            return stacked[var]
        value = read_env(self.constants, var)
        return jnp.broadcast_to(value, (steps, *jnp.shape(value)))

    def assemble(self, sums: list, d_carry: list, d_inputs: list) -> list[Any]:
        """Return a cotangent for each param, carry leaf and input, or None.

        Args:
            sums: the weight gradients of all chunks.
            d_carry: the cotangents of the first carry's floating leaves.
            d_inputs: the wanted cotangents of inputs.
        """
        sums = [self.sums.joined(s) for s in sums]
        of_params = iter(
            s.astype(p.dtype)
            for s, p in zip(
                sums, select_by_flag(self.params, self.wanted.params), strict=True
            )
        )
        of_carry, of_inputs = iter(d_carry), iter(d_inputs)
        every_carry = [
            next(of_carry) if v is not None else None for v in self.program.d_carry
        ]
        return [
            *(next(of_params) if w else None for w in self.wanted.params),
            *(
                c if w else None
                for c, w in zip(every_carry, self.wanted.carry, strict=True)
            ),
            *(next(of_inputs) if w else None for w in self.wanted.inputs),
        ]


def max_row_bytes(program: StepVJP) -> int:
    """Return the bytes per step up to which a value is stored until it is summed.

    They are as many as a step stores anyway. A larger value is a running sum.
    """
    return max(
        LEAST_ROW,
        sum(map(nbytes, [*program.carry, *program.inputs, *program.matmul_values])),
    )


def _is_among(var: Var, variables: Collection[Any]) -> bool:
    """Whether a variable is in a collection; a literal, which has no hash, is not."""
    return not isinstance(var, core.Literal) and var in variables
