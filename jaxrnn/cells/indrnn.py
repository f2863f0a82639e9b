"""Simple recurrent units that see no state but their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.cell import Gate, Params
from ..core.validation import check_features, check_positive
from ..initializers import Initializer, LecunNormal, Uniform, Zeros
from .base import BuiltinCell
from .elman import range_of
from .ops import along, dense


@dataclasses.dataclass(frozen=True)
class IndRNN(BuiltinCell):
    """The independently recurrent network of Li et al. (2018, arXiv:1803.04831, section
    3)::

        h_t = f(x_t W + u * h_{t-1} + b)

    Parameters: ``input_kernel (D, H)``, ``recurrent_vector (H,)``, the u above, ``bias
        (H,)``. Carry: ``h (*B, H)``.

    The paper keeps ``|u| <= 2^(1/T)`` while training, so that a relu unit cannot grow
    more than twofold over T steps; that is the optimizer's business: clip
    ``recurrent_vector`` after an update.

    Args:
        hidden_size: H.
        activation: f, ``jax.nn.relu`` as published, or ``jnp.tanh``.
        recurrent_init: how u is drawn: U(0, 1) as published; ``Uniform(low, high)`` for
            another range, say only long memories.
        learned_initial_carry: make the state before the first step a parameter.
    """

    _: dataclasses.KW_ONLY
    activation: Callable[[Array], Array] = jax.nn.relu
    input_init: Initializer = LecunNormal()
    recurrent_init: Initializer = Uniform(0.0, 1.0)
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
                "recurrent_vector": self.recurrent_init(
                    k_recurrent, (self.hidden_size,), dtype
                ),
                "bias": self.bias_init(k_bias, (self.hidden_size,), dtype),
            }
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB H"]:
        """``x W + b``."""
        check_features(self, params["input_kernel"], x)
        z = dense(x, params["input_kernel"])
        return z + along(params["bias"], z)

    def step(
        self,
        params: Params,
        carry: Float[Array, "*B H"],
        z: Float[Array, "*B H"],
        *,
        recurrent_h=None,
    ):
        """``f(z + u * h)``. ``recurrent_h`` replaces h where it meets u (variational
        dropout).
        """
        h = carry if recurrent_h is None else recurrent_h
        return self.activation(z + along(params["recurrent_vector"], h) * h)

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: Float[Array, "*B H"]
    ) -> dict[str, Gate]:
        """h itself, which has no gate."""
        return {"h": Gate(self.step(params, carry, z), *range_of(self.activation))}
