"""DeltaNet: the delta rule."""

from __future__ import annotations

import dataclasses

from .key_features import MappedDeltaCell


@dataclasses.dataclass(frozen=True)
class DeltaNet(MappedDeltaCell):
    """DeltaNet, which overwrites what its state holds at a key::

        q, k, v = phi(conv(x W_q)), phi(conv(x W_k)), silu(conv(x W_v))
        q, k = q / |q| / sqrt(d_k), k / |k|                             of each head
        beta = sigmoid(x W_b)
        S_t = (I - beta k k^T) S_{t-1} + beta k v^T                     y_t = S_t^T q
        h_t = RMSNorm(y_t)                                              of each head
        output = h_t W_o

    Schlag, Irie & Schmidhuber (2021, arXiv:2102.11174), with the norms and convolutions
    of Yang et al. (2024, arXiv:2406.06484). With beta 1 what is read at a key
    afterwards is the value that was written there last. conv is a depthwise convolution
    over the last ``conv`` steps. phi is silu, as Yang et al. have it, or another
    ``feature_map``. `GatedDeltaNet` decays its state, too.

    Parameters: ``input_kernel (D, G)``, blocks q, k, v, then b of one column a head,
    and the gate g if there is one; ``conv_kernel (conv, 2 N_k d_k + H)``, whose row j
    is of the input j steps before; ``norm_scale (d_v,)`` and ``output_kernel (H, O)``.
    Carry: `MatrixState` (h, S, recent). Output: ``(*B, O)``.

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
        feature_map: phi, ``"silu"``, ``"elu"`` for 1 + elu (Katharopoulos et al. 2020,
            arXiv:2006.16236), ``"relu"`` or ``"identity"``.
        key_norm: by what q and k of a head are divided: ``"l2"``, their length; or
            ``"sum"``, their sum, as Schlag et al. do, at least 1e-6, which needs the
            ``feature_map`` 1 + elu or relu, whose values are not negative.
        use_gate: if True, h is multiplied by an output gate, silu(x W_g).
        norm_epsilon: what the norm adds to the mean of squares.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the kernels, with the convolution's.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, or
            ``num_key_heads`` does not divide ``num_heads``; for sizes below 1, for a
            ``conv`` below 2 and a ``norm_epsilon`` that is not above 0; and for an
            unknown ``feature_map`` or ``key_norm``, or a sum of values that may be
            negative.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.DeltaNet(8, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 4, 4), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    use_gate: bool = False

    @property
    def forgets(self) -> bool:
        return False
