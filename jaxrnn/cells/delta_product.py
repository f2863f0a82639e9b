"""DeltaProduct: several delta rules a step."""

from __future__ import annotations

import dataclasses

from ..core.validation import check_positive
from .key_features import MappedDeltaCell


@dataclasses.dataclass(frozen=True)
class DeltaProduct(MappedDeltaCell):
    """DeltaProduct, which overwrites its state at several keys a step::

        q = phi(conv(x W_q)),   k_j, v_j = phi(conv(x W_kj)), silu(conv(x W_vj))
        q, k_j = q / |q| / sqrt(d_k), k_j / |k_j|                       of each head
        beta_j = 2 sigmoid(x W_bj)                                      j = 1 ... n
        alpha = exp(-exp(A_log) softplus(x W_a + dt_bias))
        S <- alpha S
        S <- (I - beta_j k_j k_j^T) S + beta_j k_j v_j^T                for j = 1 ... n
        y_t = S^T q
        h_t = RMSNorm(y_t) * silu(x W_g)                                of each head
        output = h_t W_o

    Siems et al. (2025, arXiv:2502.10297). The matrix of a step is a product of n
    Householder reflections, or of maps between them and the identity, so that it may be
    a rotation or a permutation: one product tells even from odd, two swap and rotate.
    phi is silu, as published; keys that point into all directions, by the identity,
    learn permutations sooner.
    With one product this is `GatedDeltaNet`, and `DeltaNet` without the decay.

    Parameters: ``input_kernel (D, G)``, blocks q, then k of all n, v of all n, b of n
    times N columns, a of one column a head, and the gate g; ``conv_kernel (conv, N_k
    d_k + n (N_k d_k + H))``, whose row j is of the input j steps before; ``A_log
    (N,)``, ``dt_bias (N,)``, ``norm_scale (d_v,)`` and ``output_kernel (H, O)``. Carry:
    `MatrixState` (h, S, recent). Output: ``(*B, O)``.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N, the number of heads of v, each with a state.
        num_key_heads: N_k, the number of heads of q and k, a divisor of N. Each serves
            as many neighboring heads of v. By default N.
        key_size: d_k (default: d_v).
        num_products: n, the number of keys at which a step writes.
        use_forget_gate: whether the state decays by alpha at every step.
        conv: the width of the convolution, or None for none.
        allow_negative: if False, beta is the sigmoid itself, and not twice it: the
            eigenvalues of each factor then lie between 0 and 1, and it cannot reflect.
        feature_map: phi: ``"silu"``, ``"elu"`` for 1 + elu, ``"relu"`` or
            ``"identity"``; see `DeltaNet`.
        key_norm: by what q and k of a head are divided: ``"l2"``, their length; or
            ``"sum"``, their sum, which needs 1 + elu or relu.
        use_gate: whether the output gate silu(x W_g) is there.
        norm_epsilon: what the norm adds to the mean of squares.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the kernels, with the convolution's.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, or
            ``num_key_heads`` does not divide ``num_heads``; for sizes and a
            ``num_products`` below 1, for a ``conv`` below 2, and for a ``norm_epsilon``
            that is not above 0.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.DeltaProduct(8, num_heads=2, num_products=3)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 4, 4), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    num_products: int = 2
    use_forget_gate: bool = True
    allow_negative: bool = True

    def __post_init__(self):
        check_positive(self, num_products=self.num_products)
        super().__post_init__()

    @property
    def micro_steps(self) -> int:
        return self.num_products

    @property
    def forgets(self) -> bool:
        return self.use_forget_gate
