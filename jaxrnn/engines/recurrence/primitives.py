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
of each primitive stand in one order: impl, abstract evaluation and lowering
(`define_primitive`), jvp, transpose, batch, dce. The recurrence is below; its tangent
and its adjoint are in `jaxrnn.engines.recurrence.linear_primitives`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching
from jax.interpreters import partial_eval as pe

from ...core.contraction import contraction_p, product
from ...core.convolution import convolution, convolution_p
from ..jaxpr.evaluate import is_differentiable, select_by_flag, split_by_sizes
from ..jaxpr.step_program import StepJaxpr
from ..loops.pallas.primitive import PallasKernel
from . import passes
from .checkify import register_checkify_rule
from .chunks import chunk_starts
from .heuristics import AUTO, CARRIES, DOTS, EVERYTHING, STARTS
from .linear_primitives import LINEAR_FUNCTIONS, saved_carries, tangent_p
from .linear_primitives import adjoint_p as adjoint_p
from .primitive_rules import batch_as_code, define_primitive, jvp_as_code, no_tangent
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


recurrence_p = define_primitive("jaxrnn_recurrence", _recurrence_impl)


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
    if wrt and keep is not None and step.calls_custom_vjp:
        return _jvp_after_rules(primals, tangents, step, schedule, keep, show)
    if keep is None and wrt:
        step = step.for_derivative(wrt)
        schedule = resolve_save(
            schedule, step, primals[step.params + step.carry].shape[0]
        )
        if schedule.save == EVERYTHING:
            return _plain_scan_jvp(primals, tangents, step, schedule, show)
    # What the recurrence returns for its derivative; the carries are returned anyway.
    kept = None if schedule.save in (CARRIES, AUTO) else schedule.save
    if kept is None and step.calls_custom_vjp:
        kept = CARRIES  # so that a second derivative is known to be one
    out = recurrence_p.bind(
        *primals, step=step, schedule=schedule, keep=kept, show=(True,) * step.carry
    )
    last, carries, saved = split_by_sizes(out, (step.carry, step.carry))
    shown = [*last, *select_by_flag(carries, show), *(saved if keep else [])]
    if not wrt:
        return shown, [no_tangent(a) for a in shown]
    residuals = (
        saved
        if kept == STARTS
        else [*saved_carries(step, carries, kept == DOTS), *saved]
    )
    out_tangents = _carry_tangents(
        [*primals, *residuals],
        [tangents[i] for i in wrt],
        [*last, *carries],
        step=step,
        schedule=schedule,
        wrt=wrt,
        shown=[flag or bool(keep) for flag in show],
    )
    # The saved values are outputs themselves where the recurrence is differentiated a
    # second time.
    d_last, d_carries = split_by_sizes(out_tangents, (step.carry,))
    d_saved = (
        _saved_tangents(step, schedule, primals, tangents, carries, d_carries)
        if keep
        else []
    )
    return shown, [*d_last, *select_by_flag(d_carries, show), *d_saved]


def _carry_tangents(
    primals: Sequence,
    directions: Sequence,
    carries: Sequence,
    *,
    step: StepJaxpr,
    schedule: LoopSchedule,
    wrt: tuple[int, ...],
    shown: Sequence[bool],
) -> list[Any]:
    """Bind the tangent, and return those of the last carry and of all carries.

    As in ``lax.scan``, a leaf of the carry that depends on no differentiated operand
    has a symbolic zero as its tangent, so no derivative of it is computed.

    Args:
        primals: the operands of the recurrence, and its residuals.
        directions: the tangents of the operands ``wrt``.
        carries: the leaves of the last carry, and those after every step.
        step: the traced step.
        schedule: how the loops run.
        wrt: positions of the differentiated operands.
        shown: for each leaf of the carry, whether its tangents after every step are
            wanted.
    """
    with_tangent = step.returned_with_tangent(wrt)
    has_tangent = [i in with_tangent for i in range(step.carry)]
    has_tangent += [a and b for a, b in zip(has_tangent, shown, strict=True)]
    is_float = [is_differentiable(a) for a in step.carry_avals] * 2
    nonzero_tangents = iter(
        tangent_p.bind(
            *primals,
            *directions,
            step=step,
            schedule=schedule,
            wrt=wrt,
            show=tuple(select_by_flag(has_tangent, is_float)),
        )
    )
    return [
        next(nonzero_tangents) if flag else no_tangent(a)
        for a, flag in zip(carries, has_tangent, strict=True)
    ]


def _plain_scan_jvp(
    primals, tangents, step: StepJaxpr, schedule: LoopSchedule, show: tuple[bool, ...]
):
    """Differentiate ``jax.lax.scan`` by its own rules, for ``save="everything"``."""

    def plain(*flat, **_):
        params, carry, inputs = split_by_sizes(flat, (step.params, step.carry))
        last, carries = passes.plain_forward_pass(step, params, carry, inputs, schedule)
        return [*last, *select_by_flag(carries, show)]

    return jvp_as_code(plain, primals, tangents, {})


def _jvp_after_rules(
    primals,
    tangents,
    step: StepJaxpr,
    schedule: LoopSchedule,
    keep: str,
    show: tuple[bool, ...],
):
    """Differentiate a second time a step that calls ``jax.custom_vjp`` functions.

    As under ``jax.lax.scan``, their rules do not apply any more.
    """
    reverse = schedule.reverse

    def forwards(*flat, **_):
        params, carry, inputs = split_by_sizes(flat, (step.params, step.carry))
        last, carries = passes.plain_forward_pass(
            step.after_rules, params, carry, inputs, schedule
        )
        saved: list[Any] = []
        if keep == STARTS:
            saved = [
                chunk_starts(a, c, schedule.chunk, reverse)
                for a, c in zip(carry, carries, strict=True)
            ]
        elif keep == DOTS:
            saved = passes.recompute_saved_values(
                step, params, carry, inputs, carries, reverse
            )
        return [*last, *select_by_flag(carries, show), *saved]

    return jvp_as_code(forwards, primals, tangents, {})


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
            else no_tangent(like)
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
        return batch_as_code(recurrence_p, _recurrence_impl)(
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

FUNCTIONS: dict[Any, Any] = {recurrence_p: _recurrence_impl, **LINEAR_FUNCTIONS}
for _primitive, _function in FUNCTIONS.items():
    register_checkify_rule(_primitive, _function)
register_checkify_rule(contraction_p, product)
register_checkify_rule(convolution_p, convolution)
