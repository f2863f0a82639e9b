"""The recurrence as three JAX primitives: the recurrence, its tangent and its adjoint.

**The primal problem.** A recurrence applies a step ``f`` to a carry, T times::

    s_t = f(theta, s_{t-1}, x_t),    t = 1, ..., T,

with parameters ``theta``, a first carry ``s_0`` and inputs ``x_t``. It returns the last
carry ``s_T`` and the carries ``s_1, ..., s_T``.

**The tangent.** Differentiate both sides. With the partial derivatives of ``f`` at step
t written ``A_t = df/ds``, ``B_t = df/dtheta`` and ``C_t = df/dx``, all of them at
``(theta, s_{t-1}, x_t)``, the tangents (primes) obey a linear recurrence::

    s'_t = A_t s'_{t-1} + B_t theta' + C_t x'_t.

**The adjoint.** Let ``g_t`` be the cotangent of the carry returned after step t, and
``g`` that of the last carry. Transposing the tangent gives a recurrence that runs
backwards in time, for the cotangent ``delta_t`` of ``s_t``::

    delta_T     = g + g_T
    delta_{t-1} = A_t^T delta_t + g_{t-1}       (g_0 = 0)

and the cotangents of the operands::

    d theta = sum_t B_t^T delta_t,    d x_t = C_t^T delta_t,    d s_0 = delta_0.

**What is sequential.** Only ``delta`` is. The carries are known from the forward pass,
so the linearization (everything in ``A_t``, ``B_t`` and ``C_t``) is computed for all
steps of a chunk at once, and the loop holds no more of it than ``A_t^T delta_t`` reads.
``d x_t`` needs no loop either. Nor does ``d theta``: where a weight W enters as
``s_{t-1} W``, its term is ``s_{t-1}^T dz_t``, where ``dz_t`` is the cotangent of the
product. Its sum over time is one matmul that contracts T and the batch together::

    d W = sum_t s_{t-1}^T dz_t = reshape(s, (T B, H))^T reshape(dz, (T B, K)).

`jaxrnn.engines.recurrence.weight_gradients` finds these products in the jaxpr.

**Why three primitives.** ``jax.custom_vjp`` would forbid forward mode, and under
``vmap`` it would compute one weight gradient per example and then sum them. With a
primitive and rules of its own for each of the three problems,

- forward mode binds ``tangent_p``, which is linear in its tangents;
- reverse mode transposes ``tangent_p`` into ``adjoint_p``;
- ``adjoint_p`` is linear in its cotangents, and its transpose is ``tangent_p`` again;
- higher derivatives differentiate the tangent and the adjoint as ordinary JAX code.

**Batching.** A mapped recurrence is the recurrence of the mapped step: the step's jaxpr
is vmapped once, and the mapped axis leads the batch axes of every carry and input. So
``grad(vmap(unroll))`` is the gradient of a larger batch, with one matmul per weight. A
mapped adjoint (``vmap(grad(unroll))``) gives each example its own weight gradients.

The operands are flat lists of arrays in the order ``params, carry, inputs``. The rules
below stand in one order for each primitive: impl, abstract evaluation and lowering
(`_define`), jvp, transpose, batch, dce.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.interpreters import partial_eval as pe

from ...core.contraction import contraction_p, devices_of, product
from ..jaxpr.evaluate import (
    eval_jaxpr,
    is_differentiable,
    select_by_flag,
    split_by_sizes,
    vmap_options,
)
from ..jaxpr.step_program import StepJaxpr
from ..loops.pallas.primitive import PallasKernel
from . import passes
from .checkify import register_checkify_rule
from .chunks import chunk_starts
from .heuristics import AUTO, CARRIES, DOTS, EVERYTHING, STARTS
from .schedule import LoopSchedule, resolve_save, resolve_schedule


def recurrence(
    step: StepJaxpr,
    params: Sequence,
    carry: Sequence,
    inputs: Sequence,
    schedule: LoopSchedule,
) -> tuple[list, list]:
    """Run a step over a sequence of at least one input.

    Args:
        step: the traced step.
        params: the step's parameters.
        carry: the leaves of the carry before the first step.
        inputs: the leaves of the inputs, ``(T, ...)`` each.
        schedule: how the loops run; what it leaves open is chosen when the program is
            compiled for a platform.

    Returns:
        The leaves of the last carry, and those of the carries after every step,
        ``(T, ...)`` each.
    """
    out = recurrence_p.bind(
        *params,
        *carry,
        *inputs,
        step=step,
        schedule=schedule,
        keep=None,
        show=(True,) * step.carry,
    )
    last, carries, _ = split_by_sizes(out, (step.carry, step.carry))
    return last, carries


# --------------------------------------------------------------------------------------
# Definition of a primitive


def _define(name: str, function: Any) -> Primitive:
    """Make a primitive that computes ``function(*operands, platform=, **params)``.

    Its implementation, abstract evaluation and lowering are all derived from
    ``function``. Only the lowering knows the platform and the number of devices, so
    only there is the schedule resolved for the platform that runs it.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.lru_cache(maxsize=256)
    def compiled(params):
        return jax.jit(functools.partial(function, **dict(params)))

    primitive.def_impl(lambda *args, **params: compiled(tuple(params.items()))(*args))

    # Tracing asks several times for the avals of the same operands.
    @functools.lru_cache(maxsize=256)
    def out_avals(avals, params):
        return list(
            jax.make_jaxpr(functools.partial(function, **dict(params)))(
                *avals
            ).out_avals
        )

    primitive.def_abstract_eval(
        lambda *avals, **params: out_avals(avals, tuple(params.items()))
    )
    for platform in (None, "cpu", "cuda", "tpu"):
        mlir.register_lowering(
            primitive, functools.partial(_lower, function, platform), platform=platform
        )
    return primitive


