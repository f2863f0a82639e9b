"""GRU and LSTM with diagonal recurrent matrices: each unit sees only its own state."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.dtypes import accumulator
from ..core.types import Carry, Inputs, Params
from ..core.validation import check_positive
from ..initializers import (
    Chrono,
    GlorotUniform,
    Initializer,
    Linspace,
    Normal,
    Zeros,
    gate_biases,
    gate_blocks,
)
from .base import BuiltinCell, projected
from .lstm import LSTMState
from .ops import along


@dataclasses.dataclass(frozen=True)
class _Diagonal(BuiltinCell):
    """Three packed gate blocks, each with a vector in place of a recurrent matrix."""

    _: dataclasses.KW_ONLY
    input_init: Initializer = GlorotUniform()
    recurrent_init: Initializer = Normal(math.sqrt(4 / 5))
    bias_init: Initializer = Zeros()

    def _parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> tuple[Params, list[Array]]:
        """Draw the input kernel and the recurrent vectors, and the three biases."""
        check_positive(self, input_size=input_size)
        H = self.hidden_size
        k_input, k_recurrent, k_bias = jax.random.split(key, 3)
        vectors = [
            self.recurrent_init(k, (H, 1), dtype).reshape(H)
            for k in jax.random.split(k_recurrent, 3)
        ]
        params = {
            "input_kernel": gate_blocks(
                self.input_init, k_input, 3, input_size, H, dtype
            ),
            "recurrent_vector": jnp.concatenate(vectors),
        }
        return params, list(gate_biases(self.bias_init, k_bias, 3, H, dtype))

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """Return ``x W + b`` in the accumulator's dtype."""
        return projected(self, params, x)


@dataclasses.dataclass(frozen=True)
class DiagonalGRU(_Diagonal):
    """The GRU with diagonal recurrent matrices, blocks packed r, z, n::

        r, z = sigmoid(x_t W + u * h_{t-1} + b)
        n = tanh(x_t W_n + u_n * (r * h_{t-1}) + b_n)
        h_t = (1 - z) * n + z * h_{t-1}

    It is ParaGRU of ParaRNN (Danieli et al. 2025, arXiv:2510.21450), in this library's
    convention, where z keeps h: the paper's z is 1 - z here, so the weights and the
    bias of that block change sign.

    A step has no recurrent matrix product, so it is cheaper than that of `GRU`, but
    units mix only from layer to layer: stack several layers, with `residual_block` for
    example.

    Parameters: ``input_kernel`` W ``(D, 3H)``, ``recurrent_vector`` u ``(3H,)``, ``bias
    (3H,)``. Carry: ``h (*B, H)``, in float32 or wider. Output: h in the parameters'
    dtype.

    Args:
        hidden_size: H, the number of hidden units.
        input_init: initializer of each block of W.
        recurrent_init: initializer of u, called for a block ``(H, 1)``. By default
            normal with standard deviation ``2 / sqrt(5 H)``, as in the authors' code.
        bias_init: initializer of the biases of r and n.
        update_init: initializer of the update gate's bias. By default evenly spaced
            from 0 to 1 over the units, as in the authors' code; ``Chrono(T)`` gives
            memories of up to T steps.
        learned_initial_carry: if True, h before the first step is a parameter.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.DiagonalGRU(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> params["recurrent_vector"].shape, ys.shape
        ((12,), (5, 2, 4))
    """

    _: dataclasses.KW_ONLY
    update_init: Initializer | Chrono = Linspace(0.0, 1.0)

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
        params, (b_r, _, b_n) = self._parameters(key, input_size, dtype)
        b_z = self.update_init(jax.random.fold_in(key, 3), b_r.shape, dtype)
        return self.with_initial_carry(
            {**params, "bias": jnp.concatenate([b_r, b_z, b_n])}
        )

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B H"]:
        """Return zeros ``(*B, H)`` in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def step(
        self,
        params: Params,
        carry: Float[Array, "*B H"],
        z: Float[Array, "*B G"],
        *,
        recurrent_h=None,
    ):
        """Take one step of the equations above.

        ``recurrent_h`` replaces h where it is multiplied by u (variational dropout).
        """
        _, update, n = self._activations(
            params, carry if recurrent_h is None else recurrent_h, z
        )
        return (1 - update) * n + update * carry

    def _activations(
        self, params: Params, h: Array, z: Array
    ) -> tuple[Array, Array, Array]:
        """Return r, z and n."""
        u_r, u_z, u_n = (along(u, h) for u in jnp.split(params["recurrent_vector"], 3))
        z_r, z_z, z_n = jnp.split(z, 3, axis=-1)
        r, update = jax.nn.sigmoid(z_r + u_r * h), jax.nn.sigmoid(z_z + u_z * h)
        return r, update, jnp.tanh(z_n + u_n * (r * h))

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: Float[Array, "*B G"]
    ) -> dict[str, Gate]:
        """Return r, z (which keeps h) and n."""
        r, update, n = self._activations(params, carry, z)
        return {"r": Gate(r), "z": Gate(update, keeps=True), "n": Gate(n, low=-1.0)}

    def output(self, params: Params, carry: Carry, x: Inputs) -> Float[Array, "*TB H"]:
        """Return h in the parameters' dtype."""
        return carry.astype(params["input_kernel"].dtype)


