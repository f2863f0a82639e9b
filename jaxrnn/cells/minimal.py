"""The minimal gated cells, whose gates do not see the state."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate, LinearCell, Params, accumulator
from ..core.validation import check_positive
from ..initializers import (
    Chrono,
    Initializer,
    LecunNormal,
    Zeros,
    gate_biases,
    gate_blocks,
)
from .base import BuiltinCell, projected


@dataclasses.dataclass(frozen=True)
class _Minimal(LinearCell, BuiltinCell):
    """Gates and a candidate made of the input alone, packed in one kernel."""

    _: dataclasses.KW_ONLY
    positive: bool = False
    input_init: Initializer = LecunNormal()
    bias_init: Initializer = Zeros()

    def _packed(
        self, key: Array, input_size: int, dtype: DTypeLike, blocks: int
    ) -> tuple[Array, list[Array]]:
        """The kernel and the biases of its blocks."""
        check_positive(self, input_size=input_size)
        k_input, k_bias = jax.random.split(key)
        kernel = gate_blocks(
            self.input_init, k_input, blocks, input_size, self.hidden_size, dtype
        )
        return kernel, list(
            gate_biases(self.bias_init, k_bias, blocks, self.hidden_size, dtype)
        )

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B H"]:
        """Zeros in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """``x W + b``, in the accumulator's dtype."""
        return projected(self, params, x)

    def candidate(self, z: Float[Array, "*TB H"]) -> Float[Array, "*TB H"]:
        """``z``, or ``g(z)``."""
        return jnp.where(z >= 0, z + 0.5, jax.nn.sigmoid(z)) if self.positive else z

    def output(self, params: Params, carry: Carry, x: Any) -> Float[Array, "*TB H"]:
        """h, in the parameters' dtype."""
        return carry.astype(params["input_kernel"].dtype)


@dataclasses.dataclass(frozen=True)
class MinGRU(_Minimal):
    """The minimal GRU of Feng et al. (2024, arXiv:2410.01201, section 3.1), blocks
    packed z, n::

        z_t = sigmoid(x_t W_z + b_z)
        n_t = x_t W_n + b_n                              or g(x_t W_n + b_n) with ``positive``
        h_t = (1 - z_t) h_{t-1} + z_t n_t

    Parameters: ``input_kernel (D, 2H)``, ``bias (2H,)``. Carry: ``h (*B, H)``, in
        float32 at least.

    Args:
        hidden_size: H.
        positive: ``g(a) = a + 1/2 where a >= 0, else sigmoid(a)``: the function of the
            paper's log-space form (appendix B), whose candidates have logarithms. It is
            computed without them: its factors lie between 0 and 1, so that no product
            of them overflows, and sums of logarithms would only add rounding. The carry
            passed in is not put through g.
        update_bias: added to b_z at init, or ``Chrono(T)`` for time scales up to T.
        learned_initial_carry: make h before the first step a parameter.
    """  # noqa: E501

    _: dataclasses.KW_ONLY
    update_bias: float | Chrono = 0.0

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
        dtype = dtype or jnp.result_type(float)
        kernel, (b_z, b_n) = self._packed(key, input_size, dtype, 2)
        if isinstance(self.update_bias, Chrono):  # of the gate that forgets: z = 1 - f
            b_z = -self.update_bias(jax.random.fold_in(key, 2), b_z.shape, dtype)
        else:
            b_z = b_z + self.update_bias
        return self.with_initial_carry(
            {"input_kernel": kernel, "bias": jnp.concatenate([b_z, b_n])}
        )

    def affine(
        self, params: Params, z: Float[Array, "*TB G"]
    ) -> tuple[Float[Array, "*TB H"], Float[Array, "*TB H"]]:
        """``1 - z`` and ``z n``."""
        update, n = jnp.split(z, 2, axis=-1)
        return jax.nn.sigmoid(-update), jax.nn.sigmoid(update) * self.candidate(n)

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """f = 1 - z, which keeps h."""
        return {"f": Gate(self.affine(params, z)[0], keeps=True)}


@dataclasses.dataclass(frozen=True)
class MinLSTM(_Minimal):
    """The minimal LSTM of Feng et al. (2024, arXiv:2410.01201, section 3.2), blocks
    packed i, f, n::

        i, f = sigmoid(x_t W + b)
        n_t = x_t W_n + b_n                              or g(x_t W_n + b_n) with ``positive``
        h_t = f / (f + i) h_{t-1} + i / (f + i) n_t      ``normalized``, the form for long sequences
        h_t = f h_{t-1} + i n_t                          without

    Parameters: ``input_kernel (D, 3H)``, ``bias (3H,)``. Carry: ``h (*B, H)``, in
        float32 at least.

    Args:
        hidden_size: H.
        positive: as for `MinGRU`.
        normalized: divide the gates by their sum, computed from the difference of their
            logarithms.
        forget_bias: added to b_f at init, or ``Chrono(T)``.
        learned_initial_carry: make h before the first step a parameter.
    """  # noqa: E501

    _: dataclasses.KW_ONLY
    normalized: bool = True
    forget_bias: float | Chrono = 0.0

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
        dtype = dtype or jnp.result_type(float)
        kernel, (b_i, b_f, b_n) = self._packed(key, input_size, dtype, 3)
        if isinstance(self.forget_bias, Chrono):
            b_f = self.forget_bias(jax.random.fold_in(key, 2), b_f.shape, dtype)
            b_i = -b_f
        else:
            b_f = b_f + self.forget_bias
        return self.with_initial_carry(
            {"input_kernel": kernel, "bias": jnp.concatenate([b_i, b_f, b_n])}
        )

    def affine(
        self, params: Params, z: Float[Array, "*TB G"]
    ) -> tuple[Float[Array, "*TB H"], Float[Array, "*TB H"]]:
        """The share of h that is kept, and that of n times n."""
        i, f, n = jnp.split(z, 3, axis=-1)
        if not self.normalized:
            return jax.nn.sigmoid(f), jax.nn.sigmoid(i) * self.candidate(n)
        difference = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
        return jax.nn.sigmoid(difference), jax.nn.sigmoid(-difference) * self.candidate(
            n
        )

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """f, or f / (f + i), which keeps h."""
        return {"f": Gate(self.affine(params, z)[0], keeps=True)}
