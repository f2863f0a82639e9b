"""A loop's arrays as a GPU's kernel with a matrix takes them: tiles of rows, and
float32 in bfloat16 terms.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .block_form import BlockProgram, precision_of
from .layout import Layout, every_row, padded_matrix


def num_bf16_splits(form: BlockProgram, var: Any) -> int:
    """bfloat16 terms that stand for a number of a matrix and of what it is multiplied
    with.

    One for a bfloat16 matrix. For a float32 one two, whose three largest products err
    by 2^-16 where TF32 errs by 2^-10; three and six products, which is float32, where
    the product's precision is "high" or "highest".
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
    """bfloat16 arrays that add up to ``value``: its leading 8 bits, the next 8, and
    so on; the last is rounded.
    """
    found = []
    for _ in range(terms - 1):
        bits = jax.lax.bitcast_convert_type(value, jnp.uint32) & jnp.uint32(0xFFFF0000)
        leading = jax.lax.bitcast_convert_type(bits, jnp.float32)
        found.append(leading.astype(jnp.bfloat16))
        value = jnp.where(jnp.abs(leading) < jnp.inf, value - leading, 0.0)
    return [*found, value.astype(jnp.bfloat16)]


def transposed_blocks(matrix: Any, over: int, form: BlockProgram, width: int) -> Any:
    """``(m, k, width out, width in)`` of the transposed matrix."""
    wide = padded_matrix(matrix, over, form, width)
    k, m = (d // width for d in wide.shape)
    return wide.reshape(k, width, m, width).transpose(2, 0, 3, 1)


def to_tiles(
    a: Any, var: Any, form: BlockProgram, layout: Layout, *, time: bool
) -> Any:
    """``(tiles, T, k, width, rows)``, or without ``time`` ``(tiles, k, width,
    rows)``: what a tile reads lies together.
    """
    wide = every_row(a, var, form, layout, time=time)
    wide = wide.reshape(*wide.shape[:-2], layout.tiles, layout.rows, -1, layout.width)
    return jnp.transpose(wide, (1, 0, 3, 4, 2) if time else (0, 2, 3, 1))


def from_tiles(a: Any) -> Any:
    """The inverse: ``(T, padded rows, k width)``."""
    a = jnp.transpose(a, (1, 0, 4, 2, 3) if a.ndim == 5 else (0, 3, 1, 2))
    a = a.reshape(*a.shape[:-2], -1)
    return a.reshape(*a.shape[:-3], -1, a.shape[-1])
