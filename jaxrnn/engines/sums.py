"""Sums over time of values that were made step by step, without ever holding one value a step.

A weight gradient is the sum over steps of ``h_{t-1}^T dz_t``. Mapped over time and summed, as ``vmap`` would have it, it is T
matrices first. But what stands between such a product and the gradient is linear, so the sum moves inwards until it meets
the product, and becomes one matmul over time and batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .programs import CONST, Program, read

# Linear in all their operands together.
JOINT = {"add_any", "add", "sub", "neg", "concatenate", "pad", "transpose", "reshape", "broadcast_in_dim", "squeeze"}
JOINT |= {"expand_dims", "slice", "split", "reduce_sum", "convert_element_type", "rev", "copy", "real", "imag", "complex"}
# Linear in one operand, where the others do not change with time.
SINGLE = {"mul", "div", "select_n", "scatter-add", "dot_general", "dynamic_update_slice", "gather", "dynamic_slice", "conj"}


class TimeSum:
    """Sums over the leading axis of what a `Program`'s equations make at every step.

    ``constants`` holds the values of class CONST; ``stacked`` (given when the sums are taken) those of other variables, one
    row a step.
    """

    def __init__(self, program: Program, constants: dict[Any, Any]):
        self.program, self.constants = program, constants

    def operands(self, outs: list[Any]) -> list[Any]:
        """The variables whose values at every step the sums of ``outs`` are made from."""
        found: dict[Any, None] = {}
        self._visit(outs, lambda var: found.setdefault(var))
        return list(found)

    def _visit(self, outs: list[Any], note: Callable[[Any], Any]) -> None:
        for var in outs:
            if self.program.kind_of(var) == CONST:
                continue
            eqn, rule = self._rule(var)
            if rule == "product":
                for v in eqn.invars:
                    note(v)
            elif rule == "linear":
                self._visit(list(eqn.invars), note)
            else:
                note(var)

    def _rule(self, var: Any) -> tuple[Any, str]:
        eqn = self.program.maker.get(var)
        if eqn is None:
            return None, "rows"
        name = eqn.primitive.name
        changing = [v for v in eqn.invars if self.program.kind_of(v) != CONST]
        if name in JOINT or (name in SINGLE and len(changing) == 1 and _linear_in(eqn, changing[0])):
            return eqn, "linear"
        return eqn, "product" if name == "dot_general" else "rows"

    def take(self, var: Any, stacked: dict[Any, Any], steps: int) -> Any:
        """The sum of ``var`` over the steps."""
        if self.program.kind_of(var) == CONST:
            value = read(self.constants, var)
            return value * jnp.asarray(steps, jnp.result_type(value))
        eqn, rule = self._rule(var)
        if rule == "rows":
            return stacked[var].sum(0)
        if rule == "product":
            return _product_over_time(*(stacked[v] for v in eqn.invars), **eqn.params)
        if eqn.primitive.name in SINGLE:
            values = [
                read(self.constants, v) if self.program.kind_of(v) == CONST else self.take(v, stacked, steps)
                for v in eqn.invars
            ]
        else:
            values = [self.take(v, stacked, steps) for v in eqn.invars]
        made = eqn.primitive.bind(*values, **eqn.params)
        return made[eqn.outvars.index(var)] if eqn.primitive.multiple_results else made


def _linear_in(eqn: Any, var: Any) -> bool:
    """Whether ``var`` is the operand of a SINGLE equation that it is linear in: a divisor or an index is not."""
    position = [i for i, v in enumerate(eqn.invars) if v is var]
    if len(position) != 1:
        return False
    where = {"div": (0,), "scatter-add": (0, 2), "dynamic_update_slice": (0, 1), "gather": (0,), "dynamic_slice": (0,)}
    if eqn.primitive.name == "select_n":
        return position[0] > 0
    allowed = where.get(eqn.primitive.name)
    return allowed is None or position[0] in allowed


def _product_over_time(a: Any, b: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    """A dot_general with the leading axis of both operands contracted too."""
    (a_over, b_over), (a_batch, b_batch) = dimension_numbers
    if not a_batch and a_over == tuple(range(len(a_over))) and b_over == tuple(range(len(b_over))):
        a, b = a.reshape(-1, *a.shape[len(a_over) + 1 :]), b.reshape(-1, *b.shape[len(b_over) + 1 :])  # a plain 2-D product
        numbers = (((0,), (0,)), ((), ()))
    else:
        numbers = tuple(
            tuple((*first, *(d + 1 for d in dims)) for dims in side)
            for side, first in zip(((a_over, b_over), (a_batch, b_batch)), ((0,), ()), strict=True)
        )
    return jax.lax.dot_general_p.bind(a, b, dimension_numbers=numbers, **params)


