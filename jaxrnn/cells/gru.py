"""The gated recurrent unit."""

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
from .ops import along, dense, layer_norm, recur


@dataclasses.dataclass(frozen=True)
class GRU(BuiltinCell):
    """The gated recurrent unit, gates packed r, z, n::

        r, z = sigmoid(x_t W + h_{t-1} U + b)
        n = tanh(x_t W_n + b_n + r * (h_{t-1} U_n + b_hn))      reset after
        n = tanh(x_t W_n + b_n + (r * h_{t-1}) U_n)             reset before
        h_t = (1 - z) * n + z * h_{t-1}

    "Reset after" is the form of torch and cuDNN and the default; "reset before" is that
    of Cho et al. (2014). The two forms are different functions: weights of one do not
    convert to the other.

    Parameters: ``input_kernel`` W ``(D, 3H)``, ``recurrent_kernel`` U ``(H, 3H)``,
    ``bias (3H,)``, and with reset after ``recurrent_bias (H,)``, the b_hn above, so
    that torch's weights fit without loss. Carry: ``h (*B, H)``, an array, kept in
    float32 or wider because it accumulates. Output: h, cast back to the parameters'
    dtype.

    Args:
        hidden_size: H, the number of hidden units.
        reset_after: whether r multiplies after U_n (True) or before it (False). Keep
            True to use torch's weights.
        update_bias: number added to the update gate's bias at init, or ``Chrono(T)``
            for memories of up to T steps. A z near 1 keeps the state.
        layer_norm: if True, normalize ``x W`` and ``h U``, the r and z blocks together
            and n by itself (Ba et al. 2016, eq. 25-27). This adds the parameters
            ``input_norm_scale`` and ``recurrent_norm_scale``, ``(3H,)`` each.
        input_init: initializer of each block of W.
        recurrent_init: initializer of each block of U.
        bias_init: initializer of the biases.
        learned_initial_carry: if True, h before the first step is a parameter.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.GRU(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.shape, ys.shape
        ((2, 4), (5, 2, 4))
    """

    _: dataclasses.KW_ONLY
    reset_after: bool = True
    update_bias: float | Chrono = 0.0
    layer_norm: bool = False
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
        k_input, k_recurrent, k_bias, k_chrono, k_recurrent_bias = jax.random.split(
            key, 5
        )
        b_r, b_z, b_n = gate_biases(self.bias_init, k_bias, 3, H, dtype)
        b_z = (
            self.update_bias(k_chrono, (H,), dtype)
            if isinstance(self.update_bias, Chrono)
            else b_z + self.update_bias
        )
        params = {
            "input_kernel": gate_blocks(
                self.input_init, k_input, 3, input_size, H, dtype
            ),
            "recurrent_kernel": gate_blocks(
                self.recurrent_init, k_recurrent, 3, H, H, dtype
            ),
            "bias": jnp.concatenate([b_r, b_z, b_n]),
        }
        if self.reset_after:
            params["recurrent_bias"] = self.bias_init(k_recurrent_bias, (H,), dtype)
        if self.layer_norm:
            params |= {
                "input_norm_scale": jnp.ones(3 * H, dtype),
                "recurrent_norm_scale": jnp.ones(3 * H, dtype),
            }
        return self.with_initial_carry(params)

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> Float[Array, "*B H"]:
        """Return zeros ``(*B, H)`` in the accumulator's dtype."""
        return jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype))

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """Return ``x W``, normalized if ``layer_norm`` is set."""
        check_features(self, params["input_kernel"], x)
        z = dense(x, params["input_kernel"])
        return self.normalize(z, params["input_norm_scale"]) if self.layer_norm else z

    def normalize(
        self, z: Float[Array, "*B G"], scale: Float[Array, " G"]
    ) -> Float[Array, "*B G"]:
        """Normalize the r and z blocks together, and the n block by itself."""
        gates, scales = (
            jnp.split(z, [2 * self.hidden_size], -1),
            jnp.split(scale, [2 * self.hidden_size], -1),
        )
        return jnp.concatenate(
            [layer_norm(g, s) for g, s in zip(gates, scales, strict=True)], axis=-1
        )

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
        _, update, n = self._activations(params, carry, z, recurrent_h)
        return (1 - update) * n + update * carry

    def _activations(
        self, params: Params, carry: Array, z: Array, recurrent_h: Array | None
    ) -> tuple[Array, Array, Array]:
        """Return r, z and n."""
        H, h_in = self.hidden_size, carry if recurrent_h is None else recurrent_h
        kernel, z = params["recurrent_kernel"], z.astype(carry.dtype)
        z = z + along(params["bias"], z)
        if self.reset_after:
            a = recur(h_in, kernel)
            if self.layer_norm:
                a = self.normalize(a, params["recurrent_norm_scale"])
            a, a_n = jnp.split(a, [2 * H], axis=-1)
            a_n = a_n + along(params["recurrent_bias"], a_n)
        else:
            a = recur(h_in, kernel[:, : 2 * H])
            if self.layer_norm:
                a = layer_norm(a, params["recurrent_norm_scale"][: 2 * H])
        r, update = jnp.split(jax.nn.sigmoid(z[..., : 2 * H] + a), 2, axis=-1)
        if self.reset_after:
            a_n = r * a_n
        else:
            a_n = recur(r * h_in, kernel[:, 2 * H :])
            if self.layer_norm:
                a_n = layer_norm(a_n, params["recurrent_norm_scale"][2 * H :])
        return r, update, jnp.tanh(z[..., 2 * H :] + a_n)

    def gate_values(
        self, params: Params, carry: Float[Array, "*B H"], z: Float[Array, "*B G"]
    ) -> dict[str, Gate]:
        """Return r, z (which keeps h) and n."""
        r, update, n = self._activations(params, carry, z, None)
        return {"r": Gate(r), "z": Gate(update, keeps=True), "n": Gate(n, low=-1.0)}

    def output(self, params: Params, carry: Carry, x: Inputs) -> Float[Array, "*TB H"]:
        """Return h in the parameters' dtype."""
        return carry.astype(params["recurrent_kernel"].dtype)
