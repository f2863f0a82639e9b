"""Evaluation of jaxprs, equation by equation, and helpers for flat lists of arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend import core
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Primitive, Var
from jax.interpreters import ad

from ...core.contraction import contraction_p, product
from ...core.convolution import convolution, convolution_p, own_convolutions

CUSTOM_VJP = "custom_vjp_call"  # which has a derivative in reverse mode only
# What our primitives are in a step.
PLAIN: dict[Any, Callable[..., Any]] = {
    contraction_p: product,
    convolution_p: convolution,
}
CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}

Values = Sequence[Any]


def eval_jaxpr(
    jaxpr: Jaxpr,
    consts: Values,
    args: Values,
    instead: Mapping[int, Callable] | None = None,
) -> list[Any]:
    """Evaluate a jaxpr, with nested calls inlined.

    ``instead``: equations that are computed in another way; see `eval_equations`.
    """
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    eval_equations(jaxpr.eqns, env, instead)
    return [read_env(env, v) for v in jaxpr.outvars]


def eval_equations(
    eqns: Iterable[Any],
    env: dict[Any, Any],
    instead: Mapping[int, Callable] | None = None,
) -> None:
    """Bind equations one after another.

    Args:
        eqns: the equations, in order.
        env: the values of variables. The results are added to it.
        instead: by the ``id`` of an equation, a function of its operands that computes
            the same result in another way.
    """
    for eqn in eqns:
        values = [read_env(env, v) for v in eqn.invars]
        if instead and id(eqn) in instead:
            with eqn.ctx.manager:
                results = instead[id(eqn)](*values)
            results = results if eqn.primitive.multiple_results else [results]
            env.update(zip(eqn.outvars, results, strict=True))
            continue
        # Engines look for dot_general and conv_general_dilated.
        if eqn.primitive in PLAIN:
            env[eqn.outvars[0]] = PLAIN[eqn.primitive](*values, **eqn.params)
            continue
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in CALLS else None
        if eqn.primitive.name in FORMER:
            results = FORMER[eqn.primitive.name](*values, **eqn.params)
        elif inner is None:
            results = bind_equation(eqn, values)
        elif isinstance(inner, core.ClosedJaxpr):
            results = eval_jaxpr(inner.jaxpr, inner.consts, values)
        else:
            results = eval_jaxpr(inner, (), values)
        env.update(zip(eqn.outvars, results, strict=True))


def eval_all_steps(
    eqns: Sequence[Any],
    constants: Mapping[Any, Any],
    stacked: Mapping[Any, Any],
    outs: Sequence[Any],
) -> list[Any]:
    """Evaluate equations for all steps at once, with ``vmap``.

    Args:
        eqns: the equations of one step, in order.
        constants: the values of variables that are the same at every step.
        stacked: the values ``(steps, ...)`` of variables that change.
        outs: the variables that are wanted.

    Returns:
        The values ``(steps, ...)`` of each of ``outs``.
    """
    if not outs:
        return []
    convolutions = own_convolutions(eqns, maps_steps=True)

    def of_step(*values):
        env = {**constants, **dict(zip(stacked, values, strict=True))}
        eval_equations(eqns, env, convolutions)
        return [env[v] for v in outs]

    return jax.vmap(of_step)(*stacked.values())


def _stack(*operands: Any, axis: int) -> list[Any]:
    rows = [jax.lax.expand_dims(a, (axis,)) for a in operands]
    return [jax.lax.concatenate(rows, axis)]


def _unstack(a: Any, *, axis: int) -> list[Any]:
    return [
        jax.lax.index_in_dim(a, i, axis, keepdims=False) for i in range(a.shape[axis])
    ]


def _tile(a: Any, *, reps: Sequence[int]) -> list[Any]:
    apart = [n for pair in zip(reps, a.shape, strict=True) for n in pair]
    places = range(1, 2 * a.ndim, 2)
    wide = jax.lax.broadcast_in_dim(a, apart, places)
    return [wide.reshape([n * d for n, d in zip(reps, a.shape, strict=True)])]


# Primitives of newer versions of jax, by operations that every version has. Engines
# know these; of an unknown one they would assume that it mixes everything.
FORMER: dict[str, Callable[..., list[Any]]] = {
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
}


def bind_equation(eqn: JaxprEqn, values: Values) -> list[Any]:
    """Apply the primitive of an equation to other operands."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    # Older versions of jax return functions apart from the params.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*functions, *values, **params)
    return results if eqn.primitive.multiple_results else [results]


def read_env(env: dict[Any, Any], var: Var | core.Literal) -> Any:
    """Return the value of a variable or literal."""
    return var.val if isinstance(var, core.Literal) else env[var]


