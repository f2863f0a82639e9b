"""The simple recurrent network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.cell import Gate, Params
from ..core.validation import check_features, check_positive
from ..initializers import Initializer, LecunNormal, Orthogonal, Zeros
from .base import BuiltinCell
from .ops import along, dense, recur

RANGES: dict[Any, tuple[float, float]] = {
    jnp.tanh: (-1.0, 1.0),
    jax.nn.sigmoid: (0.0, 1.0),
    jax.nn.relu: (0.0, math.inf),
}


@dataclasses.dataclass(frozen=True)
class Elman(BuiltinCell):
    """The simple recurrent network of Elman (1990, "Finding structure in time")::

        h_t = f(x_t W + h_{t-1} U + b)

    Parameters: ``input_kernel (D, H)``, ``recurrent_kernel (H, H)``, ``bias (H,)``.
        Carry: ``h (*B, H)``, an array.

    Args:
        hidden_size: H.
        activation: f, ``jnp.tanh`` or ``jax.nn.relu`` (any elementwise function that is
            the same object each time).
        recurrent_init: how U is drawn. ``Identity()`` with relu is the IRNN (Le, Jaitly
            & Hinton 2015).
        learned_initial_carry: make the state before the first step a parameter.
    """

    _: dataclasses.KW_ONLY
    activation: Callable[[Array], Array] = jnp.tanh
    input_init: Initializer = LecunNormal()
    recurrent_init: Initializer = Orthogonal()
    bias_init: Initializer = Zeros()

    def init(self, key: Array, input_size: int, dtype: Any = None) -> Params:
        """Draw parameters for ``input_size`` features, in ``dtype`` (default: jax's
        default float).
        """
        check_positive(self, input_size=input_size)
        dtype = dtype or jnp.result_type(float)
        k_input, k_recurrent, k_bias = jax.random.split(key, 3)
        return self.with_initial_carry(
            {
                "input_kernel": self.input_init(
                    k_input, (input_size, self.hidden_size), dtype
                ),
                "recurrent_kernel": self.recurrent_init(
                    k_recurrent, (self.hidden_size, self.hidden_size), dtype
                ),
                "bias": self.bias_init(k_bias, (self.hidden_size,), dtype),
            }
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB H"]:
        """``x W``."""
        check_features(self, params["input_kernel"], x)
        return dense(x, params["input_kernel"])

    def step(
        self,
        params: Params,
        carry: Float[Array, "*B H"],
        z: Float[Array, "*B H"],
        *,
        recurrent_h=None,
    ):
        """``f(z + h U + b)``. ``recurrent_h`` replaces h where it meets U
        (variational dropout).
        """
        a = recur(
            carry if recurrent_h is None else recurrent_h, params["recurrent_kernel"]
        )
        return self.activation(a + z.astype(a.dtype) + along(params["bias"], a)).astype(
            carry.dtype
        )

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: Float[Array, "*B H"]
    ) -> dict[str, Gate]:
        """h itself, which has no gate: its saturation is what stops a gradient."""
        return {"h": Gate(self.step(params, carry, z), *range_of(self.activation))}


def range_of(activation: Callable[[Array], Array]) -> tuple[float, float]:
    """Where its values lie, as far as that is known."""
    return RANGES.get(activation, (-math.inf, math.inf))
