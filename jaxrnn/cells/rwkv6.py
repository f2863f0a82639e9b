"""RWKV-6 (Finch): a decay a channel, and a bonus for the present step."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.dtypes import accumulator
from ..core.types import Params
from ..core.validation import check_features, check_positive
from ..initializers import Uniform
from ..matrix import Terms
from ..matrix.terms import LEAST_LOG_DECAY
from .matrix_base import ProjectedMatrixCell, join_heads
from .ops import along, dense
from .rwkv7 import check_place

# What is mixed from a step and the one before it, each in shares of its own.
MIXED = ("r", "k", "v", "gate", "decay")


@dataclasses.dataclass(frozen=True)
class RWKV6(ProjectedMatrixCell):
    """RWKV-6 (Finch), whose decays depend on the inputs, and which reads before it
    writes::

        d = x_before - x
        m_j = tanh((x + d mu_x) W_1j) W_2j                    j = r, k, v, g, w
        x_j = x + d (mu_j + m_j)
        r, k, v, gate = x_r W_r, x_k W_k, x_v W_v, silu(x_g W_g)
        w = exp(-exp(w_0 + tanh(x_w W_3) W_4))
        y_t = S_{t-1}^T r + (r . (u * k)) v            S_t = Diag(w) S_{t-1} + k v^T
        h_t = GroupNorm(y_t) * gate                                     of each head
        output = h_t W_o

    Peng et al. (2024, arXiv:2404.05892). x_before is the last valid input, zero before
    a sequence begins and after a reset.

    Parameters: ``input_kernel (D, G)``, blocks r, k, v, gate and W_3, each of inputs of
    its own; ``mix (6, D)``, mu of x, r, k, v, gate and decay; ``mix_in_kernel (D, 5
    mix_rank)`` and ``mix_out_kernel (5, mix_rank, D)``; ``decay_kernel (decay_rank, N
    d_k)`` and ``decay_bias (N d_k,)``, W_4 and w_0; ``bonus (N, d_k)``, u;
    ``norm_scale (H,)``, ``norm_bias (H,)`` and ``output_kernel (H, O)``. Carry:
    `MatrixState` (h, S, recent), the last being the last two inputs ``(*B, 2, D)``.
    Output: ``(*B, O)``.

    The parameters beside the kernels begin as in the authors' code, where they depend
    on the place of the layer in the model.

    Args:
        hidden_size: H, the values of all heads side by side: ``H = N d_v``. The paper's
            models have H = D and heads of 64.
        num_heads: N, the number of heads, each with a state.
        key_size: d_k (default: d_v).
        mix_rank: the rank of W_1j W_2j.
        decay_rank: the rank of W_3 W_4.
        layer_index: the number of the layer in its network, from 0.
        num_layers: the number of layers of the network.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the blocks r, k, v and gate, and of the output's
            kernel.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, if ``layer_index``
            is not below ``num_layers``, or for sizes below 1.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.RWKV6(8, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.S.shape, carry.recent.shape, ys.shape
        ((2, 2, 4, 4), (2, 2, 3), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    mix_rank: int = 32
    decay_rank: int = 64
    layer_index: int = 0
    num_layers: int = 1

    reads = "before"
    looks_back = 2

    def __post_init__(self):
        super().__post_init__()
        check_positive(
            self,
            mix_rank=self.mix_rank,
            decay_rank=self.decay_rank,
            num_layers=self.num_layers,
        )
        check_place("RWKV6", self.layer_index, self.num_layers)

    @property
    def blocks(self) -> dict[str, int]:
        keys, values = self.num_heads * self.keys, self.hidden_size
        return {"r": keys, "k": keys, "v": values, "gate": values, "decay": keys}

    @property
    def columns(self) -> list[int]:
        """The columns of the blocks of ``input_kernel``, that of W_3 last."""
        return [*list(self.blocks.values())[:-1], self.decay_rank]

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
        dtype = dtype or jnp.result_type(float)
        k_input, k_mix, k_decay, k_output = jax.random.split(key, 4)
        small = Uniform(-0.01, 0.01)
        *columns, rank = self.columns
        kernel = self.input_init(k_input, (input_size, sum(columns)), dtype)
        decay = jnp.zeros((input_size, rank), dtype)
        outputs = (self.hidden_size, self.output_size or input_size)
        keys, mixes = self.num_heads * self.keys, len(MIXED)
        params = {
            "input_kernel": jnp.concatenate([kernel, decay], axis=-1),
            "mix": jnp.asarray(self._first_mix(input_size), dtype),
            "mix_in_kernel": jnp.zeros((input_size, mixes * self.mix_rank), dtype),
            "mix_out_kernel": small(k_mix, (mixes, self.mix_rank, input_size), dtype),
            "decay_kernel": small(k_decay, (rank, keys), dtype),
            "decay_bias": jnp.asarray(self._first_decay(), dtype),
            "bonus": jnp.asarray(self._first_bonus(), dtype),
            "norm_scale": jnp.ones((self.hidden_size,), dtype),
            "norm_bias": jnp.zeros((self.hidden_size,), dtype),
            "output_kernel": self.input_init(k_output, outputs, dtype),
        }
        return self.with_initial_carry(params)

    @property
    def depth(self) -> float:
        """The place of the layer, from 0 for the first to 1 for the last."""
        return self.layer_index / max(self.num_layers - 1, 1)

    def _first_mix(self, input_size: int) -> np.ndarray:
        """Return the first mu: the later a channel, the more it sees the step itself,
        and the less so in later layers.
        """
        place = np.arange(input_size) / input_size
        rising = 1 - self.layer_index / self.num_layers
        plain, fast = 1 - place**rising, 1 - place ** (rising / 2)
        of = {"r": fast, "k": plain, "v": plain - 0.3 * self.depth, "gate": fast}
        return np.stack([plain, *(of.get(name, plain) for name in MIXED)])

    def _first_decay(self) -> np.ndarray:
        """Return the first w_0, from slow to fast channels."""
        return -6 + 5 * self._channel() ** (0.7 + 1.3 * self.depth)

    def _first_bonus(self) -> np.ndarray:
        """Return the first u."""
        channel = np.arange(self.num_heads * self.keys)
        zigzag = ((channel + 1) % 3 - 1) * 0.1
        bonus = self.depth * (1 - self._channel()) + zigzag
        return bonus.reshape(self.num_heads, self.keys)

    def _channel(self) -> np.ndarray:
        """Return the places of the channels of all keys, from 0 to 1."""
        count = self.num_heads * self.keys
        return np.arange(count) / max(count - 1, 1)

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB D"]:
        """Return x in the accumulator's dtype.

        All maps stand in `look_back`, because x is mixed with the input before it.
        """
        check_features(self, params["input_kernel"], x)
        return x.astype(accumulator(x.dtype))

    def remembered_size(self, params: Params) -> int:
        return params["input_kernel"].shape[0]

    def remembered(
        self, params: Params, z: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB D"]:
        """Return x."""
        return z

    def look_back(
        self, params: Params, z: Float[Array, "*TB D"], recent: list[Array]
    ) -> Float[Array, "*TB G"]:
        """Return r, k, v, the gate and what the decay is made of, packed."""
        kernel = params["input_kernel"]
        x, before = (lag.astype(kernel.dtype) for lag in recent)
        past = before - x
        shares = self._mix(params, x, past)
        kernels = jnp.split(kernel, np.cumsum(self.columns[:-1]), -1)
        parts = [
            dense(x + shares[..., j, :] * past, kernel)
            for j, kernel in enumerate(kernels)
        ]
        parts[-1] = dense(jnp.tanh(parts[-1]), params["decay_kernel"])
        return jnp.concatenate(parts, axis=-1).astype(z.dtype)

    def _mix(
        self, params: Params, x: Float[Array, "*TB D"], past: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB 5 D"]:
        """Return the shares of the step before in each of `MIXED`."""
        of_mix, *of_blocks = params["mix"]
        mixed = jnp.tanh(dense(x + along(of_mix, x) * past, params["mix_in_kernel"]))
        mixed = mixed.reshape(*mixed.shape[:-1], len(MIXED), self.mix_rank)
        shares = jnp.einsum("...jr,jrd->...jd", mixed, params["mix_out_kernel"])
        constant = jnp.stack(of_blocks)
        return shares + constant.reshape((1,) * (x.ndim - 1) + constant.shape)

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return r, k, v and the logarithm of the decay."""
        part = self.split(z)
        # What is faster counts as this, so that its exponential is finite.
        most = jnp.asarray(math.log(-LEAST_LOG_DECAY), z.dtype)
        w = part["decay"] + along(params["decay_bias"], part["decay"])
        g = -jnp.exp(jnp.minimum(w, most))
        r, k, g = (self.split_key_heads(x) for x in (part["r"], part["k"], g))
        return Terms(r, k, self.split_heads(part["v"]), g)

    def readout(
        self, params: Params, y: Float[Array, "*TB N V"], z: Float[Array, "*TB G"]
    ) -> Float[Array, "*TB H"]:
        """Return the gated norm of each head, after the bonus of the step itself."""
        part = self.split(z)
        r, k = self.split_key_heads(part["r"]), self.split_key_heads(part["k"])
        bonus = params["bonus"].astype(z.dtype)
        bonus = bonus.reshape((1,) * (k.ndim - 2) + bonus.shape)
        y = y + (r * bonus * k).sum(-1, keepdims=True) * self.split_heads(part["v"])
        h = join_heads(standardize(y))
        h = h * along(params["norm_scale"], h) + along(params["norm_bias"], h)
        return h * jax.nn.silu(part["gate"])


def standardize(
    x: Float[Array, "*TB N V"], epsilon: float = 64e-5
) -> Float[Array, "*TB N V"]:
    """Return ``(x - mean) / sqrt(variance + epsilon)`` over the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    variance = (centered * centered).mean(-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + jnp.asarray(epsilon, x.dtype))
