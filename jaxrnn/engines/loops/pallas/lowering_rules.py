"""Elementwise arithmetic that a chip's compiler does not have, or has only roughly:
``(params, *blocks) -> block``.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def _log1p(params: dict, x: Any) -> Any:
    """What ``1 + x`` rounds away is put right by the ratio (Kahan)."""
    u = 1 + x
    return jnp.where(u == 1, x, jnp.log(u) * (x / jnp.where(u == 1, 1.0, u - 1)))


def _power(params: dict, x: Any) -> Any:
    power = functools.reduce(jax.lax.mul, [x] * abs(params["y"]))
    return 1 / power if params["y"] < 0 else power


def _expm1(params: dict, x: Any) -> Any:
    """What rounding takes from ``exp(x) - 1`` is put right by the ratio (Kahan)."""
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


# What Mosaic does not have, on one chip or the other.
RULES = {
    "log1p": _log1p,
    "integer_pow": _power,
    "expm1": _expm1,
    "sign": _sign,
    "not": _not,
    "is_finite": _is_finite,
}


def _rough_tanh(params: dict, x: Any) -> Any:
    """A tanh of 11 bits."""
    bits = jax.lax.bitcast_convert_type(jnp.tanh(x), jnp.uint32) & jnp.uint32(
        0xFFFFE000
    )
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


# In bfloat16 tanh is the GPU's own, right to 2^-11 where the numbers that are made of
# it are rounded to 2^-9; the interpreter does as badly. Gates are not made of it: of
# one near 1, a time constant, nothing would be left.
ROUGH = RULES | {"tanh": _rough_tanh}
