"""The mLSTM between an up- and a down-projection, as in the blocks of xLSTM."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate
from ..core.dtypes import accumulator
from ..core.exported import register_for_export
from ..core.types import Carry, Params
from ..core.validation import check_int, check_positive
from ..initializers import Initializer, Linspace, Normal
from ..matrix import MatrixMemory, Terms
from .matrix_base import ProjectedMatrixCell, join_heads
from .mlstm import normalized_read
from .ops import along, layer_norm


@register_for_export
class MLSTMMixerState(NamedTuple):
    """The carry of an `MLSTMMixer`.

    Attributes:
        h: ``(*B, H)``, what the cell shows of the last step.
        C: ``(*B, heads, d, d)``, the memory, ``C exp(m)`` without its scale.
        n: ``(*B, heads, d)``, the normalizer, at the same scale.
        m: ``(*B, heads)``, the logarithm of that scale.
        recent: ``(*B, conv, H)``, the last inputs of the convolution.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.MLSTMMixer(8, num_heads=2)
        >>> def begin(key):
        ...     return cell.initial_carry(cell.init(key, input_size=3), (5,))
        >>> state = jax.eval_shape(begin, jax.random.key(0))
        >>> state.C.shape, state.n.shape, state.recent.shape
        ((5, 2, 4, 4), (5, 2, 4), (5, 4, 8))
    """

    h: Array
    C: Array
    n: Array
    m: Array
    recent: Array


class Steps(NamedTuple):
    """What the steps of an `MLSTMMixer` are computed from.

    Attributes:
        c, gate: ``(..., H)``, the convolved features, and what gates the output.
        q, k, v: ``(..., heads, d)``.
        i, f: ``(..., heads, 1)``, the logarithms of the input and the forget gate.
    """

    c: Array
    gate: Array
    q: Array
    k: Array
    v: Array
    i: Array
    f: Array


@dataclasses.dataclass(frozen=True)
class MLSTMMixer(ProjectedMatrixCell):
    """The mLSTM between two projections, which mixes time in an xLSTM block::

        u, g = x W                                                  H features each
        c = silu(conv(u) + b)
        q, k, v = c W_q, c W_k / sqrt(d), u W_v             W block-diagonal, d = H / N
        i, f = [q, k, v] W_if + b_if
        C_t = sigmoid(f) C_{t-1} + exp(i) k v^T
        n_t = sigmoid(f) n_{t-1} + exp(i) k
        y_t = LayerNorm((C_t^T q) / max(|n_t^T q|, 1))                  of each head
        h_t = (y_t + skip * c) * silu(g)
        output = h_t W_o

    Beck et al. (2024, arXiv:2405.04517, appendix A). conv is a depthwise convolution
    over the last ``conv`` steps. `jaxrnn.MLSTM` is the recurrence with dense maps and
    an output gate in their stead. `jaxrnn.layers.mlstm_block` is the whole block.

    Parameters: ``input_kernel (D, 2 H)``, blocks u, g; ``conv_kernel (conv, H)``, whose
    row j is of the input j steps before, ``conv_bias (H,)``; ``query_kernel``,
    ``key_kernel`` and ``value_kernel (H / block_size, block_size, block_size)``;
    ``gate_kernel (3 H, 2 N)``, zero at first, and ``gate_bias (2 N,)``, i before f;
    ``skip (H,)`` and ``norm_scale (H,)``, ones at first; ``output_kernel (H, O)``.
    Carry: `MLSTMMixerState` (h, C, n, m, recent), all but h in float32 or wider.
    Output: ``(*B, O)``.

    Args:
        hidden_size: H, twice the number of input features in the paper.
        num_heads: N, a divisor of H; the paper's models have 4.
        block_size: the size of the blocks of W_q, W_k and W_v, a divisor of H.
        conv: the width of the convolution.
        key_size: H / N, or None.
        output_size: O (default: D, the number of input features).
        input_init: initializer of the kernels, with the convolution's and the blocks.
        forget_init: initializer of f's bias.
        input_gate_init: initializer of i's bias, drawn as a row.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` or ``block_size`` does not divide ``hidden_size``,
            for a ``key_size`` other than H / N, for sizes below 1, and for a ``conv``
            below 2.

    Example::

        >>> import jax, jaxrnn
        >>> cell = jaxrnn.cells.MLSTMMixer(8, num_heads=2)
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, jax.numpy.ones((5, 2, 3)))
        >>> carry.C.shape, ys.shape
        ((2, 2, 4, 4), (5, 2, 3))
    """

    _: dataclasses.KW_ONLY
    block_size: int = 4
    conv: int = 4
    input_init: Initializer = Normal(math.sqrt(2 / 5))
    forget_init: Initializer = Linspace(3.0, 6.0)
    input_gate_init: Initializer = Normal(0.1)
    # C and n are meaningful only together with m: no part may be replaced on its own.
    shares_scale: ClassVar[bool] = True

    convolved = ("u",)

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, block_size=self.block_size)
        if self.hidden_size % self.block_size:
            raise ValueError(
                f"MLSTMMixer: block_size must divide hidden_size, but "
                f"{self.block_size} does not divide {self.hidden_size}"
            )
        if self.keys != self.values:
            raise ValueError(
                f"MLSTMMixer: the maps to queries, keys and values are square, so "
                f"key_size is hidden_size / num_heads = {self.values}, but it is "
                f"{self.keys}: leave it out"
            )

    @property
    def looks_back(self) -> int:
        width = "the width of its convolution"
        return check_int("MLSTMMixer", "conv", self.conv, 2, 2**31 - 1, width)

    @property
    def written_values(self) -> int:
        """d + 1, since n is stored beside C."""
        return self.values + 1

    @property
    def blocks(self) -> dict[str, int]:
        return {"u": self.hidden_size, "gate": self.hidden_size}

    def own_parameters(
        self, key: Array, input_size: int, dtype: DTypeLike
    ) -> dict[str, Array]:
        H, N, size = self.hidden_size, self.num_heads, self.block_size
        k_maps, k_i, k_f = jax.random.split(key, 3)
        keys = jax.random.split(k_maps, (3, H // size))
        names = ("query_kernel", "key_kernel", "value_kernel")
        maps = {
            name: jnp.stack([self.input_init(k, (size, size), dtype) for k in row])
            for name, row in zip(names, keys, strict=True)
        }
        i = self.input_gate_init(k_i, (1, N), dtype)[0]
        f = self.forget_init(k_f, (N,), dtype)
        return {
            **maps,
            "conv_bias": jnp.zeros((H,), dtype),
            "gate_kernel": jnp.zeros((3 * H, 2 * N), dtype),
            "gate_bias": jnp.concatenate([i, f]),
            "skip": jnp.ones((H,), dtype),
            "norm_scale": jnp.ones((H,), dtype),
        }

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> MLSTMMixerState:
        """Return zeros: h in ``dtype``, the rest in the accumulator's dtype."""
        wide, heads = accumulator(dtype), (*batch_shape, self.num_heads)
        return MLSTMMixerState(
            jnp.zeros((*batch_shape, self.hidden_size), dtype),
            jnp.zeros((*heads, self.keys, self.values), wide),
            jnp.zeros((*heads, self.keys), wide),
            jnp.zeros(heads, wide),
            jnp.zeros((*batch_shape, self.conv, self.hidden_size), wide),
        )

    def look_back(
        self, params: Params, z: Float[Array, "*TB G"], recent: list[Array]
    ) -> Steps:
        """Return all that a step needs, from its projection and those before it."""
        u, gate = self.split(z).values()
        convolved = self.split(super().look_back(params, z, recent))["u"]
        c = jax.nn.silu(convolved + along(params["conv_bias"], u))
        q, k, v = (
            _map_blocks(x, params[f"{name}_kernel"])
            for name, x in (("query", c), ("key", c), ("value", u))
        )
        gates = jnp.concatenate([q, k, v], -1) @ params["gate_kernel"].astype(u.dtype)
        i, f = jnp.split(gates + along(params["gate_bias"], gates), 2, axis=-1)
        k = k * jnp.asarray(1 / math.sqrt(self.keys), k.dtype)
        q, k, v = (self.split_heads(x) for x in (q, k, v))
        return Steps(c, gate, q, k, v, i[..., None], jax.nn.log_sigmoid(f)[..., None])

    def terms(self, params: Params, z: Steps) -> Terms:
        """Return the terms of C and n together: n is one more value, written as 1."""
        v = jnp.concatenate([z.v, jnp.ones_like(z.v[..., :1])], axis=-1)
        return Terms(z.q, z.k, v, g=z.f, w=z.i)

    def unpack(self, carry: Carry) -> tuple[Array, MatrixMemory, Array | None]:
        """Return h, C and n side by side with their scale, and the last inputs."""
        S = jnp.concatenate([carry.C, carry.n[..., None]], axis=-1)
        return carry.h, MatrixMemory(S, carry.m), carry.recent

    def pack(
        self, h: Array, memory: MatrixMemory, recent: Array | None
    ) -> MLSTMMixerState:
        """Return the carry, C and n apart."""
        S, m = memory.S, memory.m
        C, n = S[..., :-1], S[..., -1]
        return MLSTMMixerState(h, C, n, m, recent)  # type: ignore[arg-type]

    def shown(self, params: Params, y: Array, m: Any, z: Any) -> Array:
        """Return h from what the queries read of C and n."""
        read = normalized_read(y[..., :-1], y[..., -1], m)
        normed = join_heads(layer_norm(read, jnp.ones((self.values,), y.dtype)))
        normed = normed * along(params["norm_scale"], normed)
        return (normed + along(params["skip"], z.c) * z.c) * jax.nn.silu(z.gate)

    def gate_values(
        self, params: Params, carry: Carry, z: Float[Array, "*TB G"]
    ) -> dict[str, Gate]:
        """Return i and f of each head; f keeps C."""
        steps = self.looked_back(params, carry, z)
        return {
            "i": Gate(jnp.exp(steps.i[..., 0]), high=np.inf),
            "f": Gate(jnp.exp(steps.f[..., 0]), keeps=True),
        }


def _map_blocks(x: Float[Array, "*TB H"], kernel: Float[Array, "n s s"]) -> Array:
    """Return ``x W`` for a block-diagonal W, in the dtype of x."""
    blocks = x.reshape(*x.shape[:-1], *kernel.shape[:2])
    return jnp.einsum("...ns,nst->...nt", blocks, kernel.astype(x.dtype)).reshape(
        x.shape
    )
