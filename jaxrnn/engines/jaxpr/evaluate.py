"""Jaxprs as lists of equations to evaluate in part, and small helpers for flat lists
of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import Primitive
from jax.interpreters import ad

from ...core.contraction import contraction_p, product

CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"}

Values = Sequence[Any]


def eval_jaxpr(jaxpr: Any, consts: Values, args: Values) -> list[Any]:
    """The outputs of a jaxpr, nested calls inlined."""
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    eval_equations(jaxpr.eqns, env)
    return [read_env(env, v) for v in jaxpr.outvars]


def eval_equations(
    eqns: Iterable[Any], env: dict[Any, Any], instead: dict[int, Callable] | None = None
) -> None:
    """Bind the equations one after another; ``env`` maps variables to values, and gains
    those made.

    ``instead`` holds, under the ``id`` of an equation, a function of its operands that
    makes the same.
    """
    for eqn in eqns:
        values = [read_env(env, v) for v in eqn.invars]
        if instead and id(eqn) in instead:
            env[eqn.outvars[0]] = instead[id(eqn)](*values)
            continue
        if (
            eqn.primitive is contraction_p
        ):  # in a step there is no time to merge with: the engines know dot_general
            env[eqn.outvars[0]] = product(*values, **eqn.params)
            continue
        inner = eqn.params.get("jaxpr") if eqn.primitive.name in CALLS else None
        if inner is None:
            made = bind_equation(eqn, values)
        elif isinstance(inner, core.ClosedJaxpr):
            made = eval_jaxpr(inner.jaxpr, inner.consts, values)
        else:
            made = eval_jaxpr(inner, (), values)
        env.update(zip(eqn.outvars, made, strict=True))


def bind_equation(eqn: Any, values: Values) -> list[Any]:
    """What an equation makes of other operands."""
    bound = eqn.primitive.get_bind_params(eqn.params)
    functions, params = (
        bound if isinstance(bound, tuple) else ((), bound)
    )  # older jax: functions apart
    with eqn.ctx.manager:
        made = eqn.primitive.bind(*functions, *values, **params)
    return made if eqn.primitive.multiple_results else [made]


def read_env(env: dict[Any, Any], var: Any) -> Any:
    return var.val if isinstance(var, core.Literal) else env[var]


def inline_calls(closed: Any) -> Any:
    """The same jaxpr without nested calls."""
    return jax.make_jaxpr(lambda *args: eval_jaxpr(closed.jaxpr, closed.consts, args))(
        *closed.in_avals
    )


def vmap_options(axis_data: Any) -> dict[str, Any]:
    """The arguments of ``jax.vmap`` for an axis that a batching rule is told of."""
    named = {"axis_name": axis_data.name} if isinstance(axis_data.name, str) else {}
    return {"axis_size": axis_data.size, **named} | (
        {"spmd_axis_name": axis_data.spmd_name} if axis_data.spmd_name else {}
    )


def is_differentiable(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.inexact)


class _Places(set):
    """A set that is hashed by identity, as what a primitive is told has to be."""

    __hash__ = object.__hash__  # type: ignore[assignment]


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


def outputs_with_tangents(closed: Any, places: Collection[int]) -> frozenset[int]:
    """Those outputs of a closed jaxpr that have a tangent other than a zero known while
    tracing, where the inputs at ``places`` have one.
    """
    moved = _Places()
    places = [i for i in sorted(places) if is_differentiable(closed.in_avals[i])]

    def look(primals, directions):
        def along(*values):
            full = dict(enumerate(primals)) | dict(zip(places, values, strict=True))
            return _look_p.bind(
                *eval_jaxpr(
                    closed.jaxpr, closed.consts, [full[i] for i in range(len(full))]
                ),
                moved=moved,
            )

        return jax.jvp(along, [primals[i] for i in places], directions)

    if places:
        jax.make_jaxpr(look)(closed.in_avals, [closed.in_avals[i] for i in places])
    return frozenset(moved)


def nbytes(var: Any) -> int:
    return var.aval.size * var.aval.dtype.itemsize


def deduplicate(items: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(items))


def split_by_sizes(items: Sequence[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """``items`` cut into lists of the given sizes, and the rest."""
    parts, start = [], 0
    for size in sizes:
        parts.append(list(items[start : start + size]))
        start += size
    return [*parts, list(items[start:])]


def select_by_flag(items: Iterable[Any], flags: Iterable[bool]) -> list[Any]:
    """The items whose flag is True."""
    return [item for item, flag in zip(items, flags, strict=True) if flag]
