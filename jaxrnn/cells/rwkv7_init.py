"""The first parameters of RWKV-7, as in the authors' training code.

Most of them are no random numbers, but functions of the channel and of the depth of the
layer: early channels forget fast, late ones slowly, and deep layers shift less.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..core.types import Params
from ..initializers import Orthogonal, Uniform

# The exponents of the shift, in the order r, w, k, v, a, g.
SHIFTS = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)


def rank_of(factor: float, size: int) -> int:
    """Return ``factor * sqrt(size)``, rounded to a multiple of 32, but at least 32."""
    return max(32, round(factor * math.sqrt(size) / 32) * 32)


def from_first(size: int) -> np.ndarray:
    """Return ``i / (size - 1)`` for every channel i."""
    return np.arange(size) / max(size - 1, 1)


def shift_mix(exponent: float, size: int) -> np.ndarray:
    """Return ``1 - (i / size)^exponent``, the share of the input before."""
    return 1 - (np.arange(size) / size) ** exponent


def zigzag(size: int, head: int) -> np.ndarray:
    """Return ``z |z|``, with z from -1 to 1 over the channels of every head."""
    half = (head - 1) / 2
    z = (np.arange(size) % head - half) / max(half, 0.5)
    return z * np.abs(z)


def draw_low_rank(
    key: Array, inputs: int, rank: int, outputs: int, dtype: jnp.dtype
) -> tuple[Array, Array]:
    """Return zeros, and an orthogonal matrix times 0.1."""
    gain = 0.1 * math.sqrt(max(rank / outputs, 1))
    up = Orthogonal(gain)(key, (rank, outputs), dtype)
    return jnp.zeros((inputs, rank), dtype), up


def draw_time_mix(
    key: Array,
    inputs: int,
    heads: int,
    head_keys: int,
    hidden: int,
    outputs: int,
    ranks: dict[str, int],
    place: tuple[int, int],
    dtype: jnp.dtype,
) -> Params:
    """Draw the parameters of a time mix.

    Args:
        key: a `jax.random` key.
        inputs: D.
        heads: N.
        head_keys: d_k.
        hidden: H.
        outputs: O.
        ranks: of the low-rank maps, by their names.
        place: the number of the layer, and that of all layers.
        dtype: of the parameters.
    """
    index, layers = place
    falling, rising = 1 - index / layers, index / max(layers - 1, 1)
    keys = heads * head_keys
    k_r, k_k, k_v, *k_ranks = jax.random.split(key, 3 + len(ranks))
    bound = 0.5 / math.sqrt(inputs)
    wide, narrow = Uniform(-bound, bound), Uniform(-bound / 10, bound / 10)
    kernels = [
        wide(k_r, (inputs, keys), dtype),
        narrow(k_k, (inputs, keys), dtype),
        wide(k_v, (inputs, hidden), dtype),
    ]
    linear, turns = from_first(keys) - 0.5, zigzag(keys, head_keys)
    decay = -6 + 6 * from_first(keys) ** (1 + rising**0.3)
    known = {
        "shift_mix": np.stack([shift_mix(e * falling, inputs) for e in SHIFTS]),
        "decay_bias": decay + 0.5 + 2.5 * turns,
        "rate_bias": -0.19 + 0.3 * turns + 0.4 * linear,
        "erase_scale": 0.71 - 0.1 * linear,
        "rate_mix": np.full(keys, 1.02),
        "bonus": np.full((heads, head_keys), -0.04),
        "norm_scale": np.full(hidden, ((1 + index) / layers) ** 0.7),
        "norm_bias": np.zeros(hidden),
    }
    if "value" in ranks:
        known["value_bias"] = 0.73 - 0.4 * (from_first(hidden) - 0.5)
    low_rank: dict[str, Array] = {}
    for (name, rank), own in zip(ranks.items(), k_ranks, strict=True):
        size = hidden if name in ("gate", "value") else keys
        down, up = draw_low_rank(own, inputs, rank, size, dtype)
        low_rank |= {f"{name}_down": down, f"{name}_up": up}
    return {
        "input_kernel": jnp.concatenate(kernels, axis=-1),
        **{name: jnp.asarray(value, dtype) for name, value in known.items()},
        **low_rank,
        "output_kernel": jnp.zeros((hidden, outputs), dtype),
    }
