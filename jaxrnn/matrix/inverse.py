"""The inverse of a unit lower triangular matrix, by halves.

``(I - A)^-1`` of a strictly lower A is what the delta rule needs: within a chunk, what
one step erases depends on what earlier steps wrote. Halving is as stable as
substitution and consists of matrix products. The product ``(I + A)(I + A^2)(I +
A^4)...`` would be shorter, and is right in exact arithmetic; but its terms grow like
binomial coefficients where keys resemble each other, and cancel: in float32 nothing is
left after 64 equal keys.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

BASE = 8  # rows up to which whole blocks are multiplied

# A matrix product in full precision on every platform. What is solved for here, and
# what is summed over all of time, would otherwise lose digits that nothing restores.
exact_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def inverse_of_one_minus(A: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """Return ``(I - A)^-1`` for a strictly lower triangular A; C is a power of two.

    A single row has nothing below its diagonal, so that its inverse is 1 and does not
    depend on A. It needs no rule, and `jax.vmap` of a rule whose result does not depend
    on its argument has no transpose.
    """
    return jnp.ones_like(A) if A.shape[-1] == 1 else _inverse(A)


@jax.custom_jvp
def _inverse(A: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """Return ``(I - A)^-1`` of two rows and more.

    With T1 and T2 the inverses of the two halves, that of the whole is
    ``[[T1, 0], [T2 A21 T1, T2]]``. Up to 8 rows this is done in place, by products of
    whole blocks: with T of the two halves and zero elsewhere it is ``T + T A21 T``.
    """
    size = A.shape[-1]
    base = min(size, BASE)
    T = _inverse_in_place(_diagonal_blocks(A, base))
    half = base
    while half < size:
        T1, T2 = _pairs(T)
        _, below = _split_rows(_diagonal_blocks(A, 2 * half))
        below = exact_matmul(exact_matmul(T2, below), T1)
        T = join_blocks(T1, below, T2)
        half *= 2
    return T.reshape(*A.shape[:-2], size, size)


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
    """Return ``dT = T dA T``."""
    (A,), (dA,) = primals, tangents
    T = _inverse(A)
    return T, exact_matmul(T, exact_matmul(dA, T))


def _inverse_in_place(A: Float[Array, "*B n h h"]) -> Float[Array, "*B n h h"]:
    """Invert small blocks, from pairs of rows up."""
    size = A.shape[-1]
    place = np.arange(size)
    T = jnp.broadcast_to(jnp.eye(size, dtype=A.dtype), A.shape)
    half = 1
    while half < size:
        same = place[:, None] // (2 * half) == place[None, :] // (2 * half)
        lower = place[:, None] % (2 * half) >= half
        left = place[None, :] % (2 * half) < half
        corners = jnp.asarray(same & lower & left).reshape(
            (1,) * (A.ndim - 2) + same.shape
        )
        below = jnp.where(corners, A, jnp.zeros_like(A))
        T = T + (below if half == 1 else exact_matmul(exact_matmul(T, below), T))
        half *= 2
    return T


def _pairs(blocks: Float[Array, "*B n h h"]) -> tuple[Array, Array]:
    """Return the first and the second of every two blocks."""
    blocks = blocks.reshape(
        *blocks.shape[:-3], blocks.shape[-3] // 2, 2, *blocks.shape[-2:]
    )
    return blocks[..., 0, :, :], blocks[..., 1, :, :]


def _diagonal_blocks(A: Float[Array, "*B C C"], size: int) -> Float[Array, "*B n h h"]:
    """Return the diagonal blocks of a size."""
    count = A.shape[-1] // size
    if count == 1:
        return A[..., None, :, :]
    A = A.reshape(*A.shape[:-2], count, size, count, size)
    return jnp.moveaxis(jnp.diagonal(A, axis1=-4, axis2=-2), -1, -3)


def _split_rows(blocks: Float[Array, "*B n h h"]) -> tuple[Array, Array]:
    """Return the upper right and the lower left quarter of blocks."""
    half = blocks.shape[-1] // 2
    return blocks[..., :half, half:], blocks[..., half:, :half]


def join_blocks(upper: Array, below: Array, lower: Array) -> Float[Array, "*B n m m"]:
    """Join two diagonal blocks and the one below them; above them is zero."""
    top = jnp.concatenate([upper, jnp.zeros_like(below)], -1)
    return jnp.concatenate([top, jnp.concatenate([below, lower], -1)], -2)
