"""What each primitive is linear in: where a sum over time may move through it.

A sum over steps moves through an equation if the equation is linear, jointly, in all
those of its operands that change from step to step *and* in the constants among them
that are terms of the same sum: ``sum_t (x_t + c) = sum_t x_t + T c``, and alike for the
constant case of a ``select_n`` or the constant operand of a ``scatter-add``.
`linear_operands` names the operands that are terms; all the others, a predicate, an
index, a factor, a matrix, must be constants. A primitive without an entry here is not
taken to be linear in anything, and neither is one that rounds, but for sums of products
in half precision: see `is_half`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core

Terms = Sequence[int] | None

# Linear in all operands together.
ALL = (
    "add_any add sub neg concatenate pad transpose reshape broadcast_in_dim squeeze "
    "expand_dims slice split reduce_sum cumsum"
)
ALL += " rev copy copy_p real imag complex conj"
# Linear in these operands together, where all the others are constants.
SOME = {
    "select_n": lambda count: range(1, count),  # but not in the predicate
    "scatter-add": lambda count: (0, 2),  # operand, indices, updates
    "dynamic_update_slice": lambda count: (0, 1),  # operand, update, start indices
    "dynamic_slice": lambda count: (0,),
    "gather": lambda count: (0,),
    "div": lambda count: (0,),
    "triangular_solve": lambda count: (1,),  # matrix, right-hand side
}
PRODUCTS = (
    "mul",
    "dot_general",
    "conv_general_dilated",
)  # linear in one operand where the other is a constant


def linear_operands(eqn: Any, is_constant: Callable[[Any], bool]) -> Terms:
    """Positions of the operands in which an equation is linear together, all others
    being constants; None if in none.
    """
    name, count = eqn.primitive.name, len(eqn.invars)
    if name in ALL.split():
        found: Sequence[int] = range(count)
    elif name in SOME:
        found = SOME[name](count)
    elif name in PRODUCTS:
        found = [i for i, v in enumerate(eqn.invars) if not is_constant(v)]
        if len(found) != 1:
            return None
    elif name == "convert_element_type":
        found = (0,) if _keeps_kind(eqn) else ()
    elif name in ("linear_solve", "custom_linear_solve"):
        found = range(sum(eqn.params["const_lengths"]), count)
    else:
        return None
    if name == "gather" and not _fills_with_nothing(eqn):
        return None
    others = [v for i, v in enumerate(eqn.invars) if i not in found]
    changes = any(not is_constant(eqn.invars[i]) for i in found)
    return tuple(found) if changes and all(map(is_constant, others)) else None


def _fills_with_nothing(eqn: Any) -> bool:
    """What a gather gives for an index out of bounds is an element, zero, or NaN:
    each sums to what the sum gives.
    """
    fill = eqn.params.get("fill_value")
    return fill is None or fill == 0 or fill != fill


def _keeps_kind(eqn: Any) -> bool:
    """A conversion between real and complex numbers; of a complex one to a real one,
    it is the real part.
    """
    return all(
        jnp.issubdtype(v.aval.dtype, jnp.inexact)
        for v in (eqn.invars[0], eqn.outvars[0])
    )


def is_rounding(eqn: Any) -> bool:
    """Whether an equation is a conversion to fewer digits or a smaller range."""
    return _digits(
        eqn, lambda old, new: new.nmant < old.nmant or new.maxexp < old.maxexp
    )


def is_widening(eqn: Any) -> bool:
    """Whether an equation is a conversion to more digits or a larger range."""
    return _digits(
        eqn, lambda old, new: new.nmant > old.nmant or new.maxexp > old.maxexp
    )


def _digits(eqn: Any, compare: Callable[[Any, Any], bool]) -> bool:
    if eqn is None or eqn.primitive.name != "convert_element_type":
        return False
    old, new = (v.aval.dtype for v in (eqn.invars[0], eqn.outvars[0]))
    if not (jnp.issubdtype(old, jnp.inexact) and jnp.issubdtype(new, jnp.inexact)):
        return False
    return compare(jnp.finfo(old), jnp.finfo(new))


def is_half(eqn: Any) -> bool:
    """Whether an operand or an output of an equation is bfloat16, or as narrow with the
    range of float32.

    Mixed precision multiplies in half precision and goes on in float32. The sum over
    time of such products is one product, rounded once, where ``jax.lax.scan`` rounds
    every step's: nearer to the exact sum, and the reason why mixed precision is fast.
    Float32 inside float64 is summed as ``jax.lax.scan`` does it, and so is float16,
    whose range a sum may leave.
    """
    return any(
        dtype.itemsize <= 2 and not has_short_range(dtype)
        for dtype in (v.aval.dtype for v in (*eqn.invars, *eqn.outvars))
    )


def has_short_range(dtype: Any) -> bool:
    """Whether sums of a dtype overflow where those of float32 do not: float16."""
    return (
        jnp.issubdtype(dtype, jnp.inexact)
        and jnp.finfo(dtype).maxexp < jnp.finfo(jnp.float32).maxexp
    )


def is_scaling(eqn: Any) -> bool:
    """Whether what an equation makes of a sum may be in range where the sum itself
    is not.
    """
    return eqn.primitive.name in (
        *PRODUCTS,
        "div",
        "triangular_solve",
        "linear_solve",
        "custom_linear_solve",
    )


def is_rounded_product(eqn: Any, maker: dict[Any, Any]) -> bool:
    """Whether a conversion gives a product of narrow matrices, summed in wide numbers,
    the narrow dtype again: the transpose of ``dot_general(...,
    preferred_element_type=wide)``. The sum over time then goes on in wide numbers and
    is rounded once.
    """
    narrow, var = eqn.outvars[0].aval.dtype, eqn.invars[0]
    while not isinstance(var, core.Literal) and (made := maker.get(var)) is not None:
        if made.primitive.name == "dot_general":
            return any(v.aval.dtype == narrow for v in made.invars)
        if made.primitive.name not in (
            "transpose",
            "reshape",
            "squeeze",
            "expand_dims",
            "copy",
        ):
            return False
        var = made.invars[0]
    return False