def _lower(
    function: Any, platform: str | None, ctx: Any, *args: Any, **params: Any
) -> Any:
    """Lower a primitive for a platform and the devices of the program."""
    here = functools.partial(function, platform=platform, devices=devices_of(ctx))
    return mlir.lower_fun(here, multiple_results=True)(ctx, *args, **params)


# --------------------------------------------------------------------------------------
# The recurrence: params, carry, inputs -> last carry, carries (, saved values)


def _recurrence_impl(
    *flat,
    step: StepJaxpr,
    schedule: LoopSchedule,
    keep: str | None,
    show: tuple[bool, ...],
    platform: str | None = "cpu",
    devices: int = 1,
):
    """Run the forward pass.

    Args:
        flat: params, carry and inputs.
        keep: what is returned besides the carries, for a derivative: ``"dots"``, the
            values that `StepVJP.matmul_values` names, at every step; ``"starts"``, the
            carries at chunk starts; None or ``"carries"``, nothing.
        show: for each leaf of the carry, whether it is returned after every step.
        platform: where the program runs.
        devices: the number of devices that it is partitioned over; not used here.
    """
    params, carry, inputs = split_by_sizes(flat, (step.params, step.carry))
    resolved, _ = resolve_schedule(
        schedule, step, inputs[0].shape[0], platform, backward=keep is not None
    )
    last, carries, saved = passes.forward_pass(
        step,
        params,
        carry,
        inputs,
        resolved,
        kept=keep == DOTS,
        starts=keep == STARTS,
        show=show,
    )
    return [*last, *carries, *saved]


recurrence_p = _define("jaxrnn_walk", _recurrence_impl)


def _recurrence_jvp(
    primals,
    tangents,
    *,
    step: StepJaxpr,
    schedule: LoopSchedule,
    keep: str | None,
    show: tuple[bool, ...],
):
    """Bind the recurrence so that it saves residuals, and the tangent at them."""
    wrt = tuple(
        i
        for i, t in enumerate(tangents)
        if type(t) is not ad.Zero and is_differentiable(step.avals[i])
    )
    if keep is None and wrt:
        schedule = resolve_save(
            schedule, step, primals[step.params + step.carry].shape[0]
        )
        if schedule.save == EVERYTHING:
            return _plain_scan_jvp(primals, tangents, step, schedule, show)
    # What the recurrence returns for its derivative; the carries are returned anyway.
    kept = None if schedule.save in (CARRIES, AUTO) else schedule.save
    out = recurrence_p.bind(
        *primals, step=step, schedule=schedule, keep=kept, show=(True,) * step.carry
    )
    last, carries, saved = split_by_sizes(out, (step.carry, step.carry))
    shown = [*last, *select_by_flag(carries, show), *(saved if keep else [])]
    if not wrt:
        return shown, [_no_tangent(a) for a in shown]
    residuals = (
        saved
        if kept == STARTS
        else [*_saved_carries(step, carries, kept == DOTS), *saved]
    )
    # As in lax.scan, a leaf of the carry that depends on no differentiated operand has
    # a symbolic zero as its tangent, so no derivative of it is computed.
    with_tangent = step.moved_by(wrt)
    has_tangent = [i in with_tangent for i in range(step.carry)]
    has_tangent += [
        flag and (is_shown or bool(keep))
        for flag, is_shown in zip(has_tangent, show, strict=True)
    ]
    shows = tuple(
        select_by_flag(
            has_tangent, [is_differentiable(a) for a in step.carry_avals] * 2
        )
    )
    directions = [tangents[i] for i in wrt]
    nonzero_tangents = iter(
        tangent_p.bind(
            *primals,
            *residuals,
            *directions,
            step=step,
            schedule=schedule,
            wrt=wrt,
            show=shows,
        )
    )
    out_tangents = [
        next(nonzero_tangents) if flag else _no_tangent(a)
        for a, flag in zip([*last, *carries], has_tangent, strict=True)
    ]
    # The saved values are outputs themselves where the recurrence is differentiated a
    # second time.
    d_last, d_carries = split_by_sizes(out_tangents, (step.carry,))
    d_saved = (
        _saved_tangents(step, schedule, primals, tangents, carries, d_carries)
        if keep
        else []
    )
    return shown, [*d_last, *select_by_flag(d_carries, show), *d_saved]


