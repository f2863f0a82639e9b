"""What the loop backwards adds up as it goes: sums of values too large to be held
for every step.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from ...core.cell import accumulator
from ..jaxpr.evaluate import bind_equation, read_env
from ..jaxpr.step_program import CONST, DependencyGraph


@dataclasses.dataclass(frozen=True, eq=False)
class RunningSum:
    """The sum over steps of ``variables``, which the loop carries.

    ``which`` is the number of the parameter whose gradient it is, or None where it goes
    through linear equations first.
    """

    program: DependencyGraph
    variables: list[Any]
    which: int | None

    @property
    def reads(self) -> list[Any]:
        """What has to be made inside the loop for it."""
        return [v for var in self.variables for v in _reads(self.program, var)]

    def zero(self) -> Any:
        """Where it begins."""
        aval = self.variables[0].aval
        return jnp.zeros(aval.shape, accumulator(aval.dtype))

    def add(self, total: Any, env: dict[Any, Any]) -> Any:
        """``total`` and this step's values."""
        for var in self.variables:
            eqn = _sparse(self.program, var)
            if eqn is None or total.dtype != var.aval.dtype:
                value = _made(self.program, var, env)
                total = total + value.astype(total.dtype)
            elif eqn.primitive.name == "scatter-add":
                _, *rest = (read_env(env, v) for v in eqn.invars)
                (total,) = bind_equation(eqn, [total, *rest])
            else:
                _, update, *start = (read_env(env, v) for v in eqn.invars)
                there = jax.lax.dynamic_slice(total, start, update.shape)
                total = jax.lax.dynamic_update_slice(total, there + update, start)
        return total


def _reads(program: DependencyGraph, var: Any) -> list[Any]:
    eqn = _sparse(program, var)
    if eqn is None:
        return [var]
    return [v for v in eqn.invars[1:] if program.kind_of(v) > CONST]


def _made(program: DependencyGraph, var: Any, env: dict[Any, Any]) -> Any:
    """The value of a variable, of which perhaps only the operands were made."""
    if var in env:
        return env[var]
    eqn = program.maker[var]
    return bind_equation(eqn, [read_env(env, v) for v in eqn.invars])[
        eqn.outvars.index(var)
    ]


def _sparse(program: DependencyGraph, var: Any) -> Any:
    """The equation of a variable that is zero but for a part: rows that are added to
    zeros, or written into zeros.
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
