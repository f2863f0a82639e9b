"""The minimal gated cells, whose gates depend on the input but not on the state."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate, LinearCell
from ..core.dtypes import accumulator
from ..core.types import Carry, Inputs, Params
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
    """Gates and a candidate computed from the input alone, packed in one kernel."""

    _: dataclasses.KW_ONLY
    positive: bool = False
    input_init: Initializer = LecunNormal()
    bias_init: Initializer = Zeros()

    def _packed(
        self, key: Array, input_size: int, dtype: DTypeLike, blocks: int
    ) -> tuple[Array, list[Array]]:
        """Draw the input kernel, and the bias of each of its blocks."""
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
        """Return zeros ``(*B, H)`` in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """Return ``x W + b`` in the accumulator's dtype."""
        return projected(self, params, x)

    def candidate(self, z: Float[Array, "*TB H"]) -> Float[Array, "*TB H"]:
        """Return z, or g(z) if ``positive`` is set."""
        return jnp.where(z >= 0, z + 0.5, jax.nn.sigmoid(z)) if self.positive else z

    def output(self, params: Params, carry: Carry, x: Inputs) -> Float[Array, "*TB H"]:
        """Return h in the parameters' dtype."""
        return carry.astype(params["input_kernel"].dtype)


@dataclasses.dataclass(frozen=True)
class MinGRU(_Minimal):
    """The minimal GRU, a linear recurrence with input gates, packed z, n::

        z_t = sigmoid(x_t W_z + b_z)
        n_t = x_t W_n + b_n             or g(x_t W_n + b_n) with ``positive``
        h_t = (1 - z_t) h_{t-1} + z_t n_t

    Feng et al. (2024, arXiv:2410.01201, section 3.1). The recurrence is linear in h, so
    ``engine=jaxrnn.Associative()`` computes it in parallel over time. Here z is the
    share of the new candidate, the opposite of z in `GRU`.

    Parameters: ``input_kernel`` W ``(D, 2H)``, ``bias (2H,)``. Carry: ``h (*B, H)``, in
    float32 or wider. Output: h in the parameters' dtype.

    Args:
        hidden_size: H, the number of hidden units.
        positive: if True, candidates pass through ``g(a) = a + 1/2 where a >= 0, else
            sigmoid(a)``, the function of the paper's log-space form (appendix B), which
            makes them positive so that they have logarithms. jaxrnn computes it without
            logarithms: the factors 1 - z lie between 0 and 1, so that no product of
            them overflows, and sums of logarithms would only add rounding. g is not
            applied to the carry that is passed in.
        input_init: initializer of each block of W.
        bias_init: initializer of the biases.
        update_bias: number added to b_z at init, or ``Chrono(T)`` for memories of up to
            T steps.
        learned_initial_carry: if True, h before the first step is a parameter.

    Example::

        >>> import jax, jaxrnn
        >>> cell, xs = jaxrnn.MinGRU(4), jax.numpy.ones((5, 2, 3))
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> _, ys = jaxrnn.unroll(cell, params, xs, engine=jaxrnn.Associative())
        >>> ys.shape
        (5, 2, 4)
    """

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
        if isinstance(self.update_bias, Chrono):
            # Chrono draws the bias of a gate that keeps; z forgets, and
            # sigmoid(-b) = 1 - sigmoid(b).
            b_z = -self.update_bias(jax.random.fold_in(key, 2), b_z.shape, dtype)
        else:
            b_z = b_z + self.update_bias
        return self.with_initial_carry(
            {"input_kernel": kernel, "bias": jnp.concatenate([b_z, b_n])}
        )

    def affine(
        self, params: Params, z: Float[Array, "*TB G"]
    ) -> tuple[Float[Array, "*TB H"], Float[Array, "*TB H"]]:
        """Return the factor ``1 - z`` and the addend ``z n``."""
        update, n = jnp.split(z, 2, axis=-1)
        return jax.nn.sigmoid(-update), jax.nn.sigmoid(update) * self.candidate(n)

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """Return f = 1 - z, which keeps h."""
        return {"f": Gate(self.affine(params, z)[0], keeps=True)}


@dataclasses.dataclass(frozen=True)
class MinLSTM(_Minimal):
    """The minimal LSTM, a linear recurrence with input gates, packed i, f, n::

        i, f = sigmoid(x_t W + b)
        n_t = x_t W_n + b_n             or g(x_t W_n + b_n) with ``positive``
        h_t = f / (f + i) h_{t-1} + i / (f + i) n_t      with ``normalized``
        h_t = f h_{t-1} + i n_t                          without it

    Feng et al. (2024, arXiv:2410.01201, section 3.2). The recurrence is linear in h, so
    ``engine=jaxrnn.Associative()`` computes it in parallel over time.

    Parameters: ``input_kernel`` W ``(D, 3H)``, ``bias (3H,)``. Carry: ``h (*B, H)``, in
    float32 or wider. Output: h in the parameters' dtype.

    Args:
        hidden_size: H, the number of hidden units.
        positive: if True, candidates pass through g, as in `MinGRU`.
        input_init: initializer of each block of W.
        bias_init: initializer of the biases.
        normalized: if True, divide the gates by their sum, the form for long sequences:
            h is then a weighted mean of candidates and initial state.
        forget_bias: number added to b_f at init, or ``Chrono(T)``.
        learned_initial_carry: if True, h before the first step is a parameter.

    Example::

        >>> import jax, jaxrnn
        >>> cell, xs = jaxrnn.MinLSTM(4), jax.numpy.ones((5, 2, 3))
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> _, ys = jaxrnn.unroll(cell, params, xs, engine=jaxrnn.Associative())
        >>> ys.shape
        (5, 2, 4)
    """

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
        """Return the factor of h and the addend: f and i n, normalized if asked for."""
        i, f, n = jnp.split(z, 3, axis=-1)
        if not self.normalized:
            return jax.nn.sigmoid(f), jax.nn.sigmoid(i) * self.candidate(n)
        # F / (F + I) = sigmoid(log F - log I) for gates F and I: exact also where both
        # gates underflow to 0.
        difference = jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i)
        return jax.nn.sigmoid(difference), jax.nn.sigmoid(-difference) * self.candidate(
            n
        )

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """Return f, or f / (f + i) if normalized, which keeps h."""
        return {"f": Gate(self.affine(params, z)[0], keeps=True)}
