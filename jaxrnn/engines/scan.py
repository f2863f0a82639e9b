"""Sequential time: ``jax.lax.scan``. The reference engine, for every cell and every derivative mode."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool

from ..cell import Carry, Cell, Params, select
from ..checks import check_positive
from .programs import trace_step
from .recurrence import Plan, recurrence
from .walks import Pace


@dataclasses.dataclass(frozen=True)
class Scan:
    unroll: int = 1
    hoist: bool = True
    window: int | None = None
    residuals: str | None = None

    def __post_init__(self):
        check_positive(self, unroll=self.unroll)

    def walk(self, cell, params, carry, xs, mask=None, resets=None, reverse=False):
        steps = jax.tree.leaves((xs, mask, resets))[0].shape[0]
        if self.residuals == "all" or steps <= 1:
            return walk_plainly(cell, params, carry, xs, mask, resets, reverse, self.hoist, self.unroll)
        pace = Pace(self.window, self.unroll, self.hoist, reverse)
        return walk_by_plan(cell, params, carry, (xs, mask, resets), Plan(pace, self.residuals or "gates"))


def walk_by_plan(cell, params, carry, sequence, plan):
    p_flat, p_tree = jax.tree.flatten(params)
    c_flat, c_tree = jax.tree.flatten(carry)
    x_flat, x_tree = jax.tree.flatten(sequence)

    def step(p, c, x):
        return jax.tree.leaves(one_step(cell, p_tree.unflatten(p), c_tree.unflatten(c), x_tree.unflatten(x)))

    now = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in x_flat]
    traced, p_flat = trace_step(step, p_flat, c_flat, now)
    last, carries = recurrence(traced, p_flat, c_flat, x_flat, plan)
    return c_tree.unflatten(last), c_tree.unflatten(carries)


def one_step(cell, params, carry, now):
    x, keep, reset = now
    z = cell.project(params, x)
    if reset is not None:
        carry = select(reset, cell.initial_carry(params, reset.shape), carry)
    new = cell.step(params, carry, z)
    return new if keep is None else select(keep, new, carry)


def walk_plainly(cell, params, carry, xs, mask, resets, reverse, hoist, unroll):
    inputs = cell.project(params, xs) if hoist else xs
    initial = None
    if resets is not None:
        initial = cell.initial_carry(params, resets.shape[1:])

    def step(carry, now):
        z, keep, reset = now
        if reset is not None:
            carry = select(reset, initial, carry)
        new = cell.step(params, carry, z if hoist else cell.project(params, z))
        if keep is not None:
            new = select(keep, new, carry)
        return new, new

    sequence = (inputs, mask, resets)
    if jax.tree.leaves(sequence)[0].shape[0] == 1:  # streaming: no loop
        carry, new = step(carry, jax.tree.map(lambda a: a[0], sequence))
        return carry, jax.tree.map(lambda a: a[None], new)
    return jax.lax.scan(step, carry, sequence, reverse=reverse, unroll=unroll)
