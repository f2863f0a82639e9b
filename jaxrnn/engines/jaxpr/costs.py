"""Counts of the floating-point operations of equations.

They serve to choose between schedules, and are not meant to predict times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from jax.extend import core
from jax.extend.core import JaxprEqn

TRANSCENDENTAL = {
    "exp",
    "exp2",
    "log",
    "log1p",
    "expm1",
    "tanh",
    "logistic",
    "sin",
    "cos",
    "tan",
    "erf",
    "pow",
    "sqrt",
    "rsqrt",
}
PER_TRANSCENDENTAL = 10  # operations
# Primitives that only move or convert numbers, and count as no operations.
MOVES = {
    "broadcast_in_dim",
    "reshape",
    "transpose",
    "squeeze",
    "expand_dims",
    "slice",
    "concatenate",
    "copy",
    "split",
    "pad",
}
MOVES |= {"convert_element_type", "stop_gradient", "rev", "iota"}
# The operations that take as long as one more iteration of a loop, or one more kernel.
ITERATION = 10_000


def count_flops(eqns: Iterable[Any]) -> float:
    """Count the floating-point operations of equations.

    A ``cond`` counts as its most expensive branch, a ``while`` as one iteration.
    """
    return sum(map(equation_flops, eqns))


def equation_flops(eqn: Any) -> float:
    """Count the floating-point operations of one equation."""
    name, out = eqn.primitive.name, sum(v.aval.size for v in eqn.outvars)
    if name in MOVES:
        return 0
    if name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2 * out * math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        return (
            2
            * out
            * kernel.size
            / max(kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]], 1)
        )
    if name == "cond":
        return max(branch_costs(eqn))
    inner = sum(count_flops(jaxpr.eqns) for jaxpr in core.jaxprs_in_params(eqn.params))
    if name == "scan":
        return eqn.params["length"] * inner
    if inner:
        return inner
    return out * (PER_TRANSCENDENTAL if name in TRANSCENDENTAL else 1)


def branch_costs(eqn: JaxprEqn) -> list[float]:
    """Count the operations of each branch of a ``cond``."""
    return [count_flops(branch.jaxpr.eqns) for branch in eqn.params["branches"]]


def is_slower_batched(eqn: JaxprEqn) -> bool:
    """Whether an equation should stay in the loop instead of running for many steps.

    Under ``vmap`` a ``cond`` runs all its branches for every step, and a ``while`` runs
    for all steps until the last one is done.
    """
    if eqn.primitive.name == "while":
        return True
    if eqn.primitive.name == "cond":
        costs = branch_costs(eqn)
        return sum(costs) - sum(costs) / len(costs) > ITERATION
    if eqn.primitive.name in ("scan", "custom_jvp_call", "custom_vjp_call"):
        return any(
            is_slower_batched(e)
            for jaxpr in core.jaxprs_in_params(eqn.params)
            for e in jaxpr.eqns
        )
    return False
