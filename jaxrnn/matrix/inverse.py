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
from jaxtyping import Array, Float

# A matrix product in full precision on every platform. What is solved for here, and
# what is summed over all of time, would otherwise lose digits that nothing restores.
exact_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.custom_jvp
def inverse_of_one_minus(A: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """Return ``(I - A)^-1`` for a strictly lower triangular A; C is a power of two.

    With T1 and T2 the inverses of the two halves, that of the whole is
    ``[[T1, 0], [T2 A21 T1, T2]]``.
    """
    size = A.shape[-1]
    T = jnp.ones((*A.shape[:-2], size, 1, 1), A.dtype)
    half = 1
    while half < size:
        below = _below_diagonal(A, half)
        T1, T2 = _pairs(T)
        T = _join(T1, _triple(T2, below, T1), T2)
        half *= 2
    return T.reshape(*A.shape[:-2], size, size)


@inverse_of_one_minus.defjvp
def _inverse_jvp(primals, tangents):
    """Return ``dT = T dA T``."""
    (A,), (dA,) = primals, tangents
    T = inverse_of_one_minus(A)
    return T, exact_matmul(T, exact_matmul(dA, T))


def _triple(T2: Array, A: Array, T1: Array) -> Array:
    """Return ``T2 A T1``; of single numbers, their product."""
    if A.shape[-1] == 1:
        return T2 * A * T1
    return exact_matmul(exact_matmul(T2, A), T1)


def _pairs(blocks: Float[Array, "*B n h h"]) -> tuple[Array, Array]:
    """Return the first and the second of every two blocks."""
    blocks = blocks.reshape(
        *blocks.shape[:-3], blocks.shape[-3] // 2, 2, *blocks.shape[-2:]
    )
    return blocks[..., 0, :, :], blocks[..., 1, :, :]


def _below_diagonal(A: Float[Array, "*B C C"], half: int) -> Float[Array, "*B n h h"]:
    """Return the lower left quarter of every diagonal block of size ``2 half``."""
    count = A.shape[-1] // (2 * half)
    A = A.reshape(*A.shape[:-2], count, 2, half, count, 2, half)
    A = A[..., 1, :, :, 0, :]  # (*B, n, h, n, h)
    return jnp.moveaxis(jnp.diagonal(A, axis1=-4, axis2=-2), -1, -3)


def _join(upper: Array, below: Array, lower: Array) -> Float[Array, "*B n 2h 2h"]:
    """Join two diagonal blocks and the one below them."""
    top = jnp.concatenate([upper, jnp.zeros_like(below)], -1)
    return jnp.concatenate([top, jnp.concatenate([below, lower], -1)], -2)
