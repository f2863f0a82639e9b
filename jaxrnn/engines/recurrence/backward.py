"""The loop backwards: all carries are known, so only the carry's cotangent has to go
step by step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from ...core.cell import accumulator
from ...core.fusion_barrier import cpu_optimization_barrier
from ..jaxpr.costs import is_slower_batched
from ..jaxpr.evaluate import (
    deduplicate,
    eval_equations,
    is_differentiable,
    nbytes,
    read_env,
    select_by_flag,
    split_by_sizes,
)
from ..jaxpr.step_program import CONST, COT, StepJaxpr, StepVJP, pretranspose_constants
from ..loops.sequential import LoopFunction, empty_rows
from .running_sums import RunningSum
from .weight_gradients import WeightGradientSum

Arrays = Sequence[Any]
LEAST_ROW = 256  # bytes


@dataclasses.dataclass(frozen=True)
class WrtMask:
    """For every param, carry and input of a step, whether its cotangent is asked
    for.
    """

    params: Sequence[bool]
    carry: Sequence[bool]
    inputs: Sequence[bool]


class BackwardPlan:
    """A pullback's equations in the order in which a walk backwards wants them.

    rebuilt   what the rest reads of the forward pass, for a window at once: without a
    matmul where values were kept inside    the loop: from the carry's cotangent after a
    step to the one before it after     the rest, for a window at once; and ``sums``,
    each weight gradient in one product over the window

    With ``by_steps``, the loop goes step by step and can add up, in ``totals``, what
    would be too large to be held for every step.
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
        ]  # of the carries at hand
        self.carries = program.known_carries(program.not_kept(with_kept))
        self.d_params = select_by_flag(program.d_params, wanted.params)
        self.d_inputs = select_by_flag(program.d_inputs, wanted.inputs)
        self.d_carry = [v for v in program.d_carry if v is not None]
        self.cotangents = [v for v in program.cotangents if v is not None]
        rows = [v for v in self.d_inputs if program.kind_of(v) > CONST]
        self.sums = WeightGradientSum(
            program,
            self.d_params,
            rows,
            max_row_bytes(program) if by_steps else math.inf,
            parts,
        )
        self.totals = [
            RunningSum(program, each, which)
            for which, each in enumerate(self.sums.direct)
            if each
        ]
        self.totals += [RunningSum(program, [v], None) for v in self.sums.indirect]
        self._order(rows)

    def _order(self, rows: list[Any]) -> None:
        program = self.program
        free = {*program.inputs, *self.carries, *self.kept}
        # Every step's value of these is wanted when the loop is done.
        self.stacked = deduplicate([*self.sums.operands, *rows])
        made_inside = [
            *self.d_carry,
            *(v for total in self.totals for v in total.reads),
        ]
        left = [
            e
            for e in program.needed(self.stacked, ())
            if program.kind[e.outvars[0]] == COT and is_slower_batched(e)
        ]
        made_inside += [v for eqn in left for v in eqn.outvars]
        self.pullback = [
            eqn
            for eqn in program.needed(made_inside, ())
            if program.kind[eqn.outvars[0]] == COT
        ]
        in_loop = {v for eqn in self.pullback for v in eqn.outvars} | set(
            self.cotangents
        )
        self.after = [
            eqn
            for eqn in program.needed(self.stacked, in_loop)
            if program.kind[eqn.outvars[0]] == COT
        ]
        late = {v for eqn in self.after for v in eqn.outvars}
        read_after = [
            v
            for v in deduplicate([*self.stacked, *program.reads(self.after, COT + 1)])
            if v not in late
        ]
        self.emitted = [v for v in read_after if v in in_loop]
        whole = [v for v in read_after if v not in in_loop]
        # What the loop reads of the forward pass is sliced step by step; what comes
        # after it reads whole windows.
        passed_on = [v for v in made_inside if CONST < program.kind_of(v) < COT]
        self.sliced, cheap = program.least_given(
            [*program.reads(self.pullback, COT), *passed_on], free
        )
        self.inside = [*cheap, *self.pullback]
        self.known = deduplicate([*self.sliced, *whole])
        self.rebuilt = program.needed(
            self.known, {v for v in program.kind if program.kind[v] == CONST} | free
        )

    @property
    def bytes_held(self) -> int:
        """Bytes a step that lie in memory while a window is walked, what was kept of
        the forward pass counted in.
        """
        program = self.program
        carries = [program.carry[i] for i in self.leaves]
        known = [
            v
            for v in self.known
            if v not in {*self.kept, *program.inputs, *self.carries}
        ]
        late = {v for eqn in self.after for v in eqn.outvars}
        made_after = [v for v in self.stacked if v in late]
        return sum(
            map(
                nbytes,
                [*carries, *carries, *self.kept, *known, *self.emitted, *made_after],
            )
        )


@functools.lru_cache(maxsize=256)
def bytes_saved(step: StepJaxpr, lean: bool) -> int:
    """`BackwardPlan.bytes_held` where all gradients are wanted and, unless ``lean``,
    the values of matmuls are kept.
    """
    everything = WrtMask(
        [True] * step.params, [True] * step.carry, [True] * step.inputs
    )
    return BackwardPlan(
        step.adjoint, _differentiable(step, everything), with_kept=not lean
    ).bytes_held


def _differentiable(step: StepJaxpr, wanted: WrtMask) -> WrtMask:
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


