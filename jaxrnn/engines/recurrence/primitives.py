"""The recurrence as JAX primitives, so that one backward pass serves every mode of
differentiation.

``custom_vjp`` would forbid forward mode, and under ``vmap`` it would make one weight
gradient an example and sum them. Three primitives with rules of their own do neither:

    walk       params, first carry, inputs -> last carry, carries (, kept values or
    carries at window starts) tangent    linear in the tangents of those inputs, at
    given carries adjoint    its transpose: cotangents in, cotangents out, weight
    gradients summed over time and batch in one matmul a window

``walk``'s tangents are ``tangent``'s; reverse mode transposes that into ``adjoint``;
second derivatives differentiate the two as ordinary JAX code. A mapped ``walk`` is the
walk of the mapped step, so ``grad(vmap(unroll))`` is the batch written out; a mapped
``adjoint`` (``vmap(grad(unroll))``) gives each example its own weight gradient.
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
    """``(last carry, carries after every step)`` of flat lists of arrays; T is at
    least 1.
    """
    out = walk_p.bind(
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


def _walk(
    *flat,
    step: StepJaxpr,
    schedule: LoopSchedule,
    keep: str | None,
    show: tuple[bool, ...],
    platform: str | None = "cpu",
    devices: int = 1,
):
    params, carry, inputs = split_by_sizes(flat, (step.params, step.carry))
    resolved, _ = resolve_schedule(
        schedule, step, inputs[0].shape[0], platform, backward=keep is not None
    )
    last, carries, more = passes.forward_pass(
        step,
        params,
        carry,
        inputs,
        resolved,
        kept=keep == DOTS,
        starts=keep == STARTS,
        show=show,
    )
    return [*last, *carries, *more]


def _tangent(
    *flat,
    step: StepJaxpr,
    schedule: LoopSchedule,
    wrt: tuple[int, ...],
    show: tuple[bool, ...],
    platform: str | None = "cpu",
    devices: int = 1,
):
    """The tangents that ``show`` of the last carry and of all carries, integer leaves
    left out of either.

    What they do not need is not computed: what has no forward mode, a ``custom_vjp``,
        may stand in such a place.
    """

    def every(*flat):
        known, moving = flat[: len(flat) - len(wrt)], flat[len(flat) - len(wrt) :]
        params, carry, inputs, _ = split_by_sizes(
            known, (step.params, step.carry, step.inputs)
        )
        last, carries = passes.jvp_pass(
            step, params, carry, inputs, dict(zip(wrt, moving, strict=True)), schedule
        )
        return select_by_flag([*last, *carries], show)

    closed = jax.make_jaxpr(every)(*flat)
    jaxpr, _ = pe.dce_jaxpr(
        closed.jaxpr, [True] * len(closed.out_avals), instantiate=True
    )
    return eval_jaxpr(jaxpr, closed.consts, flat)


def _adjoint(
    *flat,
    step: StepJaxpr,
    schedule: LoopSchedule,
    wrt: tuple[int, ...],
    present: tuple[bool, ...],
    platform: str | None = "cpu",
    devices: int = 1,
):
    known, given = (
        flat[: len(flat) - sum(present)],
        iter(flat[len(flat) - sum(present) :]),
    )
    params, carry, inputs, residuals = split_by_sizes(
        known, (step.params, step.carry, step.inputs)
    )
    resolved, _ = resolve_schedule(
        schedule, step, inputs[0].shape[0], platform, backward=True
    )
    moving = [is_differentiable(a) for a in step.carry_avals]
    found = iter([next(given) if p else None for p in present])
    last, every = ([next(found) if m else None for m in moving] for _ in range(2))
    last = [
        jnp.zeros(a.shape, a.dtype) if m and g is None else g
        for a, m, g in zip(step.carry_avals, moving, last, strict=True)
    ]
    if schedule.save == STARTS:
        starts, carries, kept = residuals, None, None
    else:
        gates = schedule.save == DOTS
        first = _at_hand(step, carry, gates)
        carries, kept = split_by_sizes(residuals, (len(first),))
        kept = kept if gates else None
        starts = chunk_starts(first, carries, resolved.chunk, resolved.reverse)
    given_residuals = passes.Residuals(inputs, carries, kept, starts)
    flags = [i in wrt for i in range(len(step.avals))]
    parts = (
        math.gcd(devices, *(a.shape[0] for a in step.carry_avals if a.shape))
        if devices > 1
        else 1
    )
    out = passes.backward_pass(
        step, params, given_residuals, last, every, flags, resolved, parts
    )
    return [out[i] for i in wrt]


def _lower(
    function: Any, platform: str | None, ctx: Any, *args: Any, **params: Any
) -> Any:
    here = functools.partial(function, platform=platform, devices=devices_of(ctx))
    return mlir.lower_fun(here, multiple_results=True)(ctx, *args, **params)


def _define(name: str, function: Any) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True

    @functools.lru_cache(maxsize=256)
    def compiled(params):
        return jax.jit(functools.partial(function, **dict(params)))

    primitive.def_impl(lambda *args, **params: compiled(tuple(params.items()))(*args))

    @functools.lru_cache(maxsize=256)  # tracing asks several times for the same
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


def _map_as_code(primitive: Primitive, function: Any):
    """The batching rule of ordinary JAX code: every example by itself, weight
    gradients included.
    """

    def rule(axis_data, args, dims, **params):
        if all(d is None for d in dims):
            return _unmapped(primitive.bind(*args, **params))
        mapped = jax.vmap(
            functools.partial(function, **params),
            in_axes=tuple(dims),
            **vmap_options(axis_data),
        )
        out = mapped(*args)
        return out, [0] * len(out)

    return rule


def _unmapped(out):
    """JAX asks also where nothing is mapped; then neither is what comes out."""
    return out, [None] * len(out)


walk_p = _define("jaxrnn_walk", _walk)
tangent_p = _define("jaxrnn_tangent", _tangent)
adjoint_p = _define("jaxrnn_adjoint", _adjoint)
FUNCTIONS: dict[Any, Any] = {walk_p: _walk, tangent_p: _tangent, adjoint_p: _adjoint}


def _walk_batch(
    axis_data,
    args,
    dims,
    *,
    step: StepJaxpr,
    schedule: LoopSchedule,
    keep: str | None,
    show: tuple[bool, ...],
):
    """The walk of the mapped step, its mapped axis leading the batch axes."""
    if keep or not all(show) or all(d is None for d in dims):
        return _map_as_code(walk_p, _walk)(
            axis_data, args, dims, step=step, schedule=schedule, keep=keep, show=show
        )
    if isinstance(schedule.loop, PallasKernel) and any(
        d is not None for d in dims[: step.params]
    ):
        return _member_by_member(
            args, dims, step=step, schedule=schedule, keep=keep, show=show
        )
    none = None
    n_first = step.params + step.carry
    moved, axes = [], []
    for i, (a, d) in enumerate(zip(args, dims, strict=True)):
        front = 1 if i >= n_first else 0
        if d is none and (
            step.params <= i < n_first
            or (front and isinstance(schedule.loop, PallasKernel))
        ):
            a, d = jnp.broadcast_to(a[None], (axis_data.size, *a.shape)), 0
        moved.append(a if d is none else jnp.moveaxis(a, d, front))
        axes.append(none if d is none else 0)
    out = walk_p.bind(
        *moved,
        step=step.vmapped(axes, axis_data),
        schedule=schedule,
        keep=None,
        show=(True,) * step.carry,
    )
    return out, [0] * step.carry + [1] * step.carry


def _member_by_member(
    args: Sequence, dims: Sequence, **params: Any
) -> tuple[list, list]:
    """An ensemble, each member with parameters of its own: one walk after another,
    since a kernel has one matrix.
    """
    mapped = [
        jnp.moveaxis(a, d, 0) for a, d in zip(args, dims, strict=True) if d is not None
    ]

    def member(mine):
        found = iter(mine)
        return walk_p.bind(
            *(a if d is None else next(found) for a, d in zip(args, dims, strict=True)),
            **params,
        )

    out = jax.lax.map(member, mapped)
    return out, [0] * len(out)


batching.fancy_primitive_batchers[walk_p] = _walk_batch
batching.fancy_primitive_batchers[tangent_p] = _map_as_code(tangent_p, _tangent)
batching.fancy_primitive_batchers[adjoint_p] = _map_as_code(adjoint_p, _adjoint)


def _no_tangent(value: Any) -> Any:
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def _walk_jvp(
    primals,
    tangents,
    *,
    step: StepJaxpr,
    schedule: LoopSchedule,
    keep: str | None,
    show: tuple[bool, ...],
):
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
            return _plain_jvp(primals, tangents, step, schedule, show)
    kept = None if schedule.save in (CARRIES, AUTO) else schedule.save
    out = walk_p.bind(
        *primals, step=step, schedule=schedule, keep=kept, show=(True,) * step.carry
    )
    last, carries, more = split_by_sizes(out, (step.carry, step.carry))
    shown = [*last, *select_by_flag(carries, show), *(more if keep else [])]
    if not wrt:
        return shown, [_no_tangent(a) for a in shown]
    residuals = (
        more if kept == STARTS else [*_at_hand(step, carries, kept == DOTS), *more]
    )
    # As lax.scan finds out, too: a part of the carry that nothing moves has no tangent,
    # and so asks for no derivative.
    moves = step.moved_by(wrt)
    moving = [i in moves for i in range(step.carry)]
    moving += [m and (s or bool(keep)) for m, s in zip(moving, show, strict=True)]
    shows = tuple(
        select_by_flag(moving, [is_differentiable(a) for a in step.carry_avals] * 2)
    )
    directions = [tangents[i] for i in wrt]
    moved = iter(
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
        next(moved) if m else _no_tangent(a)
        for a, m in zip([*last, *carries], moving, strict=True)
    ]
    d_last, d_carries = split_by_sizes(out_tangents, (step.carry,))
    d_more = (
        _tangents_of_more(step, schedule, primals, tangents, carries, d_carries)
        if keep
        else []
    )
    return shown, [*d_last, *select_by_flag(d_carries, show), *d_more]


def _at_hand(step: StepJaxpr, carries: Sequence, with_values: bool) -> list[Any]:
    """The leaves of the carries that are kept for the way back."""
    dropped = step.adjoint.not_kept(with_values)
    return [c for i, c in enumerate(carries) if i not in dropped]


def _plain_jvp(
    primals, tangents, step: StepJaxpr, schedule: LoopSchedule, show: tuple[bool, ...]
):
    """The tangents of JAX's own loop, by its own rules, which reverse mode
    transposes as it does those of ``lax.scan``.
    """

    def plain(*flat, **_):
        params, carry, inputs = split_by_sizes(flat, (step.params, step.carry))
        last, carries = passes.plain_forward_pass(step, params, carry, inputs, schedule)
        return [*last, *select_by_flag(carries, show)]

    return _jvp_as_code(plain, primals, tangents, {})


def _tangents_of_more(
    step: StepJaxpr, schedule: LoopSchedule, primals, tangents, carries, d_carries
) -> list[Any]:
    """Tangents of what is returned besides the carries, which follows from them; for
    second derivatives.
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

    def again(params, carry, inputs, carries):
        return passes.recompute_saved_values(
            step, params, carry, inputs, carries, reverse
        )

    at, directions = (
        [*split_by_sizes(list(v), (step.params, step.carry)), list(c)]
        for v, c in ((primals, carries), (tangents, d_carries))
    )
    return jax.jvp(again, tuple(at), tuple(directions))[1]


