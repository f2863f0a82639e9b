"""Kimi Delta Attention: the delta rule, and a decay a channel."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.types import Carry, Params
from ..matrix import Terms
from .delta_rule import DeltaRuleCell
from .matrix_base import LowRank, draw_log_rate, draw_step_bias, join_heads, rms_norm
from .ops import along

# The bound that Kimi Linear's code gives a logarithm of a decay.
LEAST_SAFE_LOG_DECAY = -5.0


@dataclasses.dataclass(frozen=True)
class ChannelDeltaCell(DeltaRuleCell):
    """A delta rule with a decay for every channel of the keys.

    The decay and the output gate are projections of rank d_v.
    """

    _: dataclasses.KW_ONLY
    safe_gate: bool = False

    @property
    def decay_heads(self) -> int:
        """The number of heads that have a decay of their own."""
        return self.num_heads

    @property
    def low_rank(self) -> dict[str, LowRank]:
        decay = LowRank(self.values, self.decay_heads * self.keys)
        gate = {"gate": LowRank(self.values, self.hidden_size)} if self.use_gate else {}
        return {"decay": decay, **gate}

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        k_rate, k_step = jax.random.split(key)
        heads = (self.decay_heads,)
        if self.safe_gate:
            A_log = jnp.zeros(heads, dtype)
        else:
            A_log = draw_log_rate(k_rate, heads, dtype, 1.0, 16.0)
        bias = {"gate_bias": jnp.zeros((self.hidden_size,), dtype)}
        return {
            "A_log": A_log,
            "dt_bias": draw_step_bias(k_step, (heads[0] * self.keys,), dtype),
            **(bias if self.use_gate else {}),
            "norm_scale": jnp.ones((self.values,), dtype),
        }

    def log_alpha(
        self, params: Params, part: dict[str, Array]
    ) -> Float[Array, "*TB Nd K"]:
        """Return the logarithms of the decays."""
        x = part["decay"]
        x = x + along(params["dt_bias"], x)
        x = x.reshape(*x.shape[:-1], self.decay_heads, self.keys)
        rate = jnp.exp(along(params["A_log"], x[..., 0]))[..., None]
        if self.safe_gate:
            return LEAST_SAFE_LOG_DECAY * jax.nn.sigmoid(rate * x)
        return -rate * jax.nn.softplus(x)

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB H"]:
        """Return the norm of each head, gated if there is a gate."""
        h = join_heads(rms_norm(y, params["norm_scale"]))
        if not self.use_gate:
            return h
        gate = self.split(z)["gate"]
        return h * jax.nn.sigmoid(gate + along(params["gate_bias"], gate))


@dataclasses.dataclass(frozen=True)
class KDA(ChannelDeltaCell):
    """Kimi Delta Attention, a `GatedDeltaNet` whose key channels decay apart::

        q, k, v = silu(conv(x W_q)), silu(conv(x W_k)), silu(conv(x W_v))
        q, k = q / |q| / sqrt(d_k), k / |k|                             of each head
        beta = sigmoid(x W_b)
        alpha = exp(-exp(A_log) softplus(x W_f1 W_f2 + dt_bias))        of each channel
        S_t = (I - beta k k^T) Diag(alpha) S_{t-1} + beta k v^T         y_t = S_t^T q
        h_t = RMSNorm(y_t) * sigmoid(x W_g1 W_g2 + gate_bias)           of each head
        output = h_t W_o

    Kimi Team (2025, arXiv:2510.26692), the recurrence of Kimi Linear. conv is a
    depthwise convolution over the last ``conv`` steps.

    Parameters: ``input_kernel (D, G)``, blocks q, k, v, then b of one column a head,
    and d_v columns each for W_f1 and W_g1; ``decay_kernel (d_v, N d_k)`` and
    ``gate_kernel (d_v, H)``, which are W_f2 and W_g2; ``conv_kernel (conv, 2 N_k d_k +
    H)``, whose row j is of the input j steps before; ``A_log (N,)``, ``dt_bias (N
    d_k,)``, ``gate_bias (H,)``, ``norm_scale (d_v,)`` and ``output_kernel (H, O)``.
    Carry: `MatrixState` (h, S, recent). Output: ``(*B, O)``.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N, the number of heads of v, each with a state.
        num_key_heads: N_k, the number of heads of q and k, a divisor of N. Each serves
            as many neighboring heads of v. By default N.
        key_size: d_k (default: d_v).
        safe_gate: if True, the logarithm of alpha is bounded, ``-5 sigmoid(exp(A_log)
            (x W_f1 W_f2 + dt_bias))``, so that no step forgets all. The chunks here
            need no such bound; a model that was trained with it does.
        conv: the width of the convolution, or None for none.
        allow_negative: if True, beta is twice the sigmoid, so that the eigenvalues of a
            step lie between -1 and 1 (Grazzi et al. 2024, arXiv:2411.12537). Parity and
            other states that alternate need it.
        use_gate: whether the output gate is there.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the kernels, with the convolution's.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, or
            ``num_key_heads`` does not divide ``num_heads``; for sizes below 1, and for
            a ``conv`` below 2.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.KDA(8, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 4, 4), (5, 2, 3))
    """

    @property
    def blocks(self) -> dict[str, int]:
        return {**self.convolved_blocks, "beta": self.num_heads}

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return q, k, beta v, log alpha and what is erased, -beta alpha k."""
        part = self.split(z)
        q, k, v = self.queries_keys_values(part)
        beta = self.erasing(part["beta"])[..., None]
        log_alpha = self.log_alpha(params, part)
        a = -beta * jnp.exp(log_alpha) * self.spread(k)
        return Terms(q, k, beta * v, log_alpha, a)

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """Return alpha of all channels (which keeps S), and the beta of each head."""
        part = self.split(z)
        alpha = jnp.exp(join_heads(self.log_alpha(params, part)))
        beta = self.erasing(part["beta"])
        return {
            "alpha": Gate(alpha, keeps=True),
            "beta": Gate(beta, high=self.most_erased),
        }
