"""Run a cell over a sequence by a schedule, with mask and resets."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType

from ...core.arrays import is_array
from ...core.cell import Cell, unsupported_chunkwise_reason
from ...core.flags import select
from ...core.foreign import varying_axes
from ...core.types import Carry, Params, PyTree
from ..jaxpr.dependency_graph import EXPENSIVE, INPUT
from ..jaxpr.evaluate import all_equations
from ..jaxpr.step_program import StepJaxpr, trace_step
from ..loops.kinds import Chunkwise, steps_an_iteration
from .heuristics import AUTO, EVERYTHING
from .primitives import recurrence
from .schedule import LoopSchedule

Sequence = tuple[Any, Any, Any]  # inputs, mask and resets, each (T, ...) or None


def one_step(
    cell: Cell, params: Params, carry: Carry, now: Sequence, projected: bool = False
) -> Carry:
    """Apply one step of a cell, with mask and resets.

    Args:
        cell: the cell.
        params: its parameters.
        carry: the carry before the step.
        now: the input, the mask and the resets of the step. Where the reset is True
            the carry becomes the initial one before the step; where the mask is False
            the carry is held.
        projected: whether the input has been projected already.

    Returns:
        The carry after the step.
    """
    x, mask, reset = now
    if reset is not None:
        carry = select(reset, cell.initial_carry(params, reset.shape), carry)
    new = cell.step(params, carry, x if projected else cell.project(params, x))
    return new if mask is None else select(mask, new, carry)


def flat_step(
    cell: Cell, params: Params, carry: Carry, sequence: Sequence
) -> tuple[StepJaxpr, list[Any]]:
    """Trace a cell's step on flat lists of arrays.

    Returns the traced step, and the list of params that it takes; see `trace_step`.
    """
    p_tree, c_tree, x_tree = (
        jax.tree.structure(tree) for tree in (params, carry, sequence)
    )

    def step(p, c, x):
        unflatten = jax.tree.unflatten
        return jax.tree.leaves(
            one_step(
                cell, unflatten(p_tree, p), unflatten(c_tree, c), unflatten(x_tree, x)
            )
        )

    now = [
        jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in jax.tree.leaves(sequence)
    ]
    return trace_step(step, jax.tree.leaves(params), jax.tree.leaves(carry), now)


def run_schedule(
    cell: Cell,
    params: Params,
    carry: Carry,
    sequence: Sequence,
    schedule: LoopSchedule,
) -> tuple[Carry, Carry]:
    """Run a cell over a sequence by a schedule.

    A sequence of at most one step needs no loop. What the recurrence does not support
    (see `unsupported_arrays_reason` and `unsupported_step_reason`) runs by
    ``jax.lax.scan``, if the schedule asks for nothing that only the recurrence has.

    Args:
        cell: the cell.
        params: its parameters.
        carry: the carry before the first step.
        sequence: the inputs, the mask and the resets of all steps.
        schedule: how the loops run.

    Returns:
        The last carry, and the carries after every step.

    Raises:
        ValueError: if the recurrence does not support the step or the arrays, and the
            schedule asks for something that ``jax.lax.scan`` does not have.
    """
    if isinstance(schedule.loop, Chunkwise):
        return _run_chunkwise(cell, params, carry, sequence, schedule)
    if schedule.save == EVERYTHING:
        return run_plain_scan(cell, params, carry, sequence, schedule)
    reason, step, p_flat = trace_for_recurrence(cell, params, carry, sequence)
    if reason is not None and not schedule.is_open:
        raise ValueError(
            f"{type(cell).__name__}: {reason}: only engine=jaxrnn.Scan() or "
            "Scan(save='everything') run that, by jax.lax.scan with JAX's own "
            "derivative. Leave chunk and save out, Checkpoint and Associative"
        )
    if reason is not None or step is None:
        return run_plain_scan(cell, params, carry, sequence, schedule)
    last, carries = recurrence(
        step, p_flat, jax.tree.leaves(carry), jax.tree.leaves(sequence), schedule
    )
    tree = jax.tree.structure(carry)
    return jax.tree.unflatten(tree, last), jax.tree.unflatten(tree, carries)


def _run_chunkwise(
    cell: Cell,
    params: Params,
    carry: Carry,
    sequence: Sequence,
    schedule: LoopSchedule,
) -> tuple[Carry, Carry]:
    """Run a cell by its own ``run_chunks``.

    Of the carries after every step only h is known; their other parts are None. One
    step, as in streaming, is a step.
    """
    reason = unsupported_chunkwise_reason(cell) or unsupported_arrays_reason(
        jax.tree.leaves((params, carry, sequence))
    )
    if reason is not None:
        raise ValueError(
            f"{type(cell).__name__}: {reason}: only engine=jaxrnn.Scan() runs that"
        )
    xs, mask, resets = sequence
    chunk = schedule.chunk
    if chunk == AUTO:
        chosen = {cell.chunk_on(platform) for platform in ("cpu", "gpu", "tpu")}
        chunk = chosen.pop() if len(chosen) == 1 else None
    chunkwise: Any = cell
    last, hs = chunkwise.run_chunks(
        params,
        carry,
        cell.project(params, xs),
        mask,
        resets,
        chunk,
        schedule.reverse,
    )
    parts = {name: hs if name == "h" else None for name in carry._fields}
    return last, type(carry)(**parts)


def trace_for_recurrence(
    cell: Cell, params: Params, carry: Carry, sequence: Sequence
) -> tuple[str | None, StepJaxpr | None, list[Any]]:
    """Trace a cell's step for the recurrence.

    Returns:
        ``(reason, None, [])`` if the recurrence does not support the arrays;
        ``(None, None, [])`` if there is at most one step; otherwise
        ``(reason or None, step, params)``, with the reason why the recurrence does not
        support the step.
    """
    reason = unsupported_arrays_reason(jax.tree.leaves((params, carry, sequence)))
    if reason is not None or jax.tree.leaves(sequence)[0].shape[0] <= 1:
        return reason, None, []
    step, p_flat = flat_step(cell, params, carry, sequence)
    return unsupported_step_reason(step), step, p_flat


def unsupported_arrays_reason(values: list[Any]) -> str | None:
    """Say why the recurrence does not support arrays of these types, or None.

    ``jax.lax.scan`` supports them.
    """
    avals = [jax.typeof(v) for v in values]
    if any(not isinstance(d, int) for aval in avals for d in aval.shape):
        return "sizes are symbolic (jax.export)"
    axes = sorted({str(axis) for v in values for axis in _axes_of(v)})
    if axes:
        return (
            f"inside jax.shard_map with check_vma=True (inputs vary over {axes}; pass "
            f"check_vma=False and sum the gradients)"
        )
    if any(
        kind == AxisType.Explicit
        for aval in avals
        for kind in aval.sharding.mesh.axis_types
    ):
        return (
            "arrays lie on a mesh of explicit axes "
            "(axis_types=(jax.sharding.AxisType.Auto,) makes another)"
        )
    if any(jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended) for aval in avals):
        return "there are typed random keys among its params, carry or inputs"
    return None


def unsupported_step_reason(step: StepJaxpr) -> str | None:
    """Say why the recurrence does not support a step, or None.

    Such a step would behave differently if it were computed for many steps at once.
    """
    if step.closed.effects:
        return "its step has side effects"
    names = {eqn.primitive.name for eqn in all_equations(step.closed.jaxpr)}
    if names & {"pure_callback", "io_callback"}:
        return "its step calls back to Python"
    dtypes = [
        v.aval.dtype
        for eqn in all_equations(step.closed.jaxpr)
        for v in eqn.invars
        if is_array(v.aval)
    ]
    if "rng_bit_generator" in names or any("rbg" in str(dtype) for dtype in dtypes):
        return "its step draws from a generator whose numbers differ under vmap (rbg)"
    return None


def _axes_of(value: object) -> frozenset:
    """Return the mesh axes over which a value varies under ``jax.shard_map``.

    They are known under ``check_vma=True`` only.
    """
    value = value if isinstance(value, jax.ShapeDtypeStruct) else jax.typeof(value)
    return varying_axes(value)


def _varying(
    cell: Cell, params: Params, carry: Carry, sequence: Sequence
) -> tuple[Params, Carry]:
    """Cast params and carry to vary over mesh axes, as a loop requires.

    Under ``jax.shard_map(check_vma=True)`` a carry must vary, from the start, over the
    axes over which it varies after a step, and over no more: a step may sum over an
    axis. If params vary too, their gradients are summed over the devices once,
    otherwise at every step.
    """
    axes = frozenset().union(*map(_axes_of, jax.tree.leaves((params, carry, sequence))))
    if not axes:
        return params, carry
    wide = _cast(params, [axes] * len(jax.tree.leaves(params)))
    if jax.tree.leaves(sequence)[0].shape[0] == 0:
        return wide, _cast(carry, [axes] * len(jax.tree.leaves(carry)))
    fixed, wider = (
        _fixed_point_carry(cell, p, carry, sequence) for p in (params, wide)
    )
    same = all(
        _axes_of(a) == _axes_of(b)
        for a, b in zip(*map(jax.tree.leaves, (fixed, wider)), strict=True)
    )
    return wide if same else params, fixed


def _fixed_point_carry(
    cell: Cell, params: Params, carry: Carry, sequence: Sequence
) -> Carry:
    """Cast a carry to vary over the axes over which it varies after any steps."""
    while True:
        now = jax.tree.map(lambda a: a[0], sequence)
        new = jax.eval_shape(
            lambda p, c, x: one_step(cell, p, c, x), params, carry, now
        )
        wanted = [_axes_of(a) for a in jax.tree.leaves(new)]
        if all(
            axes <= _axes_of(a)
            for a, axes in zip(jax.tree.leaves(carry), wanted, strict=True)
        ):
            return carry
        carry = _cast(carry, wanted)


def _cast(tree: PyTree, axes: list[frozenset]) -> Any:
    """Cast each leaf of a tree to vary over its ``axes`` at least."""

    def leaf(a: Array, wanted: frozenset) -> Any:
        missing = tuple(sorted(wanted - _axes_of(a), key=str))
        return jax.lax.pcast(a, missing, to="varying") if missing else a

    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, map(leaf, leaves, axes))


def run_plain_scan(
    cell: Cell,
    params: Params,
    carry: Carry,
    sequence: Sequence,
    schedule: LoopSchedule,
) -> tuple[Carry, Carry]:
    """Run a cell by ``jax.lax.scan`` alone, with JAX's own derivative."""
    hoist = schedule.hoist is not False
    xs, mask, resets = sequence
    steps = jax.tree.leaves(sequence)[0].shape[0]
    if steps != 1:
        params, carry = _varying(cell, params, carry, sequence)
    inputs = cell.project(params, xs) if hoist else xs

    def step(carry, now):
        new = one_step(cell, params, carry, now, projected=hoist)
        return new, new

    if steps == 1:  # streaming: no loop
        carry, new = step(carry, jax.tree.map(lambda a: a[0], (inputs, mask, resets)))
        return carry, jax.tree.map(lambda a: a[None], new)
    return jax.lax.scan(
        step,
        carry,
        (inputs, mask, resets),
        reverse=schedule.reverse,
        unroll=steps_an_iteration(schedule.loop),
    )


def check_hoist(cell: Cell, params: Params, carry: Carry, sequence: Sequence) -> None:
    """Check that ``hoist=True`` has an effect.

    Raises:
        ValueError: if every matmul of the cell's step depends on the carry.
    """
    program = flat_step(cell, params, carry, sequence)[0].program
    if not any(
        eqn.primitive.name in EXPENSIVE and program.kind[eqn.outvars[0]] == INPUT
        for eqn in program.eqns
    ):
        raise ValueError(
            f"Scan: hoist=True, but {type(cell).__name__} has no projection of its "
            f"inputs: every matmul of its step needs the "
            "carry, so there is nothing to do before the loop. Leave hoist out"
        )