def all_equations(jaxpr: Jaxpr) -> Iterator[Any]:
    """Yield the equations of a jaxpr and of all jaxprs inside it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in core.jaxprs_in_params(eqn.params):
            yield from all_equations(inner)


def inline_calls(closed: ClosedJaxpr) -> Any:
    """Return the same jaxpr without nested calls."""
    return jax.make_jaxpr(lambda *args: eval_jaxpr(closed.jaxpr, closed.consts, args))(
        *closed.in_avals
    )


def vmap_options(axis_data: Any) -> dict[str, Any]:
    """Return the arguments of ``jax.vmap`` for the axis of a batching rule."""
    named = {"axis_name": axis_data.name} if isinstance(axis_data.name, str) else {}
    return {"axis_size": axis_data.size, **named} | (
        {"spmd_axis_name": axis_data.spmd_name} if axis_data.spmd_name else {}
    )


def is_differentiable(aval: ShapedArray) -> bool:
    """Whether an aval has a floating-point or complex dtype."""
    return jnp.issubdtype(aval.dtype, jnp.inexact)


class _Places(set):
    """A set that is hashed by identity, so that it can be a primitive's parameter."""

    __hash__ = object.__hash__  # type: ignore[assignment]


# The identity, whose jvp rule records which of its operands have a tangent.
_look_p = Primitive("jaxrnn_look")
_look_p.multiple_results = True
_look_p.def_impl(lambda *values, moved: values)
_look_p.def_abstract_eval(lambda *avals, moved: avals)


def _look(
    values: Sequence[Any], tangents: Sequence[Any], *, moved: _Places
) -> tuple[Any, Any]:
    moved.update(i for i, t in enumerate(tangents) if type(t) is not ad.Zero)
    return values, tangents


ad.primitive_jvps[_look_p] = _look

# Some function of its operands, all of whose results move if an operand does.
_mix_p = Primitive("jaxrnn_mix")
_mix_p.multiple_results = True
_mix_p.def_abstract_eval(lambda *_, avals: avals)


def _mix(
    values: Sequence[Any], tangents: Sequence[Any], *, avals: Sequence[Any]
) -> tuple[Any, Any]:
    moves = any(type(t) is not ad.Zero for t in tangents)
    zeros = [ad.Zero(aval.to_tangent_aval()) for aval in avals]
    return _mix_p.bind(*values, avals=avals), [
        ad.instantiate_zeros(zero) if moves and is_differentiable(aval) else zero
        for zero, aval in zip(zeros, avals, strict=True)
    ]


ad.primitive_jvps[_mix_p] = _mix


def outputs_with_tangents(
    closed: ClosedJaxpr, places: Collection[int]
) -> frozenset[int]:
    """Return the outputs of a closed jaxpr that have a nonzero tangent.

    A tangent counts as zero only if JAX knows it to be zero while tracing.

    Args:
        closed: the closed jaxpr.
        places: the positions of the inputs that have a tangent.
    """
    moved = _Places()
    places = [i for i in sorted(places) if is_differentiable(closed.in_avals[i])]
    # What the rule of a custom_vjp function computes may differ with what has a
    # tangent, and JAX takes one form of it for a jaxpr. The rule is not asked here.
    calls = {
        id(eqn): functools.partial(
            _mix_p.bind, avals=tuple(v.aval for v in eqn.outvars)
        )
        for eqn in closed.jaxpr.eqns
        if eqn.primitive.name == CUSTOM_VJP
    }

    def look(primals, directions):
        def along(*values):
            full = dict(enumerate(primals)) | dict(zip(places, values, strict=True))
            return _look_p.bind(
                *eval_jaxpr(
                    closed.jaxpr,
                    closed.consts,
                    [full[i] for i in range(len(full))],
                    calls,
                ),
                moved=moved,
            )

        return jax.jvp(along, [primals[i] for i in places], directions)

    if places:
        jax.make_jaxpr(look)(closed.in_avals, [closed.in_avals[i] for i in places])
    return frozenset(moved)


def nbytes(var: Any) -> int:
    """Return the bytes of a variable's value."""
    return var.aval.size * var.aval.dtype.itemsize


def deduplicate(items: Iterable[Any]) -> list[Any]:
    """Return the items without repetitions, in order."""
    return list(dict.fromkeys(items))


def split_by_sizes(items: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Split ``items`` into lists of the given sizes, and a list of the rest."""
    parts, start = [], 0
    for size in sizes:
        parts.append(list(items[start : start + size]))
        start += size
    return [*parts, list(items[start:])]


def select_by_flag(items: Iterable[Any], flags: Iterable[bool]) -> list[Any]:
    """Return the items whose flag is True."""
    return [item for item, flag in zip(items, flags, strict=True) if flag]
