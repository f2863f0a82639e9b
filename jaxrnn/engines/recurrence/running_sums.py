"""Sums that the backward loop carries, of values too large to store at every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import Var

from ...core.dtypes import accumulator
from ..jaxpr.dependency_graph import CONST, DependencyGraph
from ..jaxpr.evaluate import bind_equation, read_env


@dataclasses.dataclass(frozen=True, eq=False)
class RunningSum:
    """A sum over steps that the backward loop carries.

    Attributes:
        program: the equations of one step.
        variables: the variables that are added at every step.
        which: the number of the parameter whose gradient this is a term of; None if
            the sum goes through linear equations first.
    """

    program: DependencyGraph
    variables: list[Any]
    which: int | None

    @property
    def reads(self) -> list[Any]:
        """The variables that the loop must compute for the sum."""
        return [v for var in self.variables for v in _loop_reads(self.program, var)]

    def zero(self) -> Any:
        """Return the sum of no steps, in float32 at least."""
        aval = self.variables[0].aval
        return jnp.zeros(aval.shape, accumulator(aval.dtype))

    def add(self, total: Any, env: dict[Any, Any]) -> Any:
        """Add the values of a step.

        A gradient that is zero but for some rows (an embedding's, for example) is not
        added as a whole: its rows are added in place.

        Args:
            total: the sum of the steps before.
            env: the values of this step.
        """
        for var in self.variables:
            eqn = _sparse_update(self.program, var)
            if eqn is None or total.dtype != var.aval.dtype:
                value = _value_of(self.program, var, env)
                total = total + value.astype(total.dtype)
            elif eqn.primitive.name == "scatter-add":
                _, *rest = (read_env(env, v) for v in eqn.invars)
                (total,) = bind_equation(eqn, [total, *rest])
            else:
                _, update, *start = (read_env(env, v) for v in eqn.invars)
                old = jax.lax.dynamic_slice(total, start, update.shape)
                total = jax.lax.dynamic_update_slice(total, old + update, start)
        return total


def _loop_reads(program: DependencyGraph, var: Var) -> list[Any]:
    """Return the variables that the loop must compute to add ``var``."""
    eqn = _sparse_update(program, var)
    if eqn is None:
        return [var]
    return [v for v in eqn.invars[1:] if program.kind_of(v) > CONST]


def _value_of(program: DependencyGraph, var: Var, env: dict[Any, Any]) -> Any:
    """Return the value of a variable, from its operands where it is not in ``env``."""
    if var in env:
        return env[var]
    eqn = program.maker[var]
    return bind_equation(eqn, [read_env(env, v) for v in eqn.invars])[
        eqn.outvars.index(var)
    ]


def _sparse_update(program: DependencyGraph, var: Var) -> Any:
    """Return the equation of a variable that is zero but for a part, or None.

    Such an equation adds updates to zeros (``scatter-add``) or writes an update into
    zeros (``dynamic_update_slice``).
    """
    eqn = program.maker.get(var)
    if eqn is None or eqn.primitive.name not in ("scatter-add", "dynamic_update_slice"):
        return None
    zeros = (
        program.maker.get(eqn.invars[0])
        if not isinstance(eqn.invars[0], core.Literal)
        else None
    )
    if (
        zeros is None
        or zeros.primitive.name != "broadcast_in_dim"
        or not isinstance(zeros.invars[0], core.Literal)
    ):
        return None
    return eqn if zeros.invars[0].val == 0 else None
