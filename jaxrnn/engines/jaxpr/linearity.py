"""The operands in which each primitive is linear, so that a sum may move through it.

For an equation ``y_t = f(x_t, c)``, where ``x_t`` are its *terms* and ``c`` its other
operands, the sum over time moves through the equation, ``sum_t y_t = f(sum_t x_t, c)``,
if

- ``f`` is linear in all its terms jointly, and
- all other operands (a predicate, an index, a factor, a matrix) are constants.

A term may be constant too. It is then summed like the others, T times itself:
``sum_t (x_t + c) = sum_t x_t + T c``, and likewise for a constant case of a
``select_n`` or the constant operand of a ``scatter-add``.

`linear_operands` decides this for each primitive by the tables below. A primitive that
is not in them is not taken to be linear in anything. Neither is a conversion that
rounds, with one exception for products in half precision; see `is_half`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import JaxprEqn
from jax.typing import DTypeLike

Terms = Sequence[int] | None

# Primitives that are linear in all operands jointly.
ALL = (
    "add_any add sub neg concatenate pad transpose reshape broadcast_in_dim squeeze "
    "expand_dims slice split reduce_sum cumsum"
)
ALL += " rev copy copy_p name real imag complex conj"
# Primitives that are linear in these operands jointly; the others must be constants.
SOME = {
    "select_n": lambda count: range(1, count),  # but not in the predicate
    "scatter-add": lambda count: (0, 2),  # operand, indices, updates
    "dynamic_update_slice": lambda count: (0, 1),  # operand, update, start indices
    "dynamic_slice": lambda count: (0,),
    "gather": lambda count: (0,),
    "div": lambda count: (0,),
    "triangular_solve": lambda count: (1,),  # matrix, right-hand side
}
# Primitives that are linear in one operand if the other one is a constant.
PRODUCTS = ("mul", "dot_general", "conv_general_dilated")


def linear_operands(eqn: JaxprEqn, is_constant: Callable[[Any], bool]) -> Terms:
    """Return the positions of the operands in which an equation is jointly linear.

    Args:
        eqn: the equation.
        is_constant: whether a variable or literal does not change with time.

    Returns:
        The positions, or None if the equation is not linear, if some other operand is
        not a constant, or if no operand changes with time.
    """
    name, count = eqn.primitive.name, len(eqn.invars)
    if name in ALL.split():
        terms: Sequence[int] = range(count)
    elif name in SOME:
        terms = SOME[name](count)
    elif name in PRODUCTS:
        terms = [i for i, v in enumerate(eqn.invars) if not is_constant(v)]
        if len(terms) != 1:
            return None
    elif name == "convert_element_type":
        terms = (0,) if _keeps_kind(eqn) else ()
    elif name in ("linear_solve", "custom_linear_solve"):
        terms = range(sum(eqn.params["const_lengths"]), count)
    else:
        return None
    if name == "gather" and not _has_linear_fill(eqn):
        return None
    others = [v for i, v in enumerate(eqn.invars) if i not in terms]
    changes = any(not is_constant(eqn.invars[i]) for i in terms)
    return tuple(terms) if changes and all(map(is_constant, others)) else None


def _has_linear_fill(eqn: JaxprEqn) -> bool:
    """Whether what a gather returns for an index out of bounds is linear.

    It is an element of the operand, zero, or NaN.
    """
    fill = eqn.params.get("fill_value")
    return fill is None or fill == 0 or fill != fill


def _keeps_kind(eqn: Any) -> bool:
    """Whether a conversion is between floating-point or complex dtypes.

    From a complex to a real dtype it returns the real part, which is linear.
    """
    return all(
        jnp.issubdtype(v.aval.dtype, jnp.inexact)
        for v in (eqn.invars[0], eqn.outvars[0])
    )


def is_rounding(eqn: JaxprEqn) -> bool:
    """Whether an equation converts to a dtype of fewer digits or a smaller range."""
    return _compare_dtypes(
        eqn, lambda old, new: new.nmant < old.nmant or new.maxexp < old.maxexp
    )


def is_widening(eqn: JaxprEqn) -> bool:
    """Whether an equation converts to a dtype of more digits or a larger range."""
    return _compare_dtypes(
        eqn, lambda old, new: new.nmant > old.nmant or new.maxexp > old.maxexp
    )


def _compare_dtypes(eqn: Any, compare: Callable[[Any, Any], bool]) -> bool:
    """Apply ``compare`` to the ``finfo`` of a conversion's two floating dtypes."""
    if eqn is None or eqn.primitive.name != "convert_element_type":
        return False
    old, new = (v.aval.dtype for v in (eqn.invars[0], eqn.outvars[0]))
    if not (jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact)):
        return False
    return compare(jnp.finfo(old), jnp.finfo(new))


def is_half(eqn: Any) -> bool:
    """Whether an operand or result of an equation is bfloat16, or a narrower dtype.

    Mixed precision multiplies in half precision and continues in float32. The sum over
    time of such products is computed as one product that is rounded once, where
    ``jax.lax.scan`` rounds the product of every step. That is closer to the exact sum,
    and it is why mixed precision is fast. Float32 inside float64 is summed as in
    ``jax.lax.scan``, and so is float16, because a sum may exceed its range.
    """
    return any(
        dtype.itemsize <= 2 and not has_short_range(dtype)
        for dtype in (v.aval.dtype for v in (*eqn.invars, *eqn.outvars))
    )


def has_short_range(dtype: DTypeLike) -> bool:
    """Whether sums of a dtype overflow where those of float32 do not, as in float16."""
    return (
        jnp.issubdtype(dtype, jnp.inexact)
        and jnp.finfo(dtype).maxexp < jnp.finfo(jnp.float32).maxexp
    )


def is_scaling(eqn: JaxprEqn) -> bool:
    """Whether the result of an equation may be finite where the sum itself is not."""
    return eqn.primitive.name in (
        *PRODUCTS,
        "div",
        "triangular_solve",
        "linear_solve",
        "custom_linear_solve",
    )


def is_rounded_product(eqn: Any, maker: dict[Any, Any]) -> bool:
    """Whether a conversion rounds a product of narrow matrices to their dtype again.

    It occurs in the transpose of ``dot_general(..., preferred_element_type=wide)``. The
    sum over time continues in the wide dtype and is rounded once.
    """
    narrow, var = eqn.outvars[0].aval.dtype, eqn.invars[0]
    while not isinstance(var, core.Literal) and (source := maker.get(var)) is not None:
        if source.primitive.name == "dot_general":
            return any(v.aval.dtype == narrow for v in source.invars)
        if source.primitive.name not in (
            "transpose",
            "reshape",
            "squeeze",
            "expand_dims",
            "copy",
        ):
            return False
        var = source.invars[0]
    return False
