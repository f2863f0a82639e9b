"""The carry of a cell or layer as real vectors, for Jacobians over all of it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .dtypes import accumulator
from .types import Carry, PyTree

WHOLE_CARRY = (
    "every part of the carry must be floating-point (a counter can be a float, or an "
    "input)"
)


def check_inexact(what: str, tree: PyTree, demand: str) -> None:
    """Check that every leaf has a gradient.

    ``what`` names the tree, and ``demand`` states the requirement in the error message.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"{what}{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}, "
                f"through which no gradient flows: {demand}"
            )


def features(carry: Carry, batch_ndim: int) -> Array:
    """Return the carry as real vectors, ``(*B, n)``, in its accumulation dtype.

    The first ``batch_ndim`` axes stay. The leaves follow one another. A complex leaf
    is stored as its real parts followed by its imaginary parts, because a cell need not
    be holomorphic in its carry.
    """
    leaves = [part for leaf in jax.tree.leaves(carry) for part in _real_parts(leaf)]
    dtype = max(
        (accumulator(leaf.dtype) for leaf in leaves), key=lambda d: jnp.finfo(d).bits
    )

    def flat(leaf):  # sizes, since -1 is not known where there are no streams
        batch, rest = leaf.shape[:batch_ndim], leaf.shape[batch_ndim:]
        return leaf.astype(dtype).reshape(*batch, math.prod(rest))

    return jnp.concatenate(list(map(flat, leaves)), axis=-1)


def _real_parts(leaf: Array) -> list[Array]:
    """Return the real and the imaginary part of a complex leaf, or the leaf itself."""
    return [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]


def from_features(vectors: Array, like: Carry, batch_ndim: int) -> Carry:
    """Convert vectors ``(..., n)`` back to a carry: the inverse of `features`.

    Each leaf gets the trailing axes (after ``batch_ndim``) and the dtype of ``like``.
    """
    leaves, structure = jax.tree.flatten(like)
    parts, offset = [], 0

    def take(leaf):
        nonlocal offset
        size = math.prod(leaf.shape[batch_ndim:])
        offset += size
        return vectors[..., offset - size : offset].reshape(
            *vectors.shape[:-1], *leaf.shape[batch_ndim:]
        )

    for leaf in leaves:
        pieces = [take(leaf) for _ in _real_parts(leaf)]
        parts.append(
            (jax.lax.complex(*pieces) if jnp.iscomplexobj(leaf) else pieces[0]).astype(
                leaf.dtype
            )
        )
    return jax.tree.unflatten(structure, parts)


def size_of(carry: Carry, batch_ndim: int) -> int:
    """Return n, the number of real numbers in the carry of one sequence."""
    return sum(
        math.prod(leaf.shape[batch_ndim:]) * (2 if jnp.iscomplexobj(leaf) else 1)
        for leaf in jax.tree.leaves(carry)
    )
