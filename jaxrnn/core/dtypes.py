"""The dtypes in which parameters are held and sums are taken."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .foreign import optional_attribute
from .types import Params


def floating_dtype(params: Params) -> Any:
    """Return the widest real dtype among the leaves of ``params``.

    Python and NumPy scalars, and weakly typed arrays made of them, do not count. If
    there is no other leaf, it is the default float of JAX.
    """
    real = [
        jnp.finfo(leaf.dtype)
        for leaf in jax.tree.leaves(params)
        if not _weak(leaf) and _inexact(leaf)
    ]
    return (
        max(real, key=lambda info: info.bits).dtype if real else jnp.result_type(float)
    )


def weaken_scalars(params: Params) -> Params:
    """Convert NumPy scalars to Python ones, which do not promote other dtypes."""
    return jax.tree.map(
        lambda leaf: leaf.item() if isinstance(leaf, np.generic) else leaf, params
    )


def accumulator(dtype: DTypeLike | None) -> Any:
    """Return the dtype in which values are summed: float32 for half precision."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def largest_exponent(dtype: DTypeLike) -> float:
    """Return an x for which exp(2 x) and exp(-2 x) are well within range of ``dtype``.

    It is about 40 in float32 and 320 in float64.
    """
    return 0.45 * math.log(float(jnp.finfo(dtype).max))


def _weak(leaf: object) -> bool:
    return isinstance(leaf, (int, float, complex, np.generic)) or optional_attribute(
        leaf, "weak_type", False
    )


def _inexact(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)
