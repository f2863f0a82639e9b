"""The minimal gated unit, a recurrent cell with one gate."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.dtypes import accumulator
from ..core.types import Carry, Inputs, Params
from ..core.validation import check_features, check_positive
from ..initializers import (
    Chrono,
    Initializer,
    LecunNormal,
    Orthogonal,
    Zeros,
    gate_biases,
    gate_blocks,
)
from .base import BuiltinCell
from .ops import along, dense, recur


@dataclasses.dataclass(frozen=True)
class MGU(BuiltinCell):
    """The minimal gated unit, packed f, n::

        f = sigmoid(x_t W_f + h_{t-1} U_f + b_f)
        n = tanh(x_t W_n + (f * h_{t-1}) U_n + b_n)
        h_t = (1 - f) * h_{t-1} + f * n

    Zhou et al. (2016, arXiv:1603.09420, eq. 6). It is a `GRU` with reset before U_n
    whose gates are tied, r = f and z = 1 - f, with two thirds of the parameters. The
    paper calls f the forget gate; a large f replaces the state by the candidate, as z
    does in `MinGRU`, and is the opposite of the forget gate of an `LSTM`.

    Parameters: ``input_kernel`` W ``(D, 2H)``, ``recurrent_kernel`` U ``(H, 2H)``,
    ``bias (2H,)``. Carry: ``h (*B, H)``, an array, kept in float32 or wider because it
    accumulates. Output: h, cast back to the parameters' dtype.

    Args:
        hidden_size: H, the number of hidden units.
        update_bias: number added to b_f at init, or ``Chrono(T)`` for memories of up to
            T steps. An f near 0 keeps the state.
        input_init: initializer of each block of W.
        recurrent_init: initializer of each block of U.
        bias_init: initializer of the biases.
        learned_initial_carry: if True, h before the first step is a parameter.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.MGU(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.shape, ys.shape
        ((2, 4), (5, 2, 4))
    """

    _: dataclasses.KW_ONLY
    update_bias: float | Chrono = 0.0
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
        dtype, H = dtype or jnp.result_type(float), self.hidden_size
        k_input, k_recurrent, k_bias, k_chrono = jax.random.split(key, 4)
        b_f, b_n = gate_biases(self.bias_init, k_bias, 2, H, dtype)
        if isinstance(self.update_bias, Chrono):
            # Chrono draws the bias of a gate that keeps; f replaces, and
            # sigmoid(-b) = 1 - sigmoid(b).
            b_f = -self.update_bias(k_chrono, (H,), dtype)
        else:
            b_f = b_f + self.update_bias
        return self.with_initial_carry(
            {
                "input_kernel": gate_blocks(
                    self.input_init, k_input, 2, input_size, H, dtype
                ),
                "recurrent_kernel": gate_blocks(
                    self.recurrent_init, k_recurrent, 2, H, H, dtype
                ),
                "bias": jnp.concatenate([b_f, b_n]),
            }
        )

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B H"]:
        """Return zeros ``(*B, H)`` in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """Return ``x W``, the part of a step that needs no carry."""
        check_features(self, params["input_kernel"], x)
        return dense(x, params["input_kernel"])

    def step(
        self,
        params: Params,
        carry: Float[Array, "*B H"],
        z: Float[Array, "*B G"],
        *,
        recurrent_h=None,
    ):
        """Take one step of the equations above.

        ``recurrent_h`` replaces h where it is multiplied by U (variational dropout).
        """
        f, n = self._activations(params, carry, z, recurrent_h)
        return (1 - f) * carry + f * n

    def _activations(
        self, params: Params, carry: Array, z: Array, recurrent_h: Array | None
    ) -> tuple[Array, Array]:
        """Return f and n."""
        h = carry if recurrent_h is None else recurrent_h
        z = z.astype(carry.dtype)
        z_f, z_n = jnp.split(z + along(params["bias"], z), 2, axis=-1)
        U_f, U_n = jnp.split(params["recurrent_kernel"], 2, axis=-1)
        f = jax.nn.sigmoid(z_f + recur(h, U_f))
        return f, jnp.tanh(z_n + recur(f * h, U_n))

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: Float[Array, "*B G"]
    ) -> dict[str, Gate]:
        """Return f, the share 1 - f that keeps h (named z as in a GRU), and n."""
        f, n = self._activations(params, carry, z, None)
        return {"f": Gate(f), "z": Gate(1 - f, keeps=True), "n": Gate(n, low=-1.0)}

    def output(self, params: Params, carry: Carry, x: Inputs) -> Float[Array, "*TB H"]:
        """Return h in the parameters' dtype."""
        return carry.astype(params["recurrent_kernel"].dtype)
