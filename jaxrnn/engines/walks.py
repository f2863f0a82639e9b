"""The three walks of a recurrence: its states, its tangents, and its cotangents backwards.

All run on flat lists of arrays, with time leading, in windows: what needs no carry is done for a whole window at once, only
the rest in the loop. Backwards all carries are known, so whatever the forward pass threw away is rebuilt for a window at
once, the loop passes on nothing but the carry's cotangent, and each weight gradient is one matmul a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..cell import accumulator
from ..fence import fence
from .programs import CARRY, CONST, COT, INPUT, Program, Step, evaluate, oriented, read, unique
from .sums import TimeSum
from .windows import walk_in_windows

Arrays = Sequence[Any]
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class Pace:
    """How the loops run: ``window`` steps at once (None: all; AUTO: by `defaults`, once the platform is known), ``unroll``
    steps an iteration, inputs hoisted or not.
    """

    window: int | str | None = AUTO
    unroll: int = 1
    hoist: bool = True
    reverse: bool = False


def states(step: Step, params: Arrays, carry: Arrays, inputs: Arrays, pace: Pace, keep: bool) -> tuple[list, list, list]:
    """The last carry, the carries after every step, and with ``keep`` the values of `Adjoint.matmul_values` at every step."""
    loop = _Forward(step, params, pace, keep)
    (last), (carries, kept) = _in_windows(loop.window, list(carry), list(inputs), pace)
    return last, carries, kept


def tangents(step: Step, params: Arrays, carry: Arrays, inputs: Arrays, wrt: Arrays, pace: Pace) -> tuple[list, list]:
    """Tangents of the last carry and of all carries; ``wrt`` holds a tangent or None for every param, carry and input."""
    groups = (step.params, step.params + step.carry)
    d_params, d_carry, d_inputs = wrt[: groups[0]], wrt[groups[0] : groups[1]], wrt[groups[1] :]
    moving = [jnp.issubdtype(a.dtype, jnp.inexact) for a in step.carry_avals]

    def zeros(like, tangent):
        return jnp.zeros_like(like) if tangent is None else tangent

    start = [zeros(c, d) for c, d, m in zip(carry, d_carry, moving, strict=True) if m]

    def body(now, given):
        (carry, d_carry), (x, d_x) = now, given
        primals = [*params, *carry, *x]
        d_all = iter(d_carry)
        directions = [*d_params, *(next(d_all) if m else None for m in moving), *d_x]
        chosen = [i for i, d in enumerate(directions) if d is not None]

        def moved(values):
            full = list(primals)
            for i, v in zip(chosen, values, strict=True):
                full[i] = v
            new = step(full[: groups[0]], full[groups[0] : groups[1]], full[groups[1] :])
            return [a for a, m in zip(new, moving, strict=True) if m], new

        _, d_new, new = jax.jvp(moved, ([primals[i] for i in chosen],), ([directions[i] for i in chosen],), has_aux=True)
        return (new, d_new), d_new

    (_, last), all_tangents = jax.lax.scan(
        body, (list(carry), start), (list(inputs), list(d_inputs)), reverse=pace.reverse, unroll=pace.unroll
    )
    return last, all_tangents


@dataclasses.dataclass(frozen=True)
class Residuals:
    """What the backward walk is given of the forward one: all carries and perhaps the kept values, or, where ``carries`` is
    None, only the carries at which windows start (the insides are then walked again).
    """

    params: Arrays
    carry: Arrays
    inputs: Arrays
    carries: Arrays | None
    kept: Arrays | None
    starts: Arrays


def cotangents(step: Step, given: Residuals, last: Arrays, every: Arrays, wrt: Sequence[bool], pace: Pace) -> list[Any]:
    """Cotangents of the params, the first carry and the inputs for which ``wrt`` is True, None for the others.

    Args:
        last: cotangent of each leaf of the last carry (None for integers).
        every: cotangents ``(T, ...)`` of the carries after every step; None is zero.
    """
    loop = _Backward(step, given, every, wrt, pace)
    parts = (list(given.inputs), given.carries, given.kept, [g for g in every if g is not None])
    start = ([g for g in last if g is not None], loop.zero_sums())
    (carry, sums), inputs = _in_windows(loop.window, start, parts, pace, each=list(given.starts), backwards=True)
    return loop.assemble(sums, carry, inputs)


def _in_windows(walk_one, carry, parts, pace: Pace, each=None, backwards: bool = False):
    return walk_in_windows(walk_one, carry, parts, pace.window, pace.reverse != backwards, each=each, short_first=backwards)


def _mapped(function, *stacked):
    """``function`` of one step, for all steps at once."""
    return jax.vmap(function)(*stacked)


class _Forward:
    """The loop of `states`, split by what depends on what."""

    def __init__(self, step: Step, params: Arrays, pace: Pace, keep: bool):
        self.pace = pace
        program: Program = step.adjoint if keep else step.program
        jaxpr = program.jaxpr
        self.inputs = jaxpr.invars[step.params + step.carry :][: step.inputs]
        self.carry = jaxpr.invars[step.params :][: step.carry]
        self.new = jaxpr.outvars[: step.carry]
        self.kept = step.adjoint.matmul_values if keep else []
        needed = program.needed([*self.new, *self.kept], ())
        self.constants = program.literals | dict(zip(jaxpr.invars, params, strict=False))
        evaluate([eqn for eqn in needed if program.kind[eqn.outvars[0]] == CONST], self.constants)
        late = [eqn for eqn in needed if program.kind[eqn.outvars[0]] == CARRY]
        self.before = program.reads(late, CARRY) + [v for v in self.new if program.kind_of(v) == INPUT]
        cheap: list[Any] = []
        if pace.hoist:
            self.before, cheap = program.least_given(self.before, self.inputs)
        else:
            cheap, self.before = program.needed(self.before, {*self.inputs, *self.constants}), list(self.inputs)
        self.late = [*cheap, *late]
        self.in_loop = [v for v in self.kept if program.kind[v] == CARRY]
        self.early_kept = [v for v in self.kept if program.kind[v] < CARRY and v not in self.before]
        self.early = program.needed([*self.before, *self.early_kept], {*self.constants, *self.inputs})

    def window(self, carry: list, inputs: list, _start: Any, _first: Any):
        """One window: first what needs no carry, for all its steps, then the loop."""
        early = _mapped(lambda *x: self._early(x), *inputs) if self.before or self.early_kept else []

        def body(carry, given):
            env = {
                **self.constants,
                **dict(zip(self.before, fence(given), strict=True)),
                **dict(zip(self.carry, carry, strict=True)),
            }
            evaluate(self.late, env)
            new = [read(env, v) for v in self.new]
            return new, (new, [env[v] for v in self.in_loop])

        steps = inputs[0].shape[0]
        last, (carries, kept) = jax.lax.scan(
            body, carry, early[: len(self.before)], length=steps, reverse=self.pace.reverse, unroll=min(self.pace.unroll, steps)
        )
        values = dict(zip([*self.before, *self.early_kept, *self.in_loop], [*early, *kept], strict=True))
        return last, (carries, [values[v] for v in self.kept])

    def _early(self, inputs):
        env = {**self.constants, **dict(zip(self.inputs, inputs, strict=True))}
        evaluate(self.early, env)
        return [env[v] for v in (*self.before, *self.early_kept)]


class _Backward:
    """The loop of `cotangents`, split by what depends on what."""

    def __init__(self, step: Step, given: Residuals, every: Arrays, wrt: Sequence[bool], pace: Pace):
        self.step, self.given, self.pace, self.wrt = step, given, pace, wrt
        self.program = program = step.adjoint
        self.present = [g is not None for g in every]
        self.with_kept = given.kept is not None or given.carries is None
        d_params, rest = wrt[: step.params], wrt[step.params :]
        self.d_params = [v for v, w in zip(program.d_params, d_params, strict=True) if w]
        self.d_inputs = [v for v, w in zip(program.d_inputs, rest[step.carry :], strict=True) if w]
        self.d_carry = [v for v in program.d_carry if v is not None]
        self.cotangents = [v for v in program.cotangents if v is not None]

        outs = [*self.d_params, *self.d_carry, *self.d_inputs]
        constants = [eqn for eqn in program.needed([*outs, *program.residuals], ()) if program.kind[eqn.outvars[0]] == CONST]
        self.constants = program.literals | dict(zip(program.jaxpr.invars, given.params, strict=False))
        evaluate(constants, self.constants)
        self.sums = TimeSum(program, self.constants, self.d_params)

        free = {*program.carry, *program.inputs, *program.known_new}
        free |= set(program.matmul_values) if self.with_kept else set()
        inside = [eqn for eqn in program.needed(self.d_carry, ()) if program.kind[eqn.outvars[0]] == COT]
        in_loop = {v for eqn in inside for v in eqn.outvars} | set(self.cotangents)
        self.wanted = unique([*self.sums.operands, *(v for v in self.d_inputs if program.kind_of(v) > CONST)])
        self.after = [eqn for eqn in program.needed(self.wanted, in_loop) if program.kind[eqn.outvars[0]] == COT]
        late = {v for eqn in self.after for v in eqn.outvars}
        of_after = [v for v in unique([*self.wanted, *program.reads(self.after, COT + 1)]) if v not in late]
        self.emitted = [v for v in of_after if v in in_loop]
        # What the loop reads of the forward pass is sliced step by step; what comes after it reads whole windows.
        known_carry = [v for v in self.d_carry if CONST < program.kind_of(v) < COT]
        self.sliced, cheap = program.least_given([*program.reads(inside, COT), *known_carry], free)
        self.whole = [v for v in of_after if v not in in_loop]
        self.inside = [*cheap, *inside]
        self.turned = oriented(program, inside, self.constants)
        self.rebuilt = program.needed([*self.sliced, *self.whole], {*free, *self.constants})

    def zero_sums(self) -> list[Any]:
        """Where weight gradients add up, in float32 at least."""
        chosen = [p for p, w in zip(self.given.params, self.wrt[: self.step.params], strict=True) if w]
        return [jnp.zeros(p.shape, accumulator(p.dtype)) for p in chosen]

    def window(self, now: Any, part: Any, start: Any, _first: Any):
        (carry, sums), (inputs, carries, kept, every) = now, part
        if carries is None:
            forward = _Forward(self.step, self.given.params, dataclasses.replace(self.pace, window=None), True)
            _, (carries, kept) = forward.window(list(start), list(inputs), None, None)
        steps = inputs[0].shape[0]
        before = [_shifted(first, c, self.pace.reverse) for first, c in zip(start, carries, strict=True)]
        stacked = self._rebuild(before, inputs, carries, kept if self.with_kept else [])

        def body(carry, given):
            values, every = fence(given)
            found = iter(every)
            here = [g + next(found) if p else g for g, p in zip(carry, self.present_of_inexact(), strict=True)]
            env = {
                **self.constants,
                **dict(zip(self.sliced, values, strict=True)),
                **dict(zip(self.cotangents, here, strict=True)),
            }
            evaluate(self.inside, env, self.turned)
            return [read(env, v) for v in self.d_carry], [env[v] for v in self.emitted]

        sliced = [stacked[v] for v in self.sliced]
        carry, emitted = jax.lax.scan(
            body, carry, (sliced, every), length=steps, reverse=not self.pace.reverse, unroll=min(self.pace.unroll, steps)
        )
        stacked |= dict(zip(self.emitted, emitted, strict=True))
        stacked |= self._after(stacked)
        taken = [self.sums.take(v, stacked, steps) for v in self.d_params]
        sums = [total + each.astype(total.dtype) for total, each in zip(sums, taken, strict=True)]
        return (carry, sums), [self._rows(v, stacked, steps) for v in self.d_inputs]

    def present_of_inexact(self) -> list[bool]:
        return [p for p, v in zip(self.present, self.program.cotangents, strict=True) if v is not None]

    def _rebuild(self, before: list, inputs: list, carries: list, kept: list) -> dict[Any, Any]:
        """What the backward equations read of the forward pass, for all steps of a window."""
        program = self.program
        names = [*program.carry, *program.inputs, *program.new, *(program.matmul_values if self.with_kept else [])]
        values = [*before, *inputs, *carries, *kept]
        known = {n: v for n, v in zip(names, values, strict=True) if n in program.kind and not _literal(n)}
        known |= dict(zip([*program.carry, *program.inputs], [*before, *inputs], strict=True))
        wanted = [v for v in unique([*self.sliced, *self.whole]) if v not in known]
        reads = unique(v for eqn in self.rebuilt for v in eqn.invars if not _literal(v) and v in known)

        def one(*given):
            env = {**self.constants, **dict(zip(reads, given, strict=True))}
            evaluate(self.rebuilt, env)
            return [env[v] for v in wanted]

        made = _mapped(one, *(known[v] for v in reads)) if wanted else []
        return known | dict(zip(wanted, made, strict=True))

    def _after(self, stacked: dict[Any, Any]) -> dict[Any, Any]:
        """The equations that the loop did not need, for all steps of a window."""
        made = {v for eqn in self.after for v in eqn.outvars}
        reads = unique(v for eqn in self.after for v in eqn.invars if not _literal(v) and v not in made and v in stacked)
        wanted = [v for v in self.wanted if v in made]

        def one(*given):
            env = {**self.constants, **dict(zip(reads, given, strict=True))}
            evaluate(self.after, env)
            return [env[v] for v in wanted]

        return dict(zip(wanted, _mapped(one, *(stacked[v] for v in reads)), strict=True)) if wanted else {}

    def _rows(self, var: Any, stacked: dict[Any, Any], steps: int) -> Any:
        if self.program.kind_of(var) > CONST:
            return stacked[var]
        value = read(self.constants, var)
        return jnp.broadcast_to(value, (steps, *jnp.shape(value)))

    def assemble(self, sums: list, carry: list, inputs: list) -> list[Any]:
        """One entry for each param, carry and input, None where none was asked for."""
        step, carry_of = self.step, iter(carry)
        all_carry = [next(carry_of) if v is not None else None for v in self.program.d_carry]
        sums_of, inputs_of = iter(sums), iter(inputs)
        chosen = [p for p, w in zip(self.given.params, self.wrt[: step.params], strict=True) if w]
        cast = iter([s.astype(p.dtype) for s, p in zip(sums_of, chosen, strict=True)])
        return [
            *(next(cast) if w else None for w in self.wrt[: step.params]),
            *(c if w else None for c, w in zip(all_carry, self.wrt[step.params :][: step.carry], strict=True)),
            *(next(inputs_of) if w else None for w in self.wrt[step.params + step.carry :]),
        ]


def _shifted(first: Any, carries: Any, reverse: bool) -> Any:
    """The carry before every step, from the one before all and those after."""
    if carries.shape[0] == 1:
        return first[None]
    return jnp.concatenate([carries[1:], first[None]] if reverse else [first[None], carries[:-1]])


def _literal(var: Any) -> bool:
    return isinstance(var, jax.extend.core.Literal)