def _walk_transpose(cotangents, *args, **params):
    raise NotImplementedError(
        "jax.linear_transpose of an unroll: its derivative has a rule of its own, "
        "which is transposed, but the unroll itself "
        "has none. Take engine=jaxrnn.Scan(save='everything'), JAX's own loop, or the "
        "vjp of the unroll"
    )


ad.primitive_jvps[walk_p] = _walk_jvp
ad.primitive_transposes[walk_p] = _walk_transpose


def _walk_dce(used: list[bool], *more: Any) -> tuple[list[bool], Any]:
    """The parts of the carry that nobody reads after every step are not stored: in
    inference an LSTM's c, and under `STARTS` all of them where the loss is one of the
    last carry.
    """
    eqn = more[-1]  # newer jax says before it which inputs are live
    if not any(used):
        return [False] * len(eqn.invars), None
    first, show = eqn.params["step"].carry, list(eqn.params["show"])
    shown = [i for i, flag in enumerate(show) if flag]
    for i, wanted in zip(shown, used[first : first + len(shown)], strict=True):
        show[i] = wanted
    keep = (
        [True] * first
        + used[first : first + len(shown)]
        + [True] * (len(used) - first - len(shown))
    )
    eqn = eqn.replace(
        params={**eqn.params, "show": tuple(show)},
        outvars=select_by_flag(eqn.outvars, keep),
    )
    return [True] * len(eqn.invars), eqn


