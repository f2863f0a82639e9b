"""A cell's step, with mask and resets, as the engines walk it."""

from __future__ import annotations

from typing import Any

import jax

from ..cell import Carry, Cell, Params, select
from .programs import EXPENSIVE, INPUT, Step, trace_step
from .recurrence import Plan, recurrence

Sequence = tuple[Any, Any, Any]  # inputs, mask and resets, each (T, ...) or None


def one_step(cell: Cell, params: Params, carry: Carry, now: Sequence) -> Carry:
    """The carry after one step: reset before it where told, held where masked."""
    x, keep, reset = now
    if reset is not None:
        carry = select(reset, cell.initial_carry(params, reset.shape), carry)
    new = cell.step(params, carry, cell.project(params, x))
    return new if keep is None else select(keep, new, carry)


def as_step(cell: Cell, params: Params, carry: Carry, sequence: Sequence) -> tuple[Step, list[Any]]:
    """The cell's step traced on flat lists of arrays, and the params that it takes."""
    p_flat, p_tree = jax.tree.flatten(params)
    c_flat, c_tree = jax.tree.flatten(carry)
    x_flat, x_tree = jax.tree.flatten(sequence)

    def step(p, c, x):
        return jax.tree.leaves(one_step(cell, p_tree.unflatten(p), c_tree.unflatten(c), x_tree.unflatten(x)))

    return trace_step(step, p_flat, c_flat, [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in x_flat])


def walk_by_plan(cell: Cell, params: Params, carry: Carry, sequence: Sequence, plan: Plan) -> tuple[Carry, Carry]:
    """The last carry and the carries after every step, with the backward pass of `recurrence`.

    One step or none, and steps with side effects (``jax.debug.print``), are left to ``lax.scan``.
    """
    steps = jax.tree.leaves(sequence)[0].shape[0]
    if steps > 1:
        traced, p_flat = as_step(cell, params, carry, sequence)
        if not traced.closed.effects:
            c_flat, tree = jax.tree.flatten(carry)
            last, carries = recurrence(traced, p_flat, c_flat, jax.tree.leaves(sequence), plan)
            return tree.unflatten(last), tree.unflatten(carries)
    return walk_plainly(cell, params, carry, sequence, plan.pace.hoist, plan.pace.reverse, plan.pace.unroll)


def walk_plainly(
    cell: Cell, params: Params, carry: Carry, sequence: Sequence, hoist: bool, reverse: bool, unroll: int
) -> tuple[Carry, Carry]:
    """The same by ``lax.scan`` alone, and so with JAX's own derivative."""
    xs, mask, resets = sequence
    inputs = cell.project(params, xs) if hoist else xs
    initial = None if resets is None else cell.initial_carry(params, resets.shape[1:])

    def step(carry, now):
        z, keep, reset = now
        if reset is not None:
            carry = select(reset, initial, carry)
        new = cell.step(params, carry, z if hoist else cell.project(params, z))
        if keep is not None:
            new = select(keep, new, carry)
        return new, new

    if jax.tree.leaves(sequence)[0].shape[0] == 1:  # streaming: no loop
        carry, new = step(carry, jax.tree.map(lambda a: a[0], (inputs, mask, resets)))
        return carry, jax.tree.map(lambda a: a[None], new)
    return jax.lax.scan(step, carry, (inputs, mask, resets), reverse=reverse, unroll=unroll)


def check_hoist(cell: Cell, params: Params, carry: Carry, sequence: Sequence) -> None:
    """Something in the cell's step can be hoisted: a matmul that needs no carry."""
    program = as_step(cell, params, carry, sequence)[0].program
    if not any(eqn.primitive.name in EXPENSIVE and program.kind[eqn.outvars[0]] == INPUT for eqn in program.eqns):
        raise ValueError(
            f"Scan: hoist=True, but {type(cell).__name__} has no projection of its inputs: every matmul of its step needs the "
            "carry, so there is nothing to do before the loop. Leave hoist out"
        )
