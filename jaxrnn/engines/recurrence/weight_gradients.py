"""Sums over time, such as weight gradients, as matmuls over time and batch.

A weight gradient is the sum over steps of ``h_{t-1}^T dz_t``. Computing the terms with
``vmap`` and then summing them would store T matrices. The equations between such a
product and the gradient are linear (`jaxrnn.engines.jaxpr.linearity`), so the sum over
time is moved through them, towards the product, which then becomes one matmul that
contracts time and batch together. A value that is neither such a product nor linear is
stored at every step and summed if it is small. Otherwise the loop adds it up step by
step, as ``jax.lax.scan`` does.
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
import numpy as np
from jax import Array
from jax.extend.core import Literal, Var

from ...core.contraction import contract
from ...core.convolution import (
    can_sum_over_steps,
    contracted_axes,
    sum_over_steps,
    sum_parts_over_steps,
)
from ..jaxpr.dependency_graph import CONST, DependencyGraph
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
    """How the sum of a variable over time is computed.

    Attributes:
        kind: one of

            CONSTANT    the value times the number of steps
            ROWS        the value is stored at every step, and the rows are summed
            LOOP        the loop adds the value up
            PRODUCT     one contraction over time and over what the product contracts
            LINEAR      the equation of the variable, applied to the sums of its terms
            BATCH       the operand of a sum over the batch is stored at every step,
                        and summed over time and over each part of the batch

        eqn: the equation that computes the variable.
        terms: for LINEAR, the positions of the operands that are summed.
        cost: the bytes per step that are written for this sum alone.
    """

    kind: str
    eqn: Any = None
    terms: Sequence[int] = ()
    cost: int = 0


class WeightGradientSum:
    """The sums over time of variables of a `DependencyGraph`.

    Args:
        program: the equations of one step.
        outs: the variables whose sums are wanted.
        at_hand: variables whose values at every step are stored anyway.
        most: the most bytes of a value that may be stored at every step.
        parts: where a batch is split over devices, the number of equal parts of the
            batch in which sums are computed. A leading axis counts the parts: each
            device sums its own, chunk after chunk, and one all-reduce adds them when
            the loop is done (`joined`). A sum without a batch axis is the first part,
            and the others are zero. Running sums of the loop have no parts; they are
            reduced between devices at every step.

    Attributes:
        operands: the variables whose values at every step are needed for the sums.
        products: the variables whose sums are computed by one matmul.
        direct: for each of ``outs``, the terms that the loop adds up and that need
            nothing more.
        indirect: variables that the loop adds up, whose sums then go through linear
            equations.
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
            [v for v in terms if self._rule(v).kind == LOOP] for terms in addends
        ]
        self._rest = [
            [v for v in terms if self._rule(v).kind != LOOP] for terms in addends
        ]
        self._used = self._summed_variables([v for terms in self._rest for v in terms])
        rules = [(var, self._rules[var, exact]) for var, exact in self._used]
        self.indirect = deduplicate(var for var, rule in rules if rule.kind == LOOP)
        self.products = deduplicate(var for var, rule in rules if rule.kind == PRODUCT)
        held = [v for var, rule in rules for v in _held_for(var, rule)]
        self.operands = deduplicate(v for v in held if not self._is_constant(v))

    def take(
        self, constants: dict, stacked: dict, added: dict, steps: int
    ) -> list[Any]:
        """Compute the sums over the steps of a chunk, without the ``direct`` terms.

        Args:
            constants: the values of the variables of class CONST.
            stacked: the values ``(steps, ...)`` of each of ``operands``.
            added: the sum of each of ``indirect``, from the loop.
            steps: the number of steps.

        Returns:
            One sum for each of ``outs``; None where there are ``direct`` terms only.
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
                sums[var, exact] = self._sum_products(rule.eqn, operands, exact)
            elif rule.kind == BATCH:
                # Time leads the rows, so every axis of the equation is one further.
                first, *others = (axis + 1 for axis in rule.eqn.params["axes"])
                rows = _split_axis(stacked[rule.eqn.invars[0]], first, self.parts)
                sums[var, exact] = rows.sum(
                    (1, first + 1, *(axis + 1 for axis in others))
                )
            else:
                sums[var, exact] = self._apply_linear(
                    var, exact, rule, constants, sums, steps
                )
        totals = (
            [self._sum_of(v, False, constants, sums, steps) for v in terms]
            for terms in self._rest
        )
        return [
            functools.reduce(operator.add, terms) if terms else None for terms in totals
        ]

    def _sum_of(
        self, var: Var, exact: bool, constants: dict, sums: dict, steps: int
    ) -> Any:
        """Return the sum of a variable: one from ``sums``, or of a constant."""
        if not self._is_constant(var):
            return sums[var, exact]
        value = read_env(constants, var)
        if self.parts > 1 and _is_zero(self.program, var):
            # XLA drops the addition of plain zeros from the loop, but not of parts. So
            # are the gradients of parameters that the recurrence does not read.
            return jnp.zeros((self.parts, *value.shape), value.dtype)
        return self.first_part(value * jnp.asarray(steps, jnp.result_type(value)))

    def _sum_products(self, eqn: Any, operands: list[Any], exact: bool) -> Any:
        """Return the sum of a product over time.

        A sum of convolutions in half precision that is converted to float32 is made in
        float32. XLA does so by itself for matmuls.
        """
        params = dict(eqn.params)
        over_time: Callable[..., Any]
        parts_over_time: Callable[..., Any]
        if eqn.primitive.name == "dot_general":
            over_time, parts_over_time = _product_over_time, _parts_over_time
            axes = [dims[0] for dims in params["dimension_numbers"][0] if dims]
        else:
            over_time, parts_over_time = sum_over_steps, sum_parts_over_steps
            axes = [*contracted_axes(params)]
            if exact:
                params["preferred_element_type"] = jnp.dtype(jnp.float32)
        # Time leads the operands, so every axis of the equation is one further.
        if self.parts == 1 or not axes or operands[0].shape[axes[0] + 1] % self.parts:
            return self.first_part(over_time(*operands, **params))
        apart = (
            _split_axis(v, axis + 1, self.parts)
            for v, axis in zip(operands, axes, strict=True)
        )
        return parts_over_time(*apart, **params)

    def joined(self, total: Any) -> Any:
        """Add the parts of a sum."""
        return total if self.parts == 1 else total.sum(0)

    def first_part(self, value: Any) -> Any:
        """Return a sum without a batch axis as the first part; the others are zero."""
        return (
            value
            if self.parts == 1
            else jnp.zeros((self.parts, *value.shape), value.dtype).at[0].set(value)
        )

    def _apply_linear(
        self,
        var: Var,
        exact: bool,
        rule: SumRule,
        constants: dict,
        sums: dict,
        steps: int,
    ) -> Any:
        """Apply a linear equation to the sums of its terms."""
        eqn, inner = rule.eqn, exact or is_widening(rule.eqn)
        values = [
            self._sum_of(v, inner, constants, sums, steps)
            if i in rule.terms
            else read_env(constants, v)
            for i, v in enumerate(eqn.invars)
        ]
        if exact:
            values = _of_one_dtype(eqn, values)
        if self.parts == 1:
            return bind_equation(eqn, values)[eqn.outvars.index(var)]
        axes = [0 if i in rule.terms else None for i in range(len(values))]
        return jax.vmap(lambda *values: bind_equation(eqn, values), axes)(*values)[
            eqn.outvars.index(var)
        ]

    def _addends(self, out: Any) -> list[Any]:
        """Return the terms of a variable that ``add_any`` equations add."""
        terms, queue = [], [out]
        while queue:
            var = queue.pop()
            eqn = None if self._is_constant(var) else self.program.maker.get(var)
            if eqn is not None and eqn.primitive.name == "add_any":
                queue += eqn.invars[::-1]
            else:
                terms.append(var)
        return terms

    def _is_constant(self, var: Var) -> bool:
        return self.program.kind_of(var) == CONST

    def _rule(self, var: Var, exact: bool = False) -> SumRule:
        return SumRule(CONSTANT) if self._is_constant(var) else self._rules[var, exact]

    def _find_rules(self, most: float) -> dict[tuple[Any, bool], SumRule]:
        """Find a rule for the sum of each variable, where there is one.

        A key is a variable and a flag, ``exact``: whether the sum is converted to a
        wider dtype afterwards. What rounds must then be done step by step, so only
        products of half precision are summed; see `is_half`.
        """
        rules: dict[tuple[Any, bool], SumRule] = {}
        arguments = [v for v in self.program.jaxpr.invars if not self._is_constant(v)]
        results = [
            v
            for eqn in self.program.eqns
            for v in eqn.outvars
            if not self._is_constant(v)
        ]
        # In this order an equation's operands come before its results.
        for var in [*arguments, *results]:
            eqn = self.program.maker.get(var)
            for exact in (True, False):
                rule = self._find_rule(var, eqn, exact, most, rules)
                if rule is not None:
                    rules[var, exact] = rule
        return rules

    def _find_rule(
        self, var: Var, eqn: Any, exact: bool, most: float, rules: dict
    ) -> SumRule | None:
        """Find the rule for one variable, given the rules of its equation's operands.

        A linear equation is preferred to summing the variable itself if it writes no
        more bytes.
        """
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
            and _sums_over_batch(eqn, self.parts)
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
        if any((v, inner) not in rules for v in changing) or (
            inner and len(changing) < len(terms)
        ):
            return alone
        cost = sum(rules[v, inner].cost for v in changing)
        return (
            SumRule(LINEAR, eqn, terms, cost)
            if alone is None or cost <= alone.cost
            else alone
        )

    def _terms(self, eqn: Any, exact: bool) -> Sequence[int] | None:
        """Return the positions of the operands whose sums give the sum of the results.

        None where the equation is not linear, or where moving the sum through it would
        change a result: float16 may overflow before it is scaled, and under ``exact``
        nothing may be rounded but products.
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
        """Whether an equation is a product of two values that change with time.

        It is a matmul or a convolution without groups of features.
        """
        is_product = eqn.primitive.name == "dot_general" or can_sum_over_steps(eqn)
        return is_product and not any(map(self._is_constant, eqn.invars))

    def _inwards(
        self, outs: Iterable[Any], onwards: Callable[[Any, bool], Iterable[int]]
    ) -> set[tuple[Any, bool]]:
        """Collect the variables that are reached from ``outs``, with their ``exact``.

        ``onwards(var, exact)`` names the positions of the operands to go on with.
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
        """Return the operands of all products that sums reach.

        They are stored at every step anyway.
        """
        maker = self.program.maker

        def onwards(var, exact):
            eqn = maker.get(var)
            return (
                ()
                if eqn is None or self._is_product(eqn)
                else self._terms(eqn, exact) or ()
            )

        reached = self._inwards((v for terms in addends for v in terms), onwards)
        eqns = [maker[var] for var, _ in reached if var in maker]
        return {v for eqn in eqns if self._is_product(eqn) for v in eqn.invars}

    def _summed_variables(self, outs: list[Any]) -> list[tuple[Any, bool]]:
        """Return all variables whose sums are needed, in the order of the equations."""
        reached = self._inwards(outs, lambda var, exact: self._rules[var, exact].terms)
        return [key for key in self._rules if key in reached]


def _held_for(var: Var, rule: SumRule) -> list[Any]:
    """Return the variables that are stored at every step for a sum."""
    if rule.kind in (PRODUCT, BATCH):
        return list(rule.eqn.invars)
    return [var] if rule.kind == ROWS else []


def _sums_over_batch(eqn: Any, parts: int) -> bool:
    """Whether an equation sums over the first axis, which ``parts`` divides."""
    return (
        eqn.primitive.name == "reduce_sum"
        and 0 in eqn.params["axes"]
        and eqn.invars[0].aval.shape[0] % parts == 0
    )


def _of_one_dtype(eqn: Any, values: list[Any]) -> list[Any]:
    """Convert operands of the dtype that a step gives them to the widest they have."""
    given = [v.aval.dtype for v in eqn.invars]
    values = [
        v if isinstance(v, jax.Array) else jnp.asarray(v, d)
        for v, d in zip(values, given, strict=True)
    ]
    widest = {
        dtype: max(
            (v.dtype for v, d in zip(values, given, strict=True) if d == dtype),
            key=lambda d: d.itemsize,
        )
        for dtype in given
    }
    return [v.astype(widest[d]) for v, d in zip(values, given, strict=True)]


def _split_axis(rows: Any, axis: int, parts: int) -> Any:
    """Split an axis into equal parts; the new axis, which counts them, leads."""
    apart = rows.reshape(
        *rows.shape[:axis], parts, rows.shape[axis] // parts, *rows.shape[axis + 1 :]
    )
    return jnp.moveaxis(apart, axis, 0)


def _product_over_time(
    a: Array, b: Array, *, dimension_numbers: Any, **params: Any
) -> Any:
    """Compute a dot_general that contracts the leading axis of both operands, too.

    Args:
        a: the values ``(steps, ...)`` of the first operand.
        b: those of the second one.
        dimension_numbers: those of the dot_general of one step.
        **params: the other parameters of the dot_general.
    """
    over, batch = _further(dimension_numbers, 1)
    numbers = ([(0, *dims) for dims in over], batch)
    return contract(a, b, dimension_numbers=numbers, **params)


def _parts_over_time(
    a: Array, b: Array, *, dimension_numbers: Any, **params: Any
) -> Any:
    """Compute `_product_over_time` for each part, ``(parts, steps, ...)``."""
    over, batch = _further(dimension_numbers, 2)
    numbers = ([(1, *dims) for dims in over], [(0, *dims) for dims in batch])
    return contract(a, b, dimension_numbers=numbers, **params)


def _further(dimension_numbers: Any, count: int) -> Any:
    """Return dimension numbers for operands with some leading axes more."""
    return (
        [tuple(d + count for d in dims) for dims in side] for side in dimension_numbers
    )


def _is_zero(program: DependencyGraph, var: Any) -> bool:
    """Return whether a variable is an array of zeros, written out in the program."""
    if isinstance(var, Literal):
        return not np.any(var.val)
    eqn = program.maker.get(var)
    return (
        eqn is not None
        and eqn.primitive.name == "broadcast_in_dim"
        and _is_zero(program, eqn.invars[0])
    )