def _saved_carries(step: StepJaxpr, carries: Sequence, with_values: bool) -> list[Any]:
    """Select the leaves of the carries that the forward pass saves at every step."""
    not_saved = step.adjoint.not_kept(with_values)
    return [c for i, c in enumerate(carries) if i not in not_saved]


def _plain_scan_jvp(
    primals, tangents, step: StepJaxpr, schedule: LoopSchedule, show: tuple[bool, ...]
):
    """Differentiate ``jax.lax.scan`` by its own rules, for ``save="everything"``."""

    def plain(*flat, **_):
        params, carry, inputs = split_by_sizes(flat, (step.params, step.carry))
        last, carries = passes.plain_forward_pass(step, params, carry, inputs, schedule)
        return [*last, *select_by_flag(carries, show)]

    return _jvp_as_code(plain, primals, tangents, {})


def _saved_tangents(
    step: StepJaxpr, schedule: LoopSchedule, primals, tangents, carries, d_carries
) -> list[Any]:
    """Compute the tangents of the saved values, for second derivatives.

    The saved values are functions of the operands and of the carries, so their
    tangents follow from those of both.
    """
    reverse = schedule.reverse
    tangents, d_carries = (
        [ad.instantiate_zeros(t) for t in ts] for ts in (tangents, d_carries)
    )
    if schedule.save == STARTS:
        first = tangents[step.params : step.params + step.carry]
        return [
            chunk_starts(a, d, schedule.chunk, reverse)
            if is_differentiable(aval)
            else _no_tangent(like)
            for a, d, aval, like in zip(
                first, d_carries, step.carry_avals, carries, strict=True
            )
        ]

    def saved_values(params, carry, inputs, carries):
        return passes.recompute_saved_values(
            step, params, carry, inputs, carries, reverse
        )

    at, directions = (
        [*split_by_sizes(list(v), (step.params, step.carry)), list(c)]
        for v, c in ((primals, carries), (tangents, d_carries))
    )
    return jax.jvp(saved_values, tuple(at), tuple(directions))[1]


def _recurrence_transpose(cotangents, *args, **params):
    """Raise: the recurrence is not linear, only its tangent and adjoint are."""
    raise NotImplementedError(
        "jax.linear_transpose of an unroll: its derivative has a rule of its own, "
        "which is transposed, but the unroll itself "
        "has none. Use engine=jaxrnn.Scan(save='everything'), JAX's own loop, or the "
        "vjp of the unroll"
    )


def _recurrence_batch(
    axis_data,
    args,
    dims,
    *,
    step: StepJaxpr,
    schedule: LoopSchedule,
    keep: str | None,
    show: tuple[bool, ...],
):
    """Bind the recurrence of the mapped step.

    The mapped axis leads the batch axes: it is axis 0 of params and carries and axis 1,
    after time, of inputs. A carry that is not mapped is broadcast, since the step may
    return a mapped one. A kernel also needs mapped inputs, and takes one set of
    parameters only.
    """
    if keep or not all(show) or all(d is None for d in dims):
        return _batch_as_code(recurrence_p, _recurrence_impl)(
            axis_data, args, dims, step=step, schedule=schedule, keep=keep, show=show
        )
    if isinstance(schedule.loop, PallasKernel) and any(
        d is not None for d in dims[: step.params]
    ):
        return _map_members(
            args, dims, step=step, schedule=schedule, keep=keep, show=show
        )
    num_before_inputs = step.params + step.carry
    moved, axes = [], []
    for i, (a, d) in enumerate(zip(args, dims, strict=True)):
        axis = 1 if i >= num_before_inputs else 0
        if d is None and (
            step.params <= i < num_before_inputs
            or (axis and isinstance(schedule.loop, PallasKernel))
        ):
            a, d = jnp.broadcast_to(a[None], (axis_data.size, *a.shape)), 0
        moved.append(a if d is None else jnp.moveaxis(a, d, axis))
        axes.append(None if d is None else 0)
    out = recurrence_p.bind(
        *moved,
        step=step.vmapped(axes, axis_data),
        schedule=schedule,
        keep=None,
        show=(True,) * step.carry,
    )
    return out, [0] * step.carry + [1] * step.carry