pe.dce_rules[walk_p] = _walk_dce


def _tangent_dce(used: list[bool], *more: Any) -> tuple[list[bool], Any]:
    """Tangents that nobody reads are not computed."""
    eqn = more[-1]
    if not any(used):
        return [False] * len(eqn.invars), None
    wanted = iter(used)
    show = tuple(s and next(wanted) for s in eqn.params["show"])
    eqn = eqn.replace(
        params={**eqn.params, "show": show}, outvars=select_by_flag(eqn.outvars, used)
    )
    return [True] * len(eqn.invars), eqn


pe.dce_rules[tangent_p] = _tangent_dce


def _tangent_jvp(primals, tangents, **params):
    return _jvp_as_code(_tangent, primals, tangents, params)


def _adjoint_jvp(primals, tangents, **params):
    return _jvp_as_code(_adjoint, primals, tangents, params)


def _jvp_as_code(function, primals, tangents, params):
    """The tangent rule of ordinary JAX code."""
    moving = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

    def moved(values):
        full = list(primals)
        for i, v in zip(moving, values, strict=True):
            full[i] = v
        return function(*full, **params)

    if not moving:
        out = function(*primals, **params)
        return out, [_no_tangent(a) for a in out]
    return jax.jvp(
        moved, ([primals[i] for i in moving],), ([tangents[i] for i in moving],)
    )