@dataclasses.dataclass(frozen=True)
class DiagonalLSTM(_Diagonal):
    """The LSTM with diagonal recurrent matrices and peepholes, packed f, g, o::

        f = sigmoid(x_t W + u * h_{t-1} + p * c_{t-1} + b)
        g = tanh(x_t W_g + u_g * h_{t-1} + b_g)
        c_t = f * c_{t-1} + (1 - f) * g
        o = sigmoid(x_t W_o + u_o * h_{t-1} + p_o * c_t + b_o)
        h_t = o * tanh(c_t)

    It is ParaLSTM of ParaRNN (Danieli et al. 2025, arXiv:2510.21450), which is
    ``LSTM(H, peephole=True, coupled_gates=True)`` with diagonal recurrent matrices.
    As with `DiagonalGRU`, units mix only from layer to layer.

    Parameters: ``input_kernel`` W ``(D, 3H)``, ``recurrent_vector`` u ``(3H,)``,
    ``peephole_kernel`` p ``(2H,)`` (f, o), ``bias (3H,)``. Carry: `LSTMState` (h, c),
    c in float32 or wider. Output: h.

    Args:
        hidden_size: H, the number of hidden units.
        input_init: initializer of each block of W.
        recurrent_init: initializer of u and p, called for a block ``(H, 1)``. By
            default normal with standard deviation ``2 / sqrt(5 H)``, as in the
            authors' code.
        bias_init: initializer of the biases of g and o.
        forget_init: initializer of the forget gate's bias. By default evenly spaced
            from 0 down to -1 over the units, as in the authors' code, which gives
            short memories; use ``Chrono(T)`` for memories of up to T steps.
        learned_initial_carry: if True, (h, c) before the first step are parameters.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.DiagonalLSTM(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.c.shape, ys.shape
        ((2, 4), (5, 2, 4))
    """

    _: dataclasses.KW_ONLY
    forget_init: Initializer | Chrono = Linspace(0.0, -1.0)

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
        params, (b_f, b_g, b_o) = self._parameters(key, input_size, dtype)
        k_forget, *k_peephole = jax.random.split(jax.random.fold_in(key, 3), 3)
        b_f = self.forget_init(k_forget, b_f.shape, dtype)
        peepholes = [
            self.recurrent_init(k, (self.hidden_size, 1), dtype).reshape(-1)
            for k in k_peephole
        ]
        extra = {
            "peephole_kernel": jnp.concatenate(peepholes),
            "bias": jnp.concatenate([b_f, b_g, b_o]),
        }
        return self.with_initial_carry({**params, **extra})

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> LSTMState:
        """Return zeros: h in ``dtype``, c in the accumulator's dtype."""
        shape = (*batch_shape, self.hidden_size)
        return LSTMState(jnp.zeros(shape, dtype), jnp.zeros(shape, accumulator(dtype)))

    def step(
        self,
        params: Params,
        carry: LSTMState,
        z: Float[Array, "*B G"],
        *,
        recurrent_h=None,
    ) -> LSTMState:
        """Take one step of the equations above.

        ``recurrent_h`` replaces h where it is multiplied by u (variational dropout).
        """
        *_, o, c = self._activations(params, carry, z, recurrent_h)
        return LSTMState((o * jnp.tanh(c)).astype(carry.h.dtype), c)

    def _activations(
        self, params: Params, carry: LSTMState, z: Array, recurrent_h: Array | None
    ) -> tuple[Array, ...]:
        """Return f, g, o, and the new c."""
        c = carry.c
        h = (carry.h if recurrent_h is None else recurrent_h).astype(c.dtype)
        p_f, p_o = (along(p, c) for p in jnp.split(params["peephole_kernel"], 2))
        f, g, o = jnp.split(
            z
            + along(params["recurrent_vector"], z) * jnp.concatenate([h] * 3, axis=-1),
            3,
            axis=-1,
        )
        f, g = jax.nn.sigmoid(f + p_f * c), jnp.tanh(g)
        c = f * c + (1 - f) * g
        return f, g, jax.nn.sigmoid(o + p_o * c), c

    def gate_values(
        self, params: Params, carry: LSTMState, z: Float[Array, "*B G"]
    ) -> dict[str, Gate]:
        """Return f (which keeps c), g and o."""
        f, g, o, _ = self._activations(params, carry, z, None)
        return {"f": Gate(f, keeps=True), "g": Gate(g, low=-1.0), "o": Gate(o)}
