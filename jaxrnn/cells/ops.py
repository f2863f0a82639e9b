"""Arithmetic that the cells share: flat matrix products, layer normalization,
accumulators.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.cell import accumulator
from ..core.contraction import contract


def dense(
    x: Float[Array, "*TB D"], kernel: Float[Array, "D H"]
) -> Float[Array, "*TB H"]:
    """``x @ kernel`` for any leading axes; on one device as one 2-D product, see
    `jaxrnn.core.contraction`.
    """
    if x.ndim < 3 or x.dtype != kernel.dtype:
        return x @ kernel
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    return contract(
        x, kernel, dimension_numbers=numbers, preferred_element_type=jnp.dtype(x.dtype)
    )


def recur(h: Float[Array, "*B H"], kernel: Float[Array, "H G"]) -> Float[Array, "*B G"]:
    """``h @ kernel``, summed and returned in the accumulator's dtype."""
    return jnp.matmul(
        h.astype(kernel.dtype), kernel, preferred_element_type=accumulator(kernel.dtype)
    )


def along(vector: Float[Array, " G"], x: Float[Array, "*B G"]) -> Float[Array, "..."]:
    """A bias or scale in ``x``'s dtype, shaped to meet its last axis without
    promotion of rank or dtype.
    """
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)


def layer_norm(
    x: Float[Array, "*B G"], scale: Float[Array, " G"], epsilon: float = 1e-5
) -> Float[Array, "*B G"]:
    """``scale * (x - mean) / sqrt(var + epsilon)`` over the last axis (Ba, Kiros &
    Hinton 2016, eq. 3), without a shift.
    """
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (
        along(scale, x)
        * centred
        * jax.lax.rsqrt(variance + jnp.asarray(epsilon, x.dtype))
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def gate_activations(
    gates: Float[Array, "*B G"], blocks: int
) -> list[Float[Array, "*B H"]]:
    """The ``blocks`` packed blocks apart: sigmoid of each, but tanh of the last but one
    (g).

    One sigmoid over all of them: of a slice, XLA:CPU's (jax 0.10) is not vectorized,
    and an LSTM step takes twice as long. Its derivative is written block by block, from
    the activations.
    """
    *others, _, o = jnp.split(jax.nn.sigmoid(gates), blocks, axis=-1)
    return [*others, jnp.tanh(jnp.split(gates, blocks, axis=-1)[-2]), o]


@gate_activations.defjvp
def _gate_activations_jvp(blocks, primals, tangents):
    activations = gate_activations(*primals, blocks)
    slopes = [a * (1 - a) for a in activations]
    slopes[-2] = 1 - activations[-2] * activations[-2]
    return activations, [
        s * t
        for s, t in zip(slopes, jnp.split(tangents[0], blocks, axis=-1), strict=True)
    ]
