"""Gated DeltaNet: a decay, and the delta rule."""

from __future__ import annotations

import dataclasses

from .delta_rule import HeadDeltaCell


@dataclasses.dataclass(frozen=True)
class GatedDeltaNet(HeadDeltaCell):
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
            as many neighboring heads of v. By default N.
        key_size: d_k (default: d_v).
        conv: the width of the convolution, or None for none.
        allow_negative: if True, beta is twice the sigmoid, so that the eigenvalues of a
            step lie between -1 and 1 (Grazzi et al. 2024, arXiv:2411.12537). Parity and
            other states that alternate need it.
        use_gate: whether the output gate silu(x W_g) is there.
        norm_epsilon: what the norm adds to the mean of squares.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the kernels, with the convolution's.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, or
            ``num_key_heads`` does not divide ``num_heads``; for sizes below 1, and for
            a ``conv`` below 2 and a ``norm_epsilon`` that is not above 0.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.GatedDeltaNet(8, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 4, 4), (5, 2, 3))
    """
