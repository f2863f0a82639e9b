"""A linear readout of features, as parameters ``{"kernel": W, "bias": b}``."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ...cells.ops import along, dense
from ...core.types import Params


def with_bias(kernel: Float[Array, "H O"]) -> Params:
    """Return the parameters of a readout, whose bias is zero."""
    return {"kernel": kernel, "bias": jnp.zeros_like(kernel[0])}


def read_out(params: Params, ys: Float[Array, "*TB H"]) -> Float[Array, "*TB O"]:
    """Return ``ys W + b``."""
    outputs = dense(ys, params["kernel"])
    return outputs + along(params["bias"], outputs)


def apply_linear(
    linear: nnx.Linear, ys: Float[Array, "*TB H"]
) -> Float[Array, "*TB O"]:
    """Apply a linear layer of nnx to features of any leading axes.

    On one device this is one 2-D product, which is faster on a CPU; the batch of arrays
    that are split over devices stays split. See `jaxrnn.core.contraction`.
    """
    outputs = dense(ys, linear.kernel[...])
    return (
        outputs if linear.bias is None else outputs + along(linear.bias[...], outputs)
    )
