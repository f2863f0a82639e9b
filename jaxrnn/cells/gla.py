"""Gated linear attention: a decay for every channel of the keys."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.types import Params
from ..core.validation import check_positive
from ..matrix import Terms
from .matrix_base import (
    LowRank,
    ProjectedMatrixCell,
    check_norm_epsilon,
    conv_width,
    is_real,
    join_heads,
    rms_norm,
)
from .ops import along


@dataclasses.dataclass(frozen=True)
class GLA(ProjectedMatrixCell):
    """Gated linear attention, with a decay for every channel of the keys::

        q, k, v = x W_q / sqrt(d_k), x W_k, x W_v
        alpha = sigmoid(x W_1 W_2 + b)^(1 / gate_divisor)
        S_t = Diag(alpha) S_{t-1} + k v^T                               y_t = S_t^T q
        h_t = RMSNorm(y_t) * silu(x W_g)                                of each head
        output = h_t W_o

    Yang et al. (2024, arXiv:2312.06635). W_1 and W_2 have the rank ``gate_rank``. The
    root keeps the decays near 1. With ``conv`` each of q, k and v is silu of a
    depthwise convolution over so many steps.

    Parameters: ``input_kernel (D, G)``, blocks q, k, v, the output gate, and W_1;
    ``alpha_kernel (gate_rank, N d_k)``, W_2; ``alpha_bias (N d_k,)``,
    ``norm_scale (d_v,)`` and ``output_kernel (H, O)``; with ``conv`` ``conv_kernel
    (conv, 2 N d_k + H)``, whose row j is of the input j steps before. Carry:
    `MatrixState` (h, S, recent). Output: ``(*B, O)``.

    The paper's models have 4 heads, a ``hidden_size`` of D, and keys half as wide as
    values.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N, the number of heads, each with a state.
        key_size: d_k (default: d_v).
        gate_rank: the rank of the product that makes the decays.
        gate_divisor: by which the logarithms of the decays are divided.
        conv: the width of the convolution, or None for none.
        use_gate: whether the output gate silu(x W_g) is there.
        norm_epsilon: what the norm adds to the mean of squares.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the kernels, with the convolution's. The bias begins
            at zero.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``; for sizes below 1,
            a ``conv`` below 2, and a ``gate_divisor`` or ``norm_epsilon`` that is not
            above 0.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.GLA(8, num_heads=2, key_size=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 2, 4), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    gate_rank: int = 16
    gate_divisor: float = 16.0
    conv: int | None = None
    use_gate: bool = True
    norm_epsilon: float = 1e-5

    convolved = ("q", "k", "v")

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, gate_rank=self.gate_rank)
        check_norm_epsilon(self, self.norm_epsilon)
        if not is_real(self.gate_divisor) or not 0 < self.gate_divisor < math.inf:
            raise ValueError(
                f"GLA: gate_divisor, by which the logarithms of the decays are "
                f"divided, must be a number above 0, but it is {self.gate_divisor!r}"
            )

    @property
    def looks_back(self) -> int:
        return conv_width(self, self.conv)

    @property
    def blocks(self) -> dict[str, int]:
        keys = self.num_heads * self.keys
        gate = {"gate": self.hidden_size} if self.use_gate else {}
        return {"q": keys, "k": keys, "v": self.hidden_size, **gate}

    @property
    def low_rank(self) -> dict[str, LowRank]:
        return {"alpha": LowRank(self.gate_rank, self.num_heads * self.keys)}

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        return {
            "alpha_bias": jnp.zeros((self.num_heads * self.keys,), dtype),
            "norm_scale": jnp.ones((self.values,), dtype),
        }

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return q, k, v and log alpha."""
        part = self.split(z)
        q, k, v = (
            part[name] if self.conv is None else jax.nn.silu(part[name])
            for name in "qkv"
        )
        alpha = part["alpha"]
        gate = jax.nn.log_sigmoid(alpha + along(params["alpha_bias"], alpha))
        g = self.split_key_heads(gate / jnp.asarray(self.gate_divisor, gate.dtype))
        q, k = (self.split_key_heads(x) for x in (q, k))
        q = q * jnp.asarray(self.keys**-0.5, q.dtype)
        return Terms(q, k, self.split_heads(v), g)

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB H"]:
        """Return the gated norm of each head."""
        h = join_heads(rms_norm(y, params["norm_scale"], self.norm_epsilon))
        return h * jax.nn.silu(self.split(z)["gate"]) if self.use_gate else h
