"""Long short-term memory."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.dtypes import accumulator
from ..core.exported import register_for_export
from ..core.types import Params
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
from .ops import along, dense, gate_activations, layer_norm, recur


@register_for_export
class LSTMState(NamedTuple):
    """The carry of an LSTM.

    Attributes:
        h: ``(*B, H)``, or ``(*B, P)`` with ``projection_size`` P, the output.
        c: ``(*B, H)``, the cell state, in float32 or wider.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.LSTM(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> state, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> bool((state.h == ys[-1]).all()), state.c.dtype
        (True, dtype('float32'))
    """

    h: Array
    c: Array


@dataclasses.dataclass(frozen=True)
class LSTM(BuiltinCell):
    """Long short-term memory with a forget gate, gates packed i, f, g, o::

        i, f, o = sigmoid(x_t W + h_{t-1} U + b)      g = tanh(x_t W + h_{t-1} U + b)
        c_t = f * c_{t-1} + i * g                     h_t = o * tanh(c_t)

    Hochreiter & Schmidhuber (1997); Gers et al. (2000).

    Parameters: ``input_kernel`` W ``(D, 4H)``, ``recurrent_kernel`` U ``(H, 4H)``,
    ``bias (4H,)``, each option below adding its own. Carry: `LSTMState` (h, c); c is
    kept in float32 or wider, also with bfloat16 parameters, because it sums over the
    whole sequence. Output: h.

    The defaults are a sound choice. For dependencies over a known number of steps T,
    ``forget_bias=Chrono(T)`` lets the units begin with memories of up to T steps.

    Args:
        hidden_size: H, the number of hidden units.
        forget_bias: number added to the forget gate's bias at init (1: Gers et al.
            2000, Jozefowicz et al. 2015), or ``Chrono(T)``.
        layer_norm: if True, normalize ``x W``, ``h U`` and, before the output, ``c``
            (Ba et al. 2016, eq. 20-22). This adds the parameters ``input_norm_scale``
            and ``recurrent_norm_scale (4H,)``, ``cell_norm_scale`` and
            ``cell_norm_bias (H,)``.
        peephole: if True, i and f also see ``p * c_{t-1}``, and o sees ``p * c_t``
            (Gers & Schmidhuber 2000). ``peephole_kernel`` holds one vector ``(H,)``
            for each of i, f, o (f, o when coupled).
        coupled_gates: if True, ``i = 1 - f`` (CIFG of Greff et al. 2017). The kernels
            then hold three blocks, f, g, o.
        projection_size: P. If given, ``h_t = (o * tanh(c_t)) R`` with
            ``projection_kernel`` R ``(H, P)``, as torch's ``proj_size`` (Sak et al.
            2014); h, the recurrence and the output then have P features.
        input_init: initializer of each block of W.
        recurrent_init: initializer of each block of U, and of R.
        bias_init: initializer of each gate's bias, before ``forget_bias`` is added.
        learned_initial_carry: if True, (h, c) before the first step are parameters.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.LSTM(4)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.c.shape, ys.shape
        ((2, 4), (5, 2, 4))
    """

    _: dataclasses.KW_ONLY
    forget_bias: float | Chrono = 1.0
    layer_norm: bool = False
    peephole: bool = False
    coupled_gates: bool = False
    projection_size: int | None = None
    input_init: Initializer = LecunNormal()
    recurrent_init: Initializer = Orthogonal()
    bias_init: Initializer = Zeros()

    def __post_init__(self):
        super().__post_init__()
        if self.projection_size is not None:
            check_positive(self, projection_size=self.projection_size)

    @property
    def gates(self) -> int:
        """The number of gate blocks in a kernel: 4 (i, f, g, o), or 3 when coupled."""
        return 3 if self.coupled_gates else 4

    @property
    def output_size(self) -> int:
        """The number of features of h: P with a projection, else H."""
        return self.projection_size or self.hidden_size

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
        dtype, gates, H = dtype or jnp.result_type(float), self.gates, self.hidden_size
        k_input, k_recurrent, k_bias, k_projection = jax.random.split(key, 4)
        params = {
            "input_kernel": gate_blocks(
                self.input_init, k_input, gates, input_size, H, dtype
            ),
            "recurrent_kernel": gate_blocks(
                self.recurrent_init, k_recurrent, gates, self.output_size, H, dtype
            ),
            "bias": self.init_bias(k_bias, dtype),
        }
        if self.projection_size is not None:
            params["projection_kernel"] = self.recurrent_init(
                k_projection, (H, self.projection_size), dtype
            )
        if self.peephole:
            params["peephole_kernel"] = jnp.zeros(((gates - 1) * H,), dtype)
        if self.layer_norm:
            params |= {
                "input_norm_scale": jnp.ones(gates * H, dtype),
                "recurrent_norm_scale": jnp.ones(gates * H, dtype),
                "cell_norm_scale": jnp.ones(H, dtype),
                "cell_norm_bias": jnp.zeros(H, dtype),
            }
        return self.with_initial_carry(params)

    def init_bias(self, key: Array, dtype: DTypeLike) -> Float[Array, " G"]:
        """Draw the packed bias ``(4H,)``, or ``(3H,)`` when gates are coupled.

        Every gate's bias comes from ``bias_init``. Then ``forget_bias`` is added to
        that of the forget gate; `Chrono` replaces it, and the input gate's as well.
        """
        k_bias, k_chrono = jax.random.split(key)
        bias = gate_biases(self.bias_init, k_bias, self.gates, self.hidden_size, dtype)
        f = self.gates - 3  # the blocks are i, f, g, o, or f, g, o when coupled
        if isinstance(self.forget_bias, Chrono):
            bias[f] = self.forget_bias(k_chrono, (self.hidden_size,), dtype)
            if not self.coupled_gates:
                bias[0] = -bias[f]
        else:
            bias[f] = bias[f] + self.forget_bias
        return jnp.concatenate(bias)

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> LSTMState:
        """Return zeros: h in ``dtype``, c in the accumulator's dtype."""
        return LSTMState(
            jnp.zeros((*batch_shape, self.output_size), dtype),
            jnp.zeros((*batch_shape, self.hidden_size), accumulator(dtype)),
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """Return ``x W``, normalized if ``layer_norm`` is set."""
        check_features(self, params["input_kernel"], x)
        z = dense(x, params["input_kernel"])
        return layer_norm(z, params["input_norm_scale"]) if self.layer_norm else z

    def step(
        self,
        params: Params,
        carry: LSTMState,
        z: Float[Array, "*B G"],
        *,
        recurrent_h=None,
    ) -> LSTMState:
        """Take one step of the equations above.

        ``recurrent_h`` replaces h where it is multiplied by U (variational dropout).
        """
        *_, o, c = self._activations(params, carry, z, recurrent_h)
        normalized_c = (
            layer_norm(c, params["cell_norm_scale"])
            + along(params["cell_norm_bias"], c)
            if self.layer_norm
            else c
        )
        new_h = o * jnp.tanh(normalized_c)
        if self.projection_size is not None:
            new_h = recur(new_h, params["projection_kernel"])
        return LSTMState(new_h.astype(carry.h.dtype), c)

    def _activations(
        self, params: Params, carry: LSTMState, z: Array, recurrent_h: Array | None
    ) -> list[Array]:
        """Return i (unless coupled), f, g, o, and the new c."""
        h, c = carry
        a = recur(h if recurrent_h is None else recurrent_h, params["recurrent_kernel"])
        if self.layer_norm:
            a = layer_norm(a, params["recurrent_norm_scale"])
        gates = a + z.astype(a.dtype) + along(params["bias"], a)
        if self.peephole:
            *p_i, p_f, p_o = (
                along(p, c)
                for p in jnp.split(params["peephole_kernel"], self.gates - 1)
            )
            *i, f, g, o = jnp.split(gates, self.gates, axis=-1)
            i, f = (
                [jax.nn.sigmoid(gate + p * c) for gate, p in zip(i, p_i, strict=True)],
                jax.nn.sigmoid(f + p_f * c),
            )
            g = jnp.tanh(g)
        else:
            *i, f, g, o = gate_activations(gates, self.gates)
        c = f * c + (1 - f if self.coupled_gates else i[0]) * g
        if self.peephole:
            o = jax.nn.sigmoid(o + p_o * c)
        return [*i, f, g, o, c]

    def gate_values(
        self, params: Params, carry: LSTMState, z: Float[Array, "*B G"]
    ) -> dict[str, Gate]:
        """Return i (unless coupled), f (which keeps c), g and o."""
        *i, f, g, o, _ = self._activations(params, carry, z, None)
        inputs = {"i": Gate(i[0])} if i else {}
        return {
            **inputs,
            "f": Gate(f, keeps=True),
            "g": Gate(g, low=-1.0),
            "o": Gate(o),
        }