ad.primitive_jvps[tangent_p] = _tangent_jvp
ad.primitive_jvps[adjoint_p] = _adjoint_jvp


def _tangent_transpose(
    cotangents,
    *args,
    step: StepJaxpr,
    schedule: LoopSchedule,
    wrt: tuple[int, ...],
    show: tuple[bool, ...],
):
    known = args[: len(args) - len(wrt)]
    shown = iter(cotangents)
    present = tuple(s and type(next(shown)) is not ad.Zero for s in show)
    if not any(present):
        return [None] * len(args)
    given = [g for g in cotangents if type(g) is not ad.Zero]
    out = adjoint_p.bind(
        *known, *given, step=step, schedule=schedule, wrt=wrt, present=present
    )
    return [None] * len(known) + list(out)


ad.primitive_transposes[tangent_p] = _tangent_transpose


def _adjoint_transpose(
    cotangents,
    *args,
    step: StepJaxpr,
    schedule: LoopSchedule,
    wrt: tuple[int, ...],
    present: tuple[bool, ...],
):
    """The adjoint is linear in its cotangents; its transpose is the tangent again."""
    count = len(args) - sum(present)
    known = args[:count]
    given = [
        (i, g) for i, g in zip(wrt, cotangents, strict=True) if type(g) is not ad.Zero
    ]
    if not given:
        return [None] * len(args)
    wrt = tuple(i for i, _ in given)
    return [None] * count + tangent_p.bind(
        *known,
        *(g for _, g in given),
        step=step,
        schedule=schedule,
        wrt=wrt,
        show=present,
    )


ad.primitive_transposes[adjoint_p] = _adjoint_transpose

for _primitive, _function in FUNCTIONS.items():
    register_checkify_rule(_primitive, _function)
register_checkify_rule(contraction_p, product)
