"""The simple recurrent network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.types import Params
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

    Parameters: ``input_kernel`` W ``(D, H)``, ``recurrent_kernel`` U ``(H, H)``,
    ``bias (H,)``. Carry: ``h (*B, H)``, an array. Output: h.

    Use it as a baseline; where dependencies span more than some ten steps, its gradient
    vanishes or explodes, and a gated cell (`GRU`, `LSTM`) learns more easily.

    Args:
        hidden_size: H, the number of hidden units.
        activation: f, ``jnp.tanh`` or ``jax.nn.relu``. Any elementwise function will
            do if it is the same object each time, since cells compare by value.
        input_init: initializer of W.
        recurrent_init: initializer of U. ``Identity()`` with relu is the IRNN (Le,
            Jaitly & Hinton 2015).
        bias_init: initializer of b.
        learned_initial_carry: if True, h before the first step is a parameter.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.Elman(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> ys.shape
        (5, 2, 4)
    """

    _: dataclasses.KW_ONLY
    activation: Callable[[Array], Array] = jnp.tanh
    input_init: Initializer = LecunNormal()
    recurrent_init: Initializer = Orthogonal()
    bias_init: Initializer = Zeros()

    def init(
        self, key: Array, input_size: int, dtype: DTypeLike | None = None
    ) -> Params:
        """Draw parameters for inputs of ``input_size`` features.

        Args:
            key: a `jax.random` key.
            input_size: D, the number of input features.
            dtype: of the parameters; by default JAX's default float.

        Returns:
            The dictionary of parameters that the class docstring lists.
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
        """Return ``x W``, the part of a step that needs no carry."""
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
        """Return ``f(z + h U + b)``.

        ``recurrent_h`` replaces h where it is multiplied by U (variational dropout).
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
        """Return h: the cell has no gate, but its saturation stops the gradient."""
        return {"h": Gate(self.step(params, carry, z), *range_of(self.activation))}


def range_of(activation: Callable[[Array], Array]) -> tuple[float, float]:
    """Return the range of an activation, or the real line if it is not known."""
    return RANGES.get(activation, (-math.inf, math.inf))
