"""A cell's step, with mask and resets, as the engines walk it."""

from __future__ import annotations

from typing import Any

import jax

from ..cell import Carry, Cell, Params, select
from .programs import EXPENSIVE, INPUT, Step, trace_step
from .recurrence import GATES, Plan, recurrence
from .walks import AUTO

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
    p_tree, c_tree, x_tree = (jax.tree.structure(tree) for tree in (params, carry, sequence))

    def step(p, c, x):
        unflatten = jax.tree.unflatten
        return jax.tree.leaves(one_step(cell, unflatten(p_tree, p), unflatten(c_tree, c), unflatten(x_tree, x)))

    now = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in jax.tree.leaves(sequence)]
    return trace_step(step, jax.tree.leaves(params), jax.tree.leaves(carry), now)


def walk_by_plan(cell: Cell, params: Params, carry: Carry, sequence: Sequence, plan: Plan) -> tuple[Carry, Carry]:
    """The last carry and the carries after every step, with the backward pass of `recurrence`.

    Left to ``lax.scan`` are one step or none, steps with side effects (``jax.debug.print``), and, unless something was asked
    for that only this backward pass has, ``jax.shard_map`` with ``check_vma=True``, whose types belong to JAX's own loops.
    """
    if jax.tree.leaves(sequence)[0].shape[0] > 1 and not _is_left_to_jax((params, carry, sequence), plan):
        step, flat = as_step(cell, params, carry, sequence)
        if not step.closed.effects:
            last, carries = recurrence(step, flat, jax.tree.leaves(carry), jax.tree.leaves(sequence), plan)
            tree = jax.tree.structure(carry)
            return jax.tree.unflatten(tree, last), jax.tree.unflatten(tree, carries)
    return walk_plainly(cell, params, carry, sequence, plan.pace.hoist, plan.pace.reverse, plan.pace.unroll)


def _is_left_to_jax(values: Any, plan: Plan) -> bool:
    axes = frozenset().union(*map(_axes_of, jax.tree.leaves(values)))
    if axes and (plan.pace.window != AUTO or plan.residuals != GATES):
        raise ValueError(
            f"inside jax.shard_map with check_vma=True (the inputs vary over {sorted(map(str, axes))}) only Scan() without a "
            "window and residuals runs, with JAX's own derivative: pass check_vma=False to jax.shard_map (and sum the "
            "gradients of replicated parameters over the axis yourself), or leave the options out"
        )
    return bool(axes)


def _axes_of(value: Any) -> frozenset:
    """The mesh axes over which a value varies under ``jax.shard_map``, where it keeps account of that."""
    kind = getattr(jax.typeof(value), "manual_axis_type", None)
    return frozenset() if kind is None else kind.varying


def walk_plainly(
    cell: Cell, params: Params, carry: Carry, sequence: Sequence, hoist: bool, reverse: bool, unroll: int
) -> tuple[Carry, Carry]:
    """The same by ``lax.scan`` alone, and so with JAX's own derivative."""
    xs, mask, resets = sequence
    axes = frozenset().union(*map(_axes_of, jax.tree.leaves((params, carry, sequence))))
    if axes:  # a loop's carry must vary from the start as its outputs do
        carry = jax.tree.map(
            lambda a: jax.lax.pcast(a, tuple(axes - _axes_of(a)), to="varying") if axes - _axes_of(a) else a, carry
        )
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
