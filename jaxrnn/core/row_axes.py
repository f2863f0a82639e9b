"""The check that a carry has one entry for each row of the batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from .types import Carry


def check_rows(
    name: str,
    carry: Carry,
    wider: Any,
    batch: tuple[int, ...],
    why: str,
    *,
    floats: bool = False,
) -> None:
    """Check that every part of a carry has one entry for each row of the batch.

    Its leading axes must be ``batch``. So that axes of the same size by coincidence are
    found out, a second carry is given whose batch axes are one larger each.

    Args:
        name: the name of the cell.
        carry: a carry for the batch axes ``batch``.
        wider: a carry for batch axes that are one larger each.
        batch: the batch axes.
        why: what needs one entry for each row; it follows the name in the error.
        floats: whether only floating-point parts are checked.

    Raises:
        ValueError: the error names the part.
    """
    for (path, leaf), wider_leaf in zip(
        jax.tree_util.tree_leaves_with_path(carry), jax.tree.leaves(wider), strict=True
    ):
        if floats and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        shape, leading = tuple(leaf.shape), tuple(leaf.shape[: len(batch)])
        if leading == tuple(batch) and tuple(wider_leaf.shape) == (
            *(n + 1 for n in batch),
            *shape[len(batch) :],
        ):
            continue
        part = (
            f"part {jax.tree_util.keystr(path)} of the carry" if path else "the carry"
        )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) or (
            leaf.dtype == "uint32" and shape[-1:] in ((2,), (4,))
        ):
            repair = "a key for each row is jax.random.split(key, batch_shape)"
        else:
            repair = (
                "begin its shape with batch_shape, as jnp.zeros((*batch_shape, ...), "
                "dtype) does"
            )
        raise ValueError(
            f"{name}: {why} holds the carry of each row by itself, but {part} has "
            f"shape {shape} whatever the batch axes are (here {tuple(batch)}), so it "
            f"does not have one entry for each row: in {name}.initial_carry(params, "
            f"batch_shape, dtype) {repair}"
        )
