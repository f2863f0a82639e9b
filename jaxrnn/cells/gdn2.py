"""Gated DeltaNet 2: what is erased and what is written, gated a channel."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.types import Carry, Params
from ..matrix import Terms
from .kda import ChannelDeltaCell
from .matrix_base import join_heads


@dataclasses.dataclass(frozen=True)
class GDN2(ChannelDeltaCell):
    """Gated DeltaNet 2, a `KDA` that erases and writes by gates of their own::

        q, k, v = silu(conv(x W_q)), silu(conv(x W_k)), silu(conv(x W_v))
        q, k = q / |q| / sqrt(d_k), k / |k|                             of each head
        e, w = sigmoid(x W_e), sigmoid(x W_w)                           of each channel
        alpha = exp(-exp(A_log) softplus(x W_f1 W_f2 + dt_bias))        of each channel
        S_t = (I - k (e * k)^T) Diag(alpha) S_{t-1} + k (w * v)^T       y_t = S_t^T q
        h_t = RMSNorm(y_t) * sigmoid(x W_g1 W_g2 + gate_bias)           of each head
        output = h_t W_o

    Gated DeltaNet-2: Decoupling Erase and Write in Linear Attention (2026,
    arXiv:2605.22791). Where e and w are the same in all channels this is `KDA`. conv is
    a depthwise convolution over the last ``conv`` steps.

    Parameters: ``input_kernel (D, G)``, blocks q, k, v, e and w, and d_v columns each
    for W_f1 and W_g1; ``decay_kernel (d_v, N_k d_k)`` and ``gate_kernel (d_v, H)``,
    which are W_f2 and W_g2; ``conv_kernel (conv, 2 N_k d_k + H)``, whose row j is of
    the input j steps before; ``A_log (N_k,)``, ``dt_bias (N_k d_k,)``, ``gate_bias
    (H,)``, ``norm_scale (d_v,)`` and ``output_kernel (H, O)``. Carry: `MatrixState` (h,
    S, recent). Output: ``(*B, O)``.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N, the number of heads of v, each with a state.
        num_key_heads: N_k, the number of heads of q, k, e and alpha, a divisor of N.
            Each serves as many neighboring heads of v. By default N.
        key_size: d_k (default: d_v).
        safe_gate: if True, the logarithm of alpha is bounded, as in `KDA`.
        conv: the width of the convolution, or None for none.
        allow_negative: if True, e is twice the sigmoid, so that the eigenvalues of a
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
        >>> cell = jaxrnn.cells.GDN2(8, num_heads=2, num_key_heads=1)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 4, 4), (5, 2, 3))
    """

    @property
    def decay_heads(self) -> int:
        return self.key_heads

    @property
    def blocks(self) -> dict[str, int]:
        erase, write = self.key_heads * self.keys, self.hidden_size
        return {**self.convolved_blocks, "erase": erase, "write": write}

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return q, k, w v, log alpha and what is erased, -e alpha k."""
        part = self.split(z)
        q, k, v = self.queries_keys_values(part)
        erase = self.split_key_heads(self.erasing(part["erase"]))
        write = self.split_heads(jax.nn.sigmoid(part["write"]))
        log_alpha = self.log_alpha(params, part)
        return Terms(q, k, write * v, log_alpha, -erase * jnp.exp(log_alpha) * k)

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """Return alpha (which keeps S), e and w, of all channels."""
        part = self.split(z)
        alpha = jnp.exp(join_heads(self.log_alpha(params, part)))
        return {
            "alpha": Gate(alpha, keeps=True),
            "erase": Gate(self.erasing(part["erase"]), high=self.most_erased),
            "write": Gate(jax.nn.sigmoid(part["write"])),
        }
