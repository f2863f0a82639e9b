"""Sums over time of values that were made step by step, without ever holding one value a step.

A weight gradient is the sum over steps of ``h_{t-1}^T dz_t``. Mapped over time and summed, as ``vmap`` would have it, it is T
matrices first. But what stands between such a product and the gradient is linear, so the sum moves inwards until it meets
the product, and becomes one matmul over time and batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp

from ..contraction import contract
from .jaxprs import read, unique
from .programs import CONST, Program

ROWS, PRODUCT, LINEAR = "rows", "product", "linear"

# Linear in all their operands together.
JOINT = {"add_any", "add", "sub", "neg", "concatenate", "pad", "transpose", "reshape", "broadcast_in_dim", "squeeze"}
JOINT |= {"expand_dims", "slice", "split", "reduce_sum", "convert_element_type", "rev", "copy", "real", "imag", "complex"}
# Linear in one operand, where the others do not change with time.
SINGLE = {"mul", "div", "select_n", "scatter-add", "dot_general", "dynamic_update_slice", "gather", "dynamic_slice", "conj"}


class TimeSum:
    """Sums over the leading axis of what a `Program`'s equations make at every step, for the variables ``outs``.

    ``constants`` holds the values of class CONST. ``operands`` are the variables whose values at every step the sums are made
    from.
    """

    def __init__(self, program: Program, constants: dict[Any, Any], outs: list[Any]):
        self.program, self.constants = program, constants
        self.products = {v for var in outs for v in self._of_products(var)}
        self.operands = unique(v for var in outs for v in self._operands(var) if program.kind_of(v) > CONST)

    def take(self, var: Any, stacked: dict[Any, Any], steps: int) -> Any:
        """The sum of ``var`` over the steps; ``stacked`` has a row a step for each of ``operands``."""
        if self.program.kind_of(var) == CONST:
            value = read(self.constants, var)
            return value * jnp.asarray(steps, jnp.result_type(value))
        eqn, rule = self._rule(var)
        if rule == ROWS:
            return stacked[var].sum(0)
        if rule == PRODUCT:
            return _product_over_time(*(stacked[v] for v in eqn.invars), **eqn.params)
        fixed = eqn.primitive.name in SINGLE  # then its other operands are no terms of a sum
        values = [
            read(self.constants, v) if fixed and self.program.kind_of(v) == CONST else self.take(v, stacked, steps)
            for v in eqn.invars
        ]
        made = eqn.primitive.bind(*values, **eqn.params)
        return made[eqn.outvars.index(var)] if eqn.primitive.multiple_results else made

    def _rule(self, var: Any) -> tuple[Any, str]:
        """How the sum of a variable is taken: row by row unless moving it inwards saves a product's rows."""
        eqn = self.program.maker.get(var)
        if eqn is None or var in self.products:
            return eqn, ROWS
        if _is_product(eqn, self.program):
            return eqn, PRODUCT
        if not _is_linear(eqn, self.program):
            return eqn, ROWS
        changing = [v for v in eqn.invars if self.program.kind_of(v) > CONST]
        worth = all(v in self.products or self._rule(v)[1] != ROWS for v in changing)
        return eqn, LINEAR if worth else ROWS

    def _operands(self, var: Any) -> Iterator[Any]:
        if self.program.kind_of(var) == CONST:
            return
        eqn, rule = self._rule(var)
        if rule == LINEAR:
            for v in eqn.invars:
                yield from self._operands(v)
        else:
            yield from eqn.invars if rule == PRODUCT else [var]

    def _of_products(self, var: Any) -> Iterator[Any]:
        """The operands of the products that a sum would reach; they are needed at every step anyway."""
        eqn = None if self.program.kind_of(var) == CONST else self.program.maker.get(var)
        if eqn is None:
            return
        if _is_product(eqn, self.program):
            yield from eqn.invars
        elif _is_linear(eqn, self.program):
            for v in eqn.invars:
                yield from self._of_products(v)


def _is_product(eqn: Any, program: Program) -> bool:
    return eqn.primitive.name == "dot_general" and all(program.kind_of(v) > CONST for v in eqn.invars)


def _is_linear(eqn: Any, program: Program) -> bool:
    if eqn.primitive.name in JOINT:
        return True
    changing = [v for v in eqn.invars if program.kind_of(v) > CONST]
    return eqn.primitive.name in SINGLE and len(changing) == 1 and _linear_in(eqn, changing[0])


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
    over, batch = ([tuple(d + 1 for d in dims) for dims in side] for side in dimension_numbers)
    return contract(a, b, dimension_numbers=([(0, *dims) for dims in over], batch), **params)