def _map_members(args: Sequence, dims: Sequence, **params: Any) -> tuple[list, list]:
    """Run the members of an ensemble one after another.

    Each member has its own parameters, and a kernel takes one set of matrices.
    """
    mapped = [
        jnp.moveaxis(a, d, 0) for a, d in zip(args, dims, strict=True) if d is not None
    ]

    def member(mapped_operands):
        operands = iter(mapped_operands)
        return recurrence_p.bind(
            *(
                a if d is None else next(operands)
                for a, d in zip(args, dims, strict=True)
            ),
            **params,
        )

    out = jax.lax.map(member, mapped)
    return out, [0] * len(out)


def _recurrence_dce(used: list[bool], *rest: Any) -> tuple[list[bool], Any]:
    """Do not store the leaves of the carries that are not read after every step.

    In inference this is the cell state of an LSTM; under ``save="starts"`` it is all
    leaves where the loss reads the last carry only.
    """
    eqn = rest[-1]  # newer versions of jax pass an argument before the equation
    if not any(used):
        return [False] * len(eqn.invars), None
    num_carry, show = eqn.params["step"].carry, list(eqn.params["show"])
    shown = [i for i, flag in enumerate(show) if flag]
    for i, is_used in zip(shown, used[num_carry : num_carry + len(shown)], strict=True):
        show[i] = is_used
    keep = (
        [True] * num_carry
        + used[num_carry : num_carry + len(shown)]
        + [True] * (len(used) - num_carry - len(shown))
    )
    eqn = eqn.replace(
        params={**eqn.params, "show": tuple(show)},
        outvars=select_by_flag(eqn.outvars, keep),
    )
    return [True] * len(eqn.invars), eqn


ad.primitive_jvps[recurrence_p] = _recurrence_jvp
ad.primitive_transposes[recurrence_p] = _recurrence_transpose
batching.fancy_primitive_batchers[recurrence_p] = _recurrence_batch
pe.dce_rules[recurrence_p] = _recurrence_dce


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


tangent_p = _define("jaxrnn_tangent", _tangent_impl)


def _tangent_jvp(primals, tangents, **params):
    """Differentiate the tangent, for second derivatives."""
    return _jvp_as_code(_tangent_impl, primals, tangents, params)


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
        first = _saved_carries(step, carry, with_values)
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


adjoint_p = _define("jaxrnn_adjoint", _adjoint_impl)


def _adjoint_jvp(primals, tangents, **params):
    """Differentiate the adjoint, for second derivatives."""
    return _jvp_as_code(_adjoint_impl, primals, tangents, params)


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


# --------------------------------------------------------------------------------------
# Rules that the tangent and the adjoint inherit from their implementation


def _jvp_as_code(function, primals, tangents, params):
    """Apply ``jax.jvp`` to a function, in the signature of a primitive's jvp rule."""
    nonzero = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

    def of_nonzero(values):
        full = list(primals)
        for i, v in zip(nonzero, values, strict=True):
            full[i] = v
        return function(*full, **params)

    if not nonzero:
        out = function(*primals, **params)
        return out, [_no_tangent(a) for a in out]
    return jax.jvp(
        of_nonzero, ([primals[i] for i in nonzero],), ([tangents[i] for i in nonzero],)
    )


def _no_tangent(value: object) -> Any:
    """Return the symbolic zero tangent of a value."""
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def _batch_as_code(primitive: Primitive, function: Any):
    """Return the batching rule that applies ``jax.vmap`` to the implementation.

    Every example is treated by itself, its weight gradients included.
    """

    def rule(axis_data, args, dims, **params):
        if all(d is None for d in dims):
            return _without_mapped_axes(primitive.bind(*args, **params))
        mapped = jax.vmap(
            functools.partial(function, **params),
            in_axes=tuple(dims),
            **vmap_options(axis_data),
        )
        out = mapped(*args)
        return out, [0] * len(out)

    return rule


def _without_mapped_axes(out):
    """Mark all outputs as not mapped; JAX calls batching rules then, too."""
    return out, [None] * len(out)


batching.fancy_primitive_batchers[tangent_p] = _batch_as_code(tangent_p, _tangent_impl)
batching.fancy_primitive_batchers[adjoint_p] = _batch_as_code(adjoint_p, _adjoint_impl)

FUNCTIONS: dict[Any, Any] = {
    recurrence_p: _recurrence_impl,
    tangent_p: _tangent_impl,
    adjoint_p: _adjoint_impl,
}
for _primitive, _function in FUNCTIONS.items():
    register_checkify_rule(_primitive, _function)
register_checkify_rule(contraction_p, product)
