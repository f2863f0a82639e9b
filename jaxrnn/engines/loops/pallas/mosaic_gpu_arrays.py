"""Conversion of a loop's arrays for GPU kernels with a matrix.

Rows are cut into tiles, and float32 numbers are split into bfloat16 terms.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Var

from .block_form import BlockProgram, precision_of
from .layout import Layout, every_row, padded_matrix


def num_bf16_splits(form: BlockProgram, var: Any) -> int:
    """Return the number of bfloat16 terms that a matrix and its operand are split into.

    It is one for a bfloat16 matrix. For a float32 matrix it is two, whose three largest
    products have an error of 2^-16 (TF32: 2^-10); or three, whose six largest products
    have the precision of float32, if the product's precision is "high" or "highest".
    """
    if var.aval.dtype == jnp.bfloat16:
        return 1
    if var.aval.dtype != jnp.float32:
        raise ValueError(
            f"Fused: a GPU's matrix unit takes float32 and bfloat16, but the "
            f"parameters are {var.aval.dtype}"
        )
    return (
        2
        if all(
            precision_of(eqn) == "default"
            for eqn in form.products
            if eqn.invars[1] is var
        )
        else 3
    )


def split_bf16(value: Any, terms: int) -> list[Any]:
    """Split float32 numbers into bfloat16 terms that add up to them.

    The terms are the leading 8 bits, the next 8, and so on; the last is rounded.
    """
    split = []
    for _ in range(terms - 1):
        bits = jax.lax.bitcast_convert_type(value, jnp.uint32) & jnp.uint32(0xFFFF0000)
        leading = jax.lax.bitcast_convert_type(bits, jnp.float32)
        split.append(leading.astype(jnp.bfloat16))
        value = jnp.where(jnp.abs(leading) < jnp.inf, value - leading, 0.0)
    return [*split, value.astype(jnp.bfloat16)]


def transposed_blocks(matrix: Any, over: int, form: BlockProgram, width: int) -> Any:
    """Return the blocks of the transposed matrix, ``(m, k, width out, width in)``."""
    wide = padded_matrix(matrix, over, form, width)
    k, m = (d // width for d in wide.shape)
    return wide.reshape(k, width, m, width).transpose(2, 0, 3, 1)


def to_tiles(
    a: Array, var: Var, form: BlockProgram, layout: Layout, *, time: bool
) -> Any:
    """Convert an array so that what a tile reads is contiguous.

    Returns ``(tiles, T, k, width, rows)``, or ``(tiles, k, width, rows)`` unless
    ``time``.
    """
    wide = every_row(a, var, form, layout, time=time)
    wide = wide.reshape(*wide.shape[:-2], layout.tiles, layout.rows, -1, layout.width)
    return jnp.transpose(wide, (1, 0, 3, 4, 2) if time else (0, 2, 3, 1))


def from_tiles(a: Array) -> Any:
    """Invert `to_tiles`: return ``(T, padded rows, k width)``."""
    a = jnp.transpose(a, (1, 0, 4, 2, 3) if a.ndim == 5 else (0, 3, 1, 2))
    a = a.reshape(*a.shape[:-2], -1)
    return a.reshape(*a.shape[:-3], -1, a.shape[-1])
