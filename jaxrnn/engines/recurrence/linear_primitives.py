"""The tangent and the adjoint of a recurrence, which are linear, as JAX primitives.

They are each other's transpose. What they compute is derived in
`jaxrnn.engines.recurrence.primitives`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching
from jax.interpreters import partial_eval as pe

from ..jaxpr.evaluate import (
    eval_jaxpr,
    is_differentiable,
    select_by_flag,
    split_by_sizes,
)
from ..jaxpr.step_program import StepJaxpr
from . import passes
from .chunks import chunk_starts
from .heuristics import DOTS, STARTS
from .primitive_rules import batch_as_code, define_primitive, jvp_as_code
from .schedule import LoopSchedule, resolve_schedule


def saved_carries(step: StepJaxpr, carries: Sequence, with_values: bool) -> list[Any]:
    """Select the leaves of the carries that the forward pass saves at every step."""
    not_saved = step.adjoint.not_kept(with_values)
    return [c for i, c in enumerate(carries) if i not in not_saved]


# --------------------------------------------------------------------------------------
# The tangent: operands, residuals, tangents of some operands -> tangents


def _tangent_impl(
    *flat,
    step: StepJaxpr,
    schedule: LoopSchedule,
    wrt: tuple[int, ...],
    show: tuple[bool, ...],
    platform: str | None = "cpu",
    devices: int = 1,
):
    """Run the jvp pass.

    Args:
        flat: params, carry, inputs, residuals, and the tangents of the operands
            ``wrt``. The residuals are not read here: they are operands so that the
            transpose of the tangent, the adjoint, has them.
        wrt: positions of the differentiated operands among params, carry and inputs.
        show: which tangents are returned, of the last carry and then of the carries
            after every step; integer leaves are left out of both.

    What the selected tangents do not need is not computed, so an operation without
    forward mode, a ``jax.custom_vjp``, may occur there.
    """

    def all_tangents(*flat):
        primals, tangents = flat[: len(flat) - len(wrt)], flat[len(flat) - len(wrt) :]
        params, carry, inputs, _ = split_by_sizes(
            primals, (step.params, step.carry, step.inputs)
        )
        last, carries = passes.jvp_pass(
            step, params, carry, inputs, dict(zip(wrt, tangents, strict=True)), schedule
        )
        return select_by_flag([*last, *carries], show)

    closed = jax.make_jaxpr(all_tangents)(*flat)
    jaxpr, _ = pe.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.out_avals), instantiate=True
    )
    return eval_jaxpr(jaxpr, closed.consts, flat)


tangent_p = define_primitive("jaxrnn_tangent", _tangent_impl)


def _tangent_jvp(primals, tangents, **params):
    """Differentiate the tangent, for second derivatives."""
    return jvp_as_code(_tangent_impl, primals, tangents, params)


def _tangent_transpose(
    cotangents,
    *args,
    step: StepJaxpr,
    schedule: LoopSchedule,
    wrt: tuple[int, ...],
    show: tuple[bool, ...],
):
    """Bind the adjoint: the transpose of the tangent in its tangents."""
    primals = args[: len(args) - len(wrt)]
    shown = iter(cotangents)
    present = tuple(s and type(next(shown)) is not ad.Zero for s in show)
    if not any(present):
        return [None] * len(args)
    nonzero = [g for g in cotangents if type(g) is not ad.Zero]
    out = adjoint_p.bind(
        *primals, *nonzero, step=step, schedule=schedule, wrt=wrt, present=present
    )
    return [None] * len(primals) + list(out)


def _tangent_dce(used: list[bool], *rest: Any) -> tuple[list[bool], Any]:
    """Do not compute tangents that are not read."""
    eqn = rest[-1]
    if not any(used):
        return [False] * len(eqn.invars), None
    remaining = iter(used)
    show = tuple(s and next(remaining) for s in eqn.params["show"])
    eqn = eqn.replace(
        params={**eqn.params, "show": show}, outvars=select_by_flag(eqn.outvars, used)
    )
    return [True] * len(eqn.invars), eqn


ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
pe.dce_rules[tangent_p] = _tangent_dce


# --------------------------------------------------------------------------------------
# The adjoint: operands, residuals, cotangents of the carries -> cotangents


def _adjoint_impl(
    *flat,
    step: StepJaxpr,
    schedule: LoopSchedule,
    wrt: tuple[int, ...],
    present: tuple[bool, ...],
    platform: str | None = "cpu",
    devices: int = 1,
):
    """Run the backward pass.

    Args:
        flat: params, carry, inputs, residuals, and the cotangents that are present.
        wrt: positions of the operands whose cotangents are returned.
        present: whether there is a cotangent of each floating leaf of the last carry,
            and then of the carries after every step; the others are zero.
        platform: where the program runs.
        devices: the number of devices that the program is partitioned over.
    """
    num_primals = len(flat) - sum(present)
    params, carry, inputs, residuals = split_by_sizes(
        flat[:num_primals], (step.params, step.carry, step.inputs)
    )
    resolved, _ = resolve_schedule(
        schedule, step, inputs[0].shape[0], platform, backward=True
    )
    # Spread the present cotangents over the leaves of the carry: None for integers and
    # for zeros, but zeros are written out for the last carry, where the loop begins.
    is_float = [is_differentiable(a) for a in step.carry_avals]
    present_cotangents = iter(flat[num_primals:])
    cotangents = iter([next(present_cotangents) if p else None for p in present])
    last, every = (
        [next(cotangents) if flag else None for flag in is_float] for _ in range(2)
    )
    last = [
        jnp.zeros(a.shape, a.dtype) if flag and g is None else g
        for a, flag, g in zip(step.carry_avals, is_float, last, strict=True)
    ]
    # What the forward pass saved: the carries at chunk starts, or all carries and, for
    # "dots", the values of matmuls.
    if schedule.save == STARTS:
        starts, carries, kept = residuals, None, None
    else:
        with_values = schedule.save == DOTS
        first = saved_carries(step, carry, with_values)
        carries, kept = split_by_sizes(residuals, (len(first),))
        kept = kept if with_values else None
        starts = chunk_starts(first, carries, resolved.chunk, resolved.reverse)
    saved = passes.Residuals(inputs, carries, kept, starts)
    flags = [i in wrt for i in range(len(step.avals))]
    # Each device sums the weight gradients of its own part of the batch.
    parts = (
        math.gcd(devices, *(a.shape[0] for a in step.carry_avals if a.shape))
        if devices > 1
        else 1
    )
    out = passes.backward_pass(step, params, saved, last, every, flags, resolved, parts)
    return [out[i] for i in wrt]


adjoint_p = define_primitive("jaxrnn_adjoint", _adjoint_impl)


def _adjoint_jvp(primals, tangents, **params):
    """Differentiate the adjoint, for second derivatives."""
    return jvp_as_code(_adjoint_impl, primals, tangents, params)


def _adjoint_transpose(
    cotangents,
    *args,
    step: StepJaxpr,
    schedule: LoopSchedule,
    wrt: tuple[int, ...],
    present: tuple[bool, ...],
):
    """Bind the tangent: the transpose of the adjoint in its cotangents."""
    num_primals = len(args) - sum(present)
    primals = args[:num_primals]
    nonzero = [
        (i, g) for i, g in zip(wrt, cotangents, strict=True) if type(g) is not ad.Zero
    ]
    if not nonzero:
        return [None] * len(args)
    wrt = tuple(i for i, _ in nonzero)
    return [None] * num_primals + tangent_p.bind(
        *primals,
        *(g for _, g in nonzero),
        step=step,
        schedule=schedule,
        wrt=wrt,
        show=present,
    )


ad.primitive_jvps[adjoint_p] = _adjoint_jvp
ad.primitive_transposes[adjoint_p] = _adjoint_transpose


batching.fancy_primitive_batchers[tangent_p] = batch_as_code(tangent_p, _tangent_impl)
batching.fancy_primitive_batchers[adjoint_p] = batch_as_code(adjoint_p, _adjoint_impl)

LINEAR_FUNCTIONS: dict[Any, Any] = {tangent_p: _tangent_impl, adjoint_p: _adjoint_impl}
