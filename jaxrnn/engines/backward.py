"""The loop backwards: all carries are known, so only the carry's cotangent has to go step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..cell import accumulator
from ..fence import fence
from .buffers import Loop, blank_rows
from .jaxprs import chosen, evaluate, read, unique
from .programs import CONST, COT, Step, oriented
from .sums import TimeSum

Arrays = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """For every param, carry and input of a step, whether its cotangent is asked for."""

    params: Sequence[bool]
    carry: Sequence[bool]
    inputs: Sequence[bool]


class Backward:
    """A pullback's equations in the order in which a walk backwards wants them.

    rebuilt   what the rest reads of the forward pass, for a window at once: without a matmul where values were kept
    inside    the loop: from the carry's cotangent after a step to the one before it
    after     the rest, for a window at once; and ``sums``, each weight gradient in one product over the window
    """

    def __init__(self, step: Step, params: Arrays, wanted: Wanted, present: Sequence[bool], *, with_kept: bool, parts: int = 1):
        self.step, self.params, self.wanted = step, params, wanted
        self.program = program = step.adjoint
        self.kept = program.matmul_values if with_kept else []
        self.d_params = chosen(program.d_params, wanted.params)
        self.d_inputs = chosen(program.d_inputs, wanted.inputs)
        self.d_carry = [v for v in program.d_carry if v is not None]
        self.present = [p for p, v in zip(present, program.cotangents, strict=True) if v is not None]
        self.cotangents = [v for v in program.cotangents if v is not None]
        self._set_constants()
        self.sums = TimeSum(program, self.constants, self.d_params, parts)
        self._plan()

    def _set_constants(self) -> None:
        outs = [*self.d_params, *self.d_carry, *self.d_inputs, *self.program.residuals]
        self.constants = self.program.literals | dict(zip(self.program.jaxpr.invars, self.params, strict=False))
        evaluate([e for e in self.program.needed(outs, ()) if self.program.kind[e.outvars[0]] == CONST], self.constants)

    def _plan(self) -> None:
        program = self.program
        free = {*program.carry, *program.inputs, *program.known_new, *self.kept}
        inside = [eqn for eqn in program.needed(self.d_carry, ()) if program.kind[eqn.outvars[0]] == COT]
        in_loop = {v for eqn in inside for v in eqn.outvars} | set(self.cotangents)
        # Every step's value of these is wanted when the loop is done.
        self.stacked = unique([*self.sums.operands, *(v for v in self.d_inputs if program.kind_of(v) > CONST)])
        self.after = [eqn for eqn in program.needed(self.stacked, in_loop) if program.kind[eqn.outvars[0]] == COT]
        late = {v for eqn in self.after for v in eqn.outvars}
        read_after = [v for v in unique([*self.stacked, *program.reads(self.after, COT + 1)]) if v not in late]
        self.emitted = [v for v in read_after if v in in_loop]
        whole = [v for v in read_after if v not in in_loop]
        # What the loop reads of the forward pass is sliced step by step; what comes after it reads whole windows.
        passed_on = [v for v in self.d_carry if CONST < program.kind_of(v) < COT]
        self.sliced, cheap = program.least_given([*program.reads(inside, COT), *passed_on], free)
        self.inside = [*cheap, *inside]
        self.turned = oriented(program, inside, self.constants)
        self.known = unique([*self.sliced, *whole])
        self.rebuilt = program.needed(self.known, {*free, *self.constants})

    def blank(self, steps: int) -> list[Any]:
        """Arrays for what the loop emits in ``steps`` steps."""
        return [blank_rows(steps, v.aval) for v in self.emitted]

    def zero_sums(self) -> list[Any]:
        """Where weight gradients add up, in float32 at least."""
        lead = (self.sums.parts,) if self.sums.parts > 1 else ()
        return [jnp.zeros((*lead, *p.shape), accumulator(p.dtype)) for p in chosen(self.params, self.wanted.params)]

    def window(self, carry: list, rows: list, sums: list, known: dict[Any, Any], every: Arrays, reverse: bool, loop: Loop):
        """One window: ``(carry's cotangent, rows, sums, cotangents of the inputs)``.

        ``known`` has the values at every step of the carries before and after it, the inputs and the kept values; ``every``
        the cotangents of the carries after every step.
        """
        steps = next(iter(known.values())).shape[0]
        known = known | self._at_once(self.rebuilt, self.known, known)

        def body(carry, given):
            values, every = fence(given)
            found = iter(every)
            carry = [g + next(found) if p else g for g, p in zip(carry, self.present, strict=True)]
            env = {**self.constants, **dict(zip(self.sliced, values, strict=True))}
            env |= dict(zip(self.cotangents, carry, strict=True))
            evaluate(self.inside, env, self.turned)
            return [read(env, v) for v in self.d_carry], [env[v] for v in self.emitted]

        given = ([known[v] for v in self.sliced], list(every))
        carry, rows = loop(body, carry, given, rows, 0, steps, reverse=reverse)
        known |= dict(zip(self.emitted, rows, strict=True))
        known |= self._at_once(self.after, self.stacked, known)
        taken = [self.sums.take(v, known, steps) for v in self.d_params]
        sums = [total + each.astype(total.dtype) for total, each in zip(sums, taken, strict=True)]
        return carry, rows, sums, [self._rows(v, known, steps) for v in self.d_inputs]

    def _at_once(self, eqns: Sequence[Any], outs: Iterable[Any], known: dict[Any, Any]) -> dict[Any, Any]:
        """``eqns`` for all steps of a window at once: those of ``outs`` that are not known yet."""
        outs = [v for v in outs if v not in known]
        reads = unique(v for v in self.program.reads(eqns, COT + 1) if v in known)

        def one(*given):
            env = {**self.constants, **dict(zip(reads, given, strict=True))}
            evaluate(eqns, env)
            return [env[v] for v in outs]

        return dict(zip(outs, jax.vmap(one)(*(known[v] for v in reads)), strict=True)) if outs else {}

    def _rows(self, var: Any, known: dict[Any, Any], steps: int) -> Any:
        if self.program.kind_of(var) > CONST:
            return known[var]
        value = read(self.constants, var)
        return jnp.broadcast_to(value, (steps, *jnp.shape(value)))

    def assemble(self, sums: list, carry: list, inputs: list) -> list[Any]:
        """A cotangent for each param, carry and input, None where none is wanted."""
        sums = [self.sums.joined(s) for s in sums]
        of_params = iter(s.astype(p.dtype) for s, p in zip(sums, chosen(self.params, self.wanted.params), strict=True))
        of_carry, of_inputs = iter(carry), iter(inputs)
        every_carry = [next(of_carry) if v is not None else None for v in self.program.d_carry]
        return [
            *(next(of_params) if w else None for w in self.wanted.params),
            *(c if w else None for c, w in zip(every_carry, self.wanted.carry, strict=True)),
            *(next(of_inputs) if w else None for w in self.wanted.inputs),
        ]


def known_of(
    program: Any, kept: Sequence[Any], before: Arrays, inputs: Arrays, carries: Arrays, values: Arrays
) -> dict[Any, Any]:
    """The variables of an adjoint program whose values at every step are at hand."""
    known = dict(zip(kept, values, strict=True)) | {
        v: a for v, a in zip(program.new, carries, strict=True) if _is_made(program, v)
    }
    return known | dict(zip([*program.carry, *program.inputs], [*before, *inputs], strict=True))


def _is_made(program: Any, var: Any) -> bool:
    return program.kind_of(var) > CONST and var in program.known_new
