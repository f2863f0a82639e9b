"""Sums over time of values that were made step by step, without ever holding one value a step.

A weight gradient is the sum over steps of ``h_{t-1}^T dz_t``. Mapped over time and summed, as ``vmap`` would have it, it is T
matrices first. But what stands between such a product and the gradient is linear, so the sum moves inwards until it meets
the product, and becomes one matmul over time and batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from ..contraction import contract
from .jaxprs import read, unique
from .programs import CONST, Program

ROWS, PRODUCT, LINEAR, BATCH = "rows", "product", "linear", "batch"

# Linear in all their operands together.
JOINT = {"add_any", "add", "sub", "neg", "concatenate", "pad", "transpose", "reshape", "broadcast_in_dim", "squeeze"}
JOINT |= {"expand_dims", "slice", "split", "reduce_sum", "convert_element_type", "rev", "copy", "real", "imag", "complex"}
# Linear in one operand, where the others do not change with time.
SINGLE = {"mul", "div", "select_n", "scatter-add", "dot_general", "dynamic_update_slice", "gather", "dynamic_slice", "conj"}


class TimeSum:
    """Sums over the leading axis of what a `Program`'s equations make at every step, for the variables ``outs``.

    ``constants`` holds the values of class CONST. ``operands`` are the variables whose values at every step the sums are made
    from.

    With ``parts`` above 1, for a batch that is split over devices, sums are taken in so many parts of the batch, which lead:
    each device adds up its own part, window after window, and they are joined by one all-reduce when the loop is done
    (`joined`). A sum that has no batch axis is the first part, the others are zero.
    """

    def __init__(self, program: Program, constants: dict[Any, Any], outs: list[Any], parts: int = 1):
        self.program, self.constants, self.parts = program, constants, parts
        self.products = {v for var in outs for v in self._of_products(var)}
        self.operands = unique(v for var in outs for v in self._operands(var) if program.kind_of(v) > CONST)

    def take(self, var: Any, stacked: dict[Any, Any], steps: int) -> Any:
        """The sum of ``var`` over the steps; ``stacked`` has a row a step for each of ``operands``."""
        if self.program.kind_of(var) == CONST:
            value = read(self.constants, var)
            return self._first_part(value * jnp.asarray(steps, jnp.result_type(value)))
        eqn, rule = self._rule(var)
        if rule == ROWS:
            return self._first_part(stacked[var].sum(0))
        if rule == PRODUCT:
            return _product_over_time(*(stacked[v] for v in eqn.invars), parts=self.parts, **eqn.params)
        if rule == BATCH:
            axes = tuple(axis + 1 for axis in eqn.params["axes"])
            return _parted(stacked[eqn.invars[0]], axes[0], self.parts).sum((1, *(axis + 1 for axis in axes)))
        fixed = eqn.primitive.name in SINGLE  # then its other operands are no terms of a sum
        still = [fixed and self.program.kind_of(v) == CONST for v in eqn.invars]
        values = [
            read(self.constants, v) if known else self.take(v, stacked, steps)
            for v, known in zip(eqn.invars, still, strict=True)
        ]

        def bind(*values):
            return eqn.primitive.bind(*values, **eqn.params)

        made = bind(*values) if self.parts == 1 else jax.vmap(bind, [None if known else 0 for known in still])(*values)
        return made[eqn.outvars.index(var)] if eqn.primitive.multiple_results else made

    def joined(self, total: Any) -> Any:
        """The sum of all parts."""
        return total if self.parts == 1 else total.sum(0)

    def _first_part(self, value: Any) -> Any:
        return value if self.parts == 1 else jnp.zeros((self.parts, *value.shape), value.dtype).at[0].set(value)

    def _rule(self, var: Any) -> tuple[Any, str]:
        """How the sum of a variable is taken: row by row unless moving it inwards saves a product's rows."""
        eqn = self.program.maker.get(var)
        if eqn is None or var in self.products:
            return eqn, ROWS
        if _is_product(eqn, self.program):
            return eqn, PRODUCT
        if self.parts > 1 and _sums_a_batch(eqn, self.parts):
            return eqn, BATCH
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
            yield from eqn.invars if rule in (PRODUCT, BATCH) else [var]

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


def _sums_a_batch(eqn: Any, parts: int) -> bool:
    """Whether an equation sums over the first axis, and that can be parted."""
    return eqn.primitive.name == "reduce_sum" and 0 in eqn.params["axes"] and eqn.invars[0].aval.shape[0] % parts == 0


def _parted(rows: Any, axis: int, parts: int) -> Any:
    """``rows`` with ``axis`` in so many equal parts; the axis that counts them leads."""
    apart = rows.reshape(*rows.shape[:axis], parts, rows.shape[axis] // parts, *rows.shape[axis + 1 :])
    return jnp.moveaxis(apart, axis, 0)


def _product_over_time(a: Any, b: Any, *, dimension_numbers: Any, parts: int, **params: Any) -> Any:
    """A dot_general with the leading axis of both operands contracted too; see `TimeSum` for its ``parts``."""
    over, batch = ([tuple(d + 1 for d in dims) for dims in side] for side in dimension_numbers)
    numbers = ([(0, *dims) for dims in over], batch)
    if parts == 1:
        return contract(a, b, dimension_numbers=numbers, **params)
    if not over[0] or a.shape[over[0][0]] % parts:
        whole = contract(a, b, dimension_numbers=numbers, **params)
        return jnp.zeros((parts, *whole.shape), whole.dtype).at[0].set(whole)
    a, b = (_parted(v, dims[0], parts) for v, dims in zip((a, b), over, strict=True))
    numbers = ([tuple(d + 1 for d in dims) for dims in numbers[0]], [(0, *(d + 1 for d in dims)) for dims in batch])
    return contract(a, b, dimension_numbers=numbers, **params)
