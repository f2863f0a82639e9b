"""The independently recurrent network, whose units see only their own state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.types import Params
from ..core.validation import check_features, check_positive
from ..initializers import Initializer, LecunNormal, Uniform, Zeros
from .base import BuiltinCell
from .elman import range_of
from .ops import along, dense


@dataclasses.dataclass(frozen=True)
class IndRNN(BuiltinCell):
    """The independently recurrent network (IndRNN), a vector in place of U::

        h_t = f(x_t W + u * h_{t-1} + b)

    Li et al. (2018, arXiv:1803.04831, section 3). Units of one layer do not see each
    other's state; stack two layers or more so that features mix.

    Parameters: ``input_kernel`` W ``(D, H)``, ``recurrent_vector`` u ``(H,)``, ``bias
    (H,)``. Carry: ``h (*B, H)``, an array. Output: h.

    The paper keeps ``|u| <= 2^(1/T)`` during training, so that a relu unit cannot grow
    more than twofold over T steps. The cell does not enforce this: clip
    ``params["recurrent_vector"]`` after each optimizer update.

    Args:
        hidden_size: H, the number of hidden units.
        activation: f, ``jax.nn.relu`` as published, or ``jnp.tanh``.
        input_init: initializer of W.
        recurrent_init: initializer of u, U(0, 1) as published. Use ``Uniform(low,
            high)`` for another range, for example one of long memories only.
        bias_init: initializer of b.
        learned_initial_carry: if True, h before the first step is a parameter.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.IndRNN(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> ys.shape
        (5, 2, 4)
    """

    _: dataclasses.KW_ONLY
    activation: Callable[[Array], Array] = jax.nn.relu
    input_init: Initializer = LecunNormal()
    recurrent_init: Initializer = Uniform(0.0, 1.0)
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
                "recurrent_vector": self.recurrent_init(
                    k_recurrent, (self.hidden_size,), dtype
                ),
                "bias": self.bias_init(k_bias, (self.hidden_size,), dtype),
            }
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB H"]:
        """Return ``x W + b``, the part of a step that needs no carry."""
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
        """Return ``f(z + u * h)``.

        ``recurrent_h`` replaces h where it is multiplied by u (variational dropout).
        """
        h = carry if recurrent_h is None else recurrent_h
        return self.activation(z + along(params["recurrent_vector"], h) * h)

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: Float[Array, "*B H"]
    ) -> dict[str, Gate]:
        """Return h: the cell has no gate, but its saturation stops the gradient."""
        return {"h": Gate(self.step(params, carry, z), *range_of(self.activation))}
