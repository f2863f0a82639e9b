"""Operations that the cells share: matrix products, normalization, gate activations."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.contraction import contract
from ..core.dtypes import accumulator


def dense(
    x: Float[Array, "*TB D"], kernel: Float[Array, "D H"]
) -> Float[Array, "*TB H"]:
    """Return ``x @ kernel`` for any leading axes.

    On one device this is one 2-D product; see `jaxrnn.core.contraction` for the cause.
    """
    if x.ndim < 3 or x.dtype != kernel.dtype:
        return x @ kernel
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    return contract(
        x, kernel, dimension_numbers=numbers, preferred_element_type=jnp.dtype(x.dtype)
    )


def recur(h: Float[Array, "*B H"], kernel: Float[Array, "H G"]) -> Float[Array, "*B G"]:
    """Return ``h @ kernel``, summed and returned in the accumulator's dtype."""
    return jnp.matmul(
        h.astype(kernel.dtype), kernel, preferred_element_type=accumulator(kernel.dtype)
    )


def along(vector: Float[Array, " G"], x: Float[Array, "*B G"]) -> Float[Array, "..."]:
    """Reshape and cast ``vector`` to broadcast along the last axis of ``x``.

    The result has the rank and dtype of ``x``, so nothing is promoted implicitly.
    """
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)


def layer_norm(
    x: Float[Array, "*B G"], scale: Float[Array, " G"], epsilon: float = 1e-5
) -> Float[Array, "*B G"]:
    """Normalize over the last axis: ``scale * (x - mean) / sqrt(var + epsilon)``.

    Ba, Kiros & Hinton (2016, eq. 3), without a shift.
    """
    centered = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return (
        along(scale, x)
        * centered
        * jax.lax.rsqrt(variance + jnp.asarray(epsilon, x.dtype))
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def gate_activations(
    gates: Float[Array, "*B G"], blocks: int
) -> list[Float[Array, "*B H"]]:
    """Split packed gates, and apply tanh to the last block but one, else sigmoid.

    One sigmoid is computed over all blocks at once, because XLA:CPU (jax 0.10) does not
    vectorize the sigmoid of a slice, and an LSTM step then takes twice as long. For the
    same cause the derivative has a rule of its own, block by block from the
    activations.

    Args:
        gates: ``(*B, blocks * H)``, packed in the order [i,] f, g, o.
        blocks: the number of blocks, 3 or 4.

    Returns:
        The activations of each block, ``(*B, H)`` each.
    """
    # The sigmoid of g's block is computed in vain, which costs less than slicing.
    *others, _, o = jnp.split(jax.nn.sigmoid(gates), blocks, axis=-1)
    return [*others, jnp.tanh(jnp.split(gates, blocks, axis=-1)[-2]), o]


@gate_activations.defjvp
def _gate_activations_jvp(blocks, primals, tangents):
    """Multiply each block's tangent by the derivative of its activation."""
    activations = gate_activations(*primals, blocks)
    slopes = [a * (1 - a) for a in activations]  # sigmoid' = a (1 - a)
    slopes[-2] = 1 - activations[-2] * activations[-2]  # tanh' = 1 - a^2
    return activations, [
        s * t
        for s, t in zip(slopes, jnp.split(tangents[0], blocks, axis=-1), strict=True)
    ]
