"""Sums over time of values that were made step by step, without holding one large value
a step.

A weight gradient is the sum over steps of ``h_{t-1}^T dz_t``. Mapped over time and
summed, as ``vmap`` would have it, it is T matrices first. But what stands between such
a product and the gradient is linear (`jaxrnn.engines.jaxpr.linearity`), so the sum
moves inwards until it meets the product, and becomes one matmul over time and batch.
What is no such product, and not linear, is summed row by row if its rows are small,
else added up step by step inside the loop, as ``jax.lax.scan`` does.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...core.contraction import contract
from ..jaxpr.evaluate import bind_equation, deduplicate, nbytes, read_env
from ..jaxpr.linearity import (
    has_short_range,
    is_half,
    is_rounded_product,
    is_rounding,
    is_scaling,
    is_widening,
    linear_operands,
)
from ..jaxpr.step_program import CONST, DependencyGraph

CONSTANT, ROWS, LOOP, PRODUCT, LINEAR, BATCH = (
    "constant",
    "rows",
    "loop",
    "product",
    "linear",
    "batch",
)


@dataclasses.dataclass(frozen=True)
class SumRule:
    """How the sum of a variable over time is taken, and the bytes a step that are
    written for it alone.

    CONSTANT   times the number of steps ROWS       its value at every step is held, and
    summed LOOP       added up in the loop PRODUCT    one contraction over time and all
    that the product contracts LINEAR     its equation, of the sums of its ``terms``
    BATCH      what it sums over the batch is held at every step, and summed over time
    and batch, each part of it by itself
    """

    kind: str
    eqn: Any = None
    terms: Sequence[int] = ()
    cost: int = 0


class WeightGradientSum:
    """Sums over the leading axis of what a `DependencyGraph`'s equations make at every
    step, for the variables ``outs``.

    Args:
        at_hand: variables whose values at every step are held anyway.
        most: bytes of a value of which a row for every step may be held.
        parts: where a batch is split over devices, the number of equal parts of the
            batch in which sums are taken. The parts lead: each device adds up its own,
            window after window, and one all-reduce joins them when the loop is done
            (`joined`). A sum that has no batch axis is the first part, the others are
            zero. What the loop adds up is no such sum, and is joined at every step.

    ``operands`` are the variables whose values at every step the sums are made from,
    ``products`` those that are made by one product. The loop adds up the ``direct``
    variables of each out, whose sum is nothing more, and the ``indirect`` ones, whose
    sums go through linear equations first.
    """

    def __init__(
        self,
        program: DependencyGraph,
        outs: list[Any],
        at_hand: Iterable[Any] = (),
        most: float = math.inf,
        parts: int = 1,
    ):
        self.program, self.parts = program, parts
        addends = [self._addends(var) for var in outs]
        self._at_hand = {*at_hand, *self._operands_of_products(addends)}
        self._rules = self._find_rules(most)
        self.direct = [
            [v for v in each if self._rule(v).kind == LOOP] for each in addends
        ]
        self._rest = [
            [v for v in each if self._rule(v).kind != LOOP] for each in addends
        ]
        self._used = self._met_on_the_way([v for each in self._rest for v in each])
        rules = [(var, self._rules[var, exact]) for var, exact in self._used]
        self.indirect = deduplicate(var for var, rule in rules if rule.kind == LOOP)
        self.products = deduplicate(var for var, rule in rules if rule.kind == PRODUCT)
        held = [v for var, rule in rules for v in _held_for(var, rule)]
        self.operands = deduplicate(v for v in held if not self._is_constant(v))

    def take(
        self, constants: dict, stacked: dict, added: dict, steps: int
    ) -> list[Any]:
        """The sums over ``steps`` steps, each without its ``direct`` part; None where
        there is nothing else.

        Args:
            constants: the values of class CONST.
            stacked: a row a step for each of ``operands``.
            added: the sum of each of ``indirect``.
        """
        sums: dict[tuple[Any, bool], Any] = {}
        for var, exact in self._used:  # in the order of the equations
            rule = self._rules[var, exact]
            if rule.kind == ROWS:
                sums[var, exact] = self.first_part(stacked[var].sum(0))
            elif rule.kind == LOOP:
                sums[var, exact] = self.first_part(added[var].astype(var.aval.dtype))
            elif rule.kind == PRODUCT:
                operands = [stacked[v] for v in rule.eqn.invars]
                sums[var, exact] = _product_over_time(
                    *operands, parts=self.parts, **rule.eqn.params
                )
            elif rule.kind == BATCH:
                first, *others = (
                    axis + 1 for axis in rule.eqn.params["axes"]
                )  # of rows in time
                rows = _parted(stacked[rule.eqn.invars[0]], first, self.parts)
                sums[var, exact] = rows.sum(
                    (1, first + 1, *(axis + 1 for axis in others))
                )
            else:
                sums[var, exact] = self._through(
                    var, exact, rule, constants, sums, steps
                )
        totals = (
            [self._sum_of(v, False, constants, sums, steps) for v in each]
            for each in self._rest
        )
        return [
            functools.reduce(operator.add, each) if each else None for each in totals
        ]

    def _sum_of(
        self, var: Any, exact: bool, constants: dict, sums: dict, steps: int
    ) -> Any:
        if not self._is_constant(var):
            return sums[var, exact]
        value = read_env(constants, var)
        return self.first_part(value * jnp.asarray(steps, jnp.result_type(value)))

    def joined(self, total: Any) -> Any:
        """The sum of all parts."""
        return total if self.parts == 1 else total.sum(0)

    def first_part(self, value: Any) -> Any:
        """A sum without parts, as the first of them."""
        return (
            value
            if self.parts == 1
            else jnp.zeros((self.parts, *value.shape), value.dtype).at[0].set(value)
        )

    def _through(
        self,
        var: Any,
        exact: bool,
        rule: SumRule,
        constants: dict,
        sums: dict,
        steps: int,
    ) -> Any:
        """The sum through a linear equation."""
        eqn, inner = rule.eqn, exact or is_widening(rule.eqn)
        values = [
            self._sum_of(v, inner, constants, sums, steps)
            if i in rule.terms
            else read_env(constants, v)
            for i, v in enumerate(eqn.invars)
        ]
        if self.parts == 1:
            return bind_equation(eqn, values)[eqn.outvars.index(var)]
        axes = [0 if i in rule.terms else None for i in range(len(values))]
        return jax.vmap(lambda *values: bind_equation(eqn, values), axes)(*values)[
            eqn.outvars.index(var)
        ]

    def _addends(self, out: Any) -> list[Any]:
        """The variables whose sum ``out`` is."""
        found, queue = [], [out]
        while queue:
            var = queue.pop()
            eqn = None if self._is_constant(var) else self.program.maker.get(var)
            if eqn is not None and eqn.primitive.name == "add_any":
                queue += eqn.invars[::-1]
            else:
                found.append(var)
        return found

    def _is_constant(self, var: Any) -> bool:
        return self.program.kind_of(var) == CONST

    def _rule(self, var: Any, exact: bool = False) -> SumRule:
        return SumRule(CONSTANT) if self._is_constant(var) else self._rules[var, exact]

    def _find_rules(self, most: float) -> dict[tuple[Any, bool], SumRule]:
        """How the sum of every variable is taken, if it is.

        With ``exact``, the sum is widened afterwards, so that what rounds must be done
        step by step: only sums of products of half precision are taken there.
        """
        found: dict[tuple[Any, bool], SumRule] = {}
        given = [v for v in self.program.jaxpr.invars if not self._is_constant(v)]
        made = [
            v
            for eqn in self.program.eqns
            for v in eqn.outvars
            if not self._is_constant(v)
        ]
        for var in [*given, *made]:  # what an equation reads comes before what it makes
            eqn = self.program.maker.get(var)
            for exact in (True, False):
                found_rule = self._find_rule(var, eqn, exact, most, found)
                if found_rule is not None:
                    found[var, exact] = found_rule
        return found

    def _find_rule(
        self, var: Any, eqn: Any, exact: bool, most: float, found: dict
    ) -> SumRule | None:
        if (
            eqn is not None
            and self._is_product(eqn)
            and (not exact or is_half(eqn))
            and var not in self._at_hand
        ):
            return SumRule(PRODUCT, eqn)
        if var in self._at_hand:
            return None if exact else SumRule(ROWS, eqn)
        if (
            not exact
            and self.parts > 1
            and eqn is not None
            and _sums_a_batch(eqn, self.parts)
        ):
            return SumRule(BATCH, eqn)
        alone = (
            None
            if exact
            else SumRule(LOOP if nbytes(var) > most else ROWS, eqn, cost=nbytes(var))
        )
        terms = self._terms(eqn, exact)
        if terms is None:
            return alone
        inner = exact or is_widening(eqn)
        changing = [
            eqn.invars[i] for i in terms if not self._is_constant(eqn.invars[i])
        ]
        if any((v, inner) not in found for v in changing) or (
            inner and len(changing) < len(terms)
        ):
            return alone
        cost = sum(found[v, inner].cost for v in changing)
        return (
            SumRule(LINEAR, eqn, terms, cost)
            if alone is None or cost <= alone.cost
            else alone
        )

    def _terms(self, eqn: Any, exact: bool) -> Sequence[int] | None:
        """The operands through whose sums the sum of an equation's outputs goes, if
        the equation is linear in them.
        """
        terms = None if eqn is None else linear_operands(eqn, self._is_constant)
        if (
            terms is not None
            and is_scaling(eqn)
            and any(has_short_range(eqn.invars[i].aval.dtype) for i in terms)
        ):
            return None
        if terms is None or (
            exact
            and is_rounding(eqn)
            and not is_rounded_product(eqn, self.program.maker)
        ):
            return None
        return terms

    def _is_product(self, eqn: Any) -> bool:
        return eqn.primitive.name == "dot_general" and not any(
            map(self._is_constant, eqn.invars)
        )

    def _inwards(
        self, outs: Iterable[Any], onwards: Callable[[Any, bool], Iterable[int]]
    ) -> set[tuple[Any, bool]]:
        """All that is met from ``outs`` through those operands of each variable's
        equation that ``onwards`` names.
        """
        seen: set[tuple[Any, bool]] = set()
        queue = [(v, False) for v in outs]
        while queue:
            var, exact = queue.pop()
            if self._is_constant(var) or (var, exact) in seen:
                continue
            seen.add((var, exact))
            eqn: Any = self.program.maker.get(var)
            queue += [
                (eqn.invars[i], exact or is_widening(eqn)) for i in onwards(var, exact)
            ]
        return seen

    def _operands_of_products(self, addends: list[list[Any]]) -> set[Any]:
        """The operands of all the products that sums would reach; they are needed at
        every step anyway.
        """
        maker = self.program.maker

        def onwards(var, exact):
            eqn = maker.get(var)
            return (
                ()
                if eqn is None or self._is_product(eqn)
                else self._terms(eqn, exact) or ()
            )

        met = self._inwards((v for each in addends for v in each), onwards)
        eqns = [maker[var] for var, _ in met if var in maker]
        return {v for eqn in eqns if self._is_product(eqn) for v in eqn.invars}

    def _met_on_the_way(self, outs: list[Any]) -> list[tuple[Any, bool]]:
        """The variables whose sums are taken for those of ``outs``, in the order of
        the equations.
        """
        met = self._inwards(outs, lambda var, exact: self._rules[var, exact].terms)
        return [key for key in self._rules if key in met]


def _held_for(var: Any, rule: SumRule) -> list[Any]:
    """What is held at every step for the sum of a variable."""
    if rule.kind in (PRODUCT, BATCH):
        return list(rule.eqn.invars)
    return [var] if rule.kind == ROWS else []


def _sums_a_batch(eqn: Any, parts: int) -> bool:
    """Whether an equation sums over the first axis, and that can be parted."""
    return (
        eqn.primitive.name == "reduce_sum"
        and 0 in eqn.params["axes"]
        and eqn.invars[0].aval.shape[0] % parts == 0
    )


def _parted(rows: Any, axis: int, parts: int) -> Any:
    """``rows`` with ``axis`` in so many equal parts; the axis that counts them
    leads.
    """
    apart = rows.reshape(
        *rows.shape[:axis], parts, rows.shape[axis] // parts, *rows.shape[axis + 1 :]
    )
    return jnp.moveaxis(apart, axis, 0)


def _product_over_time(
    a: Any, b: Any, *, dimension_numbers: Any, parts: int, **params: Any
) -> Any:
    """A dot_general with the leading axis of both operands contracted too; see
    `WeightGradientSum` for its ``parts``.
    """
    over, batch = (
        [tuple(d + 1 for d in dims) for dims in side] for side in dimension_numbers
    )
    numbers = ([(0, *dims) for dims in over], batch)
    if parts == 1:
        return contract(a, b, dimension_numbers=numbers, **params)
    if not over[0] or a.shape[over[0][0]] % parts:
        whole = contract(a, b, dimension_numbers=numbers, **params)
        return jnp.zeros((parts, *whole.shape), whole.dtype).at[0].set(whole)
    a, b = (_parted(v, dims[0], parts) for v, dims in zip((a, b), over, strict=True))
    numbers = (
        [tuple(d + 1 for d in dims) for dims in numbers[0]],
        [(0, *(d + 1 for d in dims)) for dims in batch],
    )
    return contract(a, b, dimension_numbers=numbers, **params)
