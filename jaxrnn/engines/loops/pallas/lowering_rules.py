"""Elementwise primitives that Mosaic lacks, or computes in low precision only.

Each rule is a function ``(params, *blocks) -> block``.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def _log1p(params: dict, x: Any) -> Any:
    """Correct the rounding error of ``1 + x`` by a ratio (Kahan)."""
    u = 1 + x
    return jnp.where(u == 1, x, jnp.log(u) * (x / jnp.where(u == 1, 1.0, u - 1)))


def _power(params: dict, x: Any) -> Any:
    power = functools.reduce(jax.lax.mul, [x] * abs(params["y"]))
    return 1 / power if params["y"] < 0 else power


def _expm1(params: dict, x: Any) -> Any:
    """Correct the rounding error of ``exp(x) - 1`` by a ratio (Kahan)."""
    u = jnp.exp(x)
    small = (u - 1) * (x / jnp.where(u == 1, 1.0, jnp.log(u)))
    return jnp.where(u == 1, x, jnp.where(jnp.abs(x) < 1, small, u - 1))


def _sign(params: dict, x: Any) -> Any:
    one = jnp.ones_like(x)
    return jnp.where(x > 0, one, jnp.where(x < 0, -one, x))


def _not(params: dict, x: Any) -> Any:
    return jnp.logical_xor(x, True) if x.dtype == jnp.bool_ else -1 - x


def _is_finite(params: dict, x: Any) -> Any:
    return jnp.abs(x) < jnp.inf


# Primitives that Mosaic lacks, on one of the chips or both.
RULES = {
    "log1p": _log1p,
    "integer_pow": _power,
    "expm1": _expm1,
    "sign": _sign,
    "not": _not,
    "is_finite": _is_finite,
}


def _rough_tanh(params: dict, x: Any) -> Any:
    """Compute tanh to 11 bits, as GPUs do."""
    bits = jax.lax.bitcast_convert_type(jnp.tanh(x), jnp.uint32) & jnp.uint32(
        0xFFFFE000
    )
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


# In bfloat16 tanh is that of the GPU, with an error of 2^-11, while its results are
# rounded to 2^-9. In the interpreter this rule imitates it. Sigmoid gates are not
# computed from it, because the time constant of a gate near 1 would be lost.
ROUGH = RULES | {"tanh": _rough_tanh}
