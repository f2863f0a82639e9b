"""Derivatives of maxima and minima that do not read the result.

JAX's rule asks which operand equals the result. A backward pass that has saved the
result, because it is a carry, and computes the operand again, in a larger matrix
product for example, may find that none does: the two are rounded differently, and the
gradient is lost. So operands are compared with each other, or with an extremum of them
that is computed again as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from .evaluate import bind_equation, is_differentiable

LARGER = {"max": jnp.greater, "min": jnp.less}
REDUCED = ("reduce_max", "reduce_min")


def comparing_operands(eqns: list[Any]) -> dict[int, Callable]:
    """Return functions that compute the maxima and minima among some equations.

    Returns:
        Functions of an equation's operands, by the ``id`` of the equation, as
        `jaxrnn.engines.jaxpr.evaluate.eval_equations` takes them.
    """
    return {
        id(eqn): functools.partial(
            _of_two if eqn.primitive.name in LARGER else _reduced, eqn
        )
        for eqn in eqns
        if eqn.primitive.name in (*LARGER, *REDUCED)
        and all(is_differentiable(v.aval) and not _is_complex(v) for v in eqn.invars)
    }


def _is_complex(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.complexfloating)


def _of_two(eqn: Any, *operands: Any) -> Any:
    """Compute a maximum or minimum of two operands, elementwise."""
    wins = LARGER[eqn.primitive.name]

    @jax.custom_jvp
    def extremum(x, y):
        return bind_equation(eqn, [x, y])[0]

    def share(x, y):
        """The share of x in the tangent: 1, or a half where both are equal."""
        tie = jnp.where(x == y, 0.5, 0.0)
        return jnp.where(wins(x, y), 1.0, tie).astype(x.dtype)

    @functools.partial(extremum.defjvp, symbolic_zeros=True)
    def _(primals, tangents):
        out = bind_equation(eqn, list(primals))[0]
        x, y = (jnp.broadcast_to(a, out.shape) for a in primals)
        terms = [
            share(a, b) * tangent
            for a, b, tangent in ((x, y, tangents[0]), (y, x, tangents[1]))
            if not isinstance(tangent, SymbolicZero)
        ]
        return out, sum(terms[1:], terms[0])

    return extremum(*operands)


def _reduced(eqn: Any, operand: Any) -> Any:
    """Compute a maximum or minimum over axes."""
    axes = tuple(eqn.params["axes"])

    @jax.custom_jvp
    def extremum(x):
        return bind_equation(eqn, [x])[0]

    @extremum.defjvp
    def _(primals, tangents):
        (x,), (tangent,) = primals, tangents
        again = jnp.expand_dims(bind_equation(eqn, [x])[0], axes)
        hits = (x == again).astype(x.dtype)
        (out,) = bind_equation(eqn, [x])
        return out, (hits * tangent).sum(axes) / hits.sum(axes)

    return extremum(operand)