class BackwardWindow(BackwardPlan):
    """A `BackwardPlan` with the values of the parameters, and the walk of a window."""

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
        self.turned = pretranspose_constants(
            self.program, self.pullback, self.constants
        )

    def _set_constants(self) -> None:
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

    def known_of(
        self,
        before: dict[int, Any],
        inputs: Arrays,
        after: dict[int, Any],
        values: Arrays,
    ) -> dict[Any, Any]:
        """The variables whose values at every step are at hand; carries before and
        after it by the number of their leaf.
        """
        program = self.program
        known = dict(zip(self.kept, values, strict=True)) | {
            program.carry[i]: a for i, a in before.items()
        }
        known |= {
            v: a
            for v, a in ((program.new[i], a) for i, a in after.items())
            if _is_among(v, self.carries)
        }
        return known | dict(zip(program.inputs, inputs, strict=True))

    def blank(self, steps: int) -> list[Any]:
        """Arrays for what the loop emits in ``steps`` steps."""
        return [empty_rows(steps, v.aval) for v in self.emitted]

    def zero_sums(self) -> list[Any]:
        """Where weight gradients add up, in float32 at least."""
        lead = (self.sums.parts,) if self.sums.parts > 1 else ()
        return [
            jnp.zeros((*lead, *p.shape), accumulator(p.dtype))
            for p in select_by_flag(self.params, self.wanted.params)
        ]

    def window(
        self,
        carry: list,
        rows: list,
        sums: list,
        known: dict[Any, Any],
        every: Arrays,
        reverse: bool,
        loop: LoopFunction,
    ):
        """One window: ``(carry's cotangent, rows, sums, cotangents of the inputs)``.

        ``known`` has the values at every step of the carries before and after it, the
        inputs and the kept values; ``every`` the cotangents of the carries after every
        step.
        """
        steps = next(iter(known.values())).shape[0]
        known = known | self._at_once(self.rebuilt, self.known, known)
        count = len(carry)

        def body(now, given):
            (carry, added), (values, every) = (
                split_by_sizes(now, (count,)),
                cpu_optimization_barrier(given),
            )
            found = iter(every)
            carry = [
                g + next(found) if p else g
                for g, p in zip(carry, self.present, strict=True)
            ]
            env = {**self.constants, **dict(zip(self.sliced, values, strict=True))}
            env |= dict(zip(self.cotangents, carry, strict=True))
            eval_equations(self.inside, env, self.turned)
            added = [
                total.add(value, env)
                for total, value in zip(self.totals, added, strict=True)
            ]
            return [*(read_env(env, v) for v in self.d_carry), *added], [
                env[v] for v in self.emitted
            ]

        given = ([known[v] for v in self.sliced], list(every))
        begun = [self._begun(total, sums) for total in self.totals]
        now, rows = loop(body, [*carry, *begun], given, rows, 0, steps, reverse=reverse)
        carry, added = split_by_sizes(now, (count,))
        known |= dict(zip(self.emitted, rows, strict=True))
        known |= self._at_once(self.after, self.stacked, known)
        return (
            carry,
            rows,
            self._summed(sums, added, known, steps),
            [self._rows(v, known, steps) for v in self.d_inputs],
        )

    def _begun(self, total: RunningSum, sums: list) -> Any:
        """What the loop adds to: the gradient as it stands, where nothing more comes
        to it and it has no parts.
        """
        return (
            total.zero()
            if total.which is None or self.sums.parts > 1
            else sums[total.which]
        )

    def _summed(
        self, sums: list, added: list, known: dict[Any, Any], steps: int
    ) -> list[Any]:
        """The weight gradients with those of a window of ``steps``: what the loop
        ``added`` up, and what is summed after it.
        """
        own = {
            total.which: value for total, value in zip(self.totals, added, strict=True)
        }
        inner = {
            total.variables[0]: value
            for total, value in zip(self.totals, added, strict=True)
            if total.which is None
        }
        taken = self.sums.take(self.constants, known, inner, steps)
        if self.sums.parts == 1:
            sums = [own.get(i, value) for i, value in enumerate(sums)]
        else:
            sums = [
                value + self.sums.first_part(own[i]) if i in own else value
                for i, value in enumerate(sums)
            ]
        return [
            s if each is None else s + each.astype(s.dtype)
            for s, each in zip(sums, taken, strict=True)
        ]

    def _at_once(
        self, eqns: Sequence[Any], outs: Iterable[Any], known: dict[Any, Any]
    ) -> dict[Any, Any]:
        """``eqns`` for all steps of a window at once: those of ``outs`` that are not
        known yet.
        """
        outs = [v for v in outs if v not in known]
        reads = deduplicate(v for v in self.program.reads(eqns, COT + 1) if v in known)

        def one(*given):
            env = {**self.constants, **dict(zip(reads, given, strict=True))}
            eval_equations(eqns, env)
            return [env[v] for v in outs]

        return (
            dict(zip(outs, jax.vmap(one)(*(known[v] for v in reads)), strict=True))
            if outs
            else {}
        )

    def _rows(self, var: Any, known: dict[Any, Any], steps: int) -> Any:
        if self.program.kind_of(var) > CONST:
            return known[var]
        value = read_env(self.constants, var)
        return jnp.broadcast_to(value, (steps, *jnp.shape(value)))

    def assemble(self, sums: list, carry: list, inputs: list) -> list[Any]:
        """A cotangent for each param, carry and input, None where none is wanted."""
        sums = [self.sums.joined(s) for s in sums]
        of_params = iter(
            s.astype(p.dtype)
            for s, p in zip(
                sums, select_by_flag(self.params, self.wanted.params), strict=True
            )
        )
        of_carry, of_inputs = iter(carry), iter(inputs)
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
    """Bytes of a value of which a row for every step may be held until it is summed:
    as much as a step holds anyway.
    """
    return max(
        LEAST_ROW,
        sum(map(nbytes, [*program.carry, *program.inputs, *program.matmul_values])),
    )


def _is_among(var: Any, variables: Collection[Any]) -> bool:
    return not isinstance(var, core.Literal) and var in variables
