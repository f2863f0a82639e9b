"""Gated DeltaNet: a decay, and the delta rule."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.types import Carry, Params
from ..matrix import Terms
from .matrix_base import (
    ProjectedMatrixCell,
    draw_log_rate,
    draw_step_bias,
    join_heads,
    rms_norm,
    unit_length,
)
from .ops import along


@dataclasses.dataclass(frozen=True)
class GatedDeltaNet(ProjectedMatrixCell):
    """Gated DeltaNet, which decays its state and then overwrites at a key::

        q, k, v = silu(conv(x W_q)), silu(conv(x W_k)), silu(conv(x W_v))
        q, k = q / |q| / sqrt(d_k), k / |k|                             of each head
        beta = sigmoid(x W_b)
        alpha = exp(-exp(A_log) softplus(x W_a + dt_bias))
        S_t = alpha (I - beta k k^T) S_{t-1} + beta k v^T               y_t = S_t^T q
        h_t = RMSNorm(y_t) * silu(x W_g)                                of each head
        output = h_t W_o

    Yang, Kautz & Hatamizadeh (2024, arXiv:2412.06464). With beta 1 what is read at a
    key afterwards is the value that was written there last. conv is a depthwise
    convolution over the last ``conv`` steps.

    Parameters: ``input_kernel (D, G)``, blocks q, k, v, then b and a of one column a
    head, and the gate g; ``conv_kernel (conv, 2 N_k d_k + H)``, whose row j is of the
    input j steps before; ``A_log (N,)``, ``dt_bias (N,)``, ``norm_scale (d_v,)`` and
    ``output_kernel (H, O)``. Carry: `MatrixState` (h, S, recent). Output: ``(*B, O)``.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N, the number of heads of v, each with a state.
        num_key_heads: N_k, the number of heads of q and k, a divisor of N. Each serves
            as many neighbouring heads of v. By default N.
        key_size: d_k (default: d_v).
        conv: the width of the convolution, or None for none.
        allow_negative: if True, beta is twice the sigmoid, so that the eigenvalues of a
            step lie between -1 and 1 (Grazzi et al. 2024, arXiv:2411.12537). Parity and
            other states that alternate need it.
        use_gate: whether the output gate silu(x W_g) is there.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the kernels, with the convolution's.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, or
            ``num_key_heads`` does not divide ``num_heads``; for sizes below 1, and for
            a ``conv`` below 2.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.GatedDeltaNet(8, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 4, 4), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    num_key_heads: int | None = None
    conv: int | None = 4
    allow_negative: bool = False
    use_gate: bool = True

    @property
    def key_heads(self) -> int:
        return self.num_heads if self.num_key_heads is None else self.num_key_heads

    @property
    def looks_back(self) -> int:
        return 0 if self.conv is None else self.conv

    @property
    def blocks(self) -> dict[str, int]:
        keys, heads = self.key_heads * self.keys, self.num_heads
        gate = {"gate": self.hidden_size} if self.use_gate else {}
        of_heads = {"beta": heads, "alpha": heads}
        return {"q": keys, "k": keys, "v": self.hidden_size, **of_heads, **gate}

    convolved = ("q", "k", "v")

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        k_rate, k_step = jax.random.split(key)
        heads = (self.num_heads,)
        return {
            "A_log": draw_log_rate(k_rate, heads, dtype, 0.0, 16.0),
            "dt_bias": draw_step_bias(k_step, heads, dtype),
            "norm_scale": jnp.ones((self.values,), dtype),
        }

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return q, k, beta v, log alpha and what is erased, -beta alpha k."""
        q, k, v, beta, log_alpha = self.of_step(params, z)
        a = -beta * jnp.exp(log_alpha) * self.spread(k)
        return Terms(q, k, beta * v, log_alpha, a)

    def of_step(self, params: Params, z: Float[Array, "*TB G"]) -> tuple[Array, ...]:
        """Return q, k, v, and beta and log alpha ``(..., heads, 1)``."""
        part = self.split(z)
        q, k = (
            unit_length(self.split_key_heads(jax.nn.silu(part[name]))) for name in "qk"
        )
        v = self.split_heads(jax.nn.silu(part["v"]))
        beta = jax.nn.sigmoid(part["beta"]) * (2 if self.allow_negative else 1)
        alpha = part["alpha"]
        step = jax.nn.softplus(alpha + along(params["dt_bias"], alpha))
        log_alpha = -jnp.exp(along(params["A_log"], alpha)) * step
        q = q * jnp.asarray(self.keys**-0.5, q.dtype)
        return q, k, v, beta[..., None], log_alpha[..., None]

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB H"]:
        """Return the gated norm of each head."""
        h = join_heads(rms_norm(y, params["norm_scale"]))
        return h * jax.nn.silu(self.split(z)["gate"]) if self.use_gate else h

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """Return alpha (which keeps S) and beta, ``(..., heads)``."""
        *_, beta, log_alpha = self.of_step(params, z)
        high = 2.0 if self.allow_negative else 1.0
        return {
            "alpha": Gate(jnp.exp(log_alpha[..., 0]), keeps=True),
            "beta": Gate(beta[..., 0], high=high),
        }
