"""Retention: linear attention with fixed decays and rotary positions."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.types import Params
from ..matrix import Terms
from .matrix_base import ProjectedMatrixCell, is_real, join_heads, rms_norm


@dataclasses.dataclass(frozen=True)
class RetNet(ProjectedMatrixCell):
    """Multi-scale retention, whose decays are fixed, one a head::

        q, k, v = x W_q / sqrt(d_k), x W_k, x W_v
        q, k = R(t) q, R(t) k                                           of each head
        S_t = gamma_n S_{t-1} + k v^T        gamma_n = 1 - 2^(-5-n)     y_t = S_t^T q
        h_t = RMSNorm(y_t) * silu(x W_g)                                of each head
        output = h_t W_o

    Sun et al. (2023, arXiv:2307.08621). R(t) is the rotary embedding of Su et al.
    (2021, arXiv:2104.09864): it rotates the channels 2i and 2i + 1 by ``t
    rotary_base^(-2i / d_k)``. In its parallel form ``y_t = sum over s <= t of
    gamma_n^(t - s) (q_t . R(s - t) k_s) v_s``.

    What is read depends on the distance of two steps only, so no position is stored:
    the state is rotated backwards by the angles of one step at every step, which is the
    same. A masked step therefore takes no position, a reset begins again, and long
    sequences lose no digits of an angle.

    Parameters: ``input_kernel (D, G)``, blocks q, k, v and the output gate;
    ``norm_scale (d_v,)`` and ``output_kernel (H, O)``. Carry: `MatrixState` (h, S), S
    as the query of the last step sees it. Output: ``(*B, O)``.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``.
        num_heads: N, the number of heads, each with a state. Head n from 0 has gamma_n.
        key_size: d_k (default: d_v), an even number if there are rotations. The paper's
            models have keys half as wide as values.
        rotary_base: the base of the angles; None for no rotation.
        use_gate: whether the output gate silu(x W_g) is there.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the kernels.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``; for sizes below 1,
            an odd d_k with rotations, and a ``rotary_base`` that is not above 1.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.RetNet(8, num_heads=2, key_size=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, ys.shape
        ((2, 2, 2, 4), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    rotary_base: float | None = 10000.0
    use_gate: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.rotary_base is None:
            return
        if not is_real(self.rotary_base) or not self.rotary_base > 1:
            raise ValueError(
                f"RetNet: rotary_base must be above 1, or None for no rotation, but it "
                f"is {self.rotary_base!r}"
            )
        if self.keys % 2:
            raise ValueError(
                f"RetNet: a rotation turns pairs of channels of a key, so d_k must be "
                f"even, but it is {self.keys}: set key_size, or rotary_base=None for "
                f"no rotation"
            )

    @property
    def blocks(self) -> dict[str, int]:
        keys = self.num_heads * self.keys
        gate = {"gate": self.hidden_size} if self.use_gate else {}
        return {"q": keys, "k": keys, "v": self.hidden_size, **gate}

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        return {"norm_scale": jnp.ones((self.values,), dtype)}

    @property
    def log_gammas(self) -> np.ndarray:
        """The logarithms of the decays, ``(N,)``."""
        return np.log1p(-(2.0 ** (-5 - np.arange(self.num_heads))))

    @property
    def angles(self) -> np.ndarray | None:
        """The angles of one step, ``(d_k / 2,)``."""
        if self.rotary_base is None:
            return None
        return self.rotary_base ** (-np.arange(0, self.keys, 2) / self.keys)

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return q, k, v, log gamma and the angles."""
        part = self.split(z)
        q, k = (self.split_key_heads(part[name]) for name in "qk")
        q = q * jnp.asarray(self.keys**-0.5, q.dtype)
        lead = (*q.shape[:-1],)
        g = jnp.asarray(self.log_gammas[:, None], q.dtype)
        turn = None
        if self.angles is not None:
            turn = jnp.asarray(self.angles, q.dtype)
            turn = jnp.broadcast_to(turn, (*lead, len(self.angles)))
        v = self.split_heads(part["v"])
        return Terms(q, k, v, jnp.broadcast_to(g, (*lead, 1)), turn=turn)

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB H"]:
        """Return the gated norm of each head."""
        h = join_heads(rms_norm(y, params["norm_scale"]))
        return h * jax.nn.silu(self.split(z)["gate"]) if self.use_gate else h
