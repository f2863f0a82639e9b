"""The matrix memory of xLSTM."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..core.cell import Gate, Params, accumulator
from ..core.exported import register_for_export
from ..core.validation import check_features, check_positive
from ..initializers import Initializer, Linspace, Normal, Zeros, gate_blocks
from .base import BuiltinCell
from .mlstm_chunkwise import walk_chunks
from .ops import along, dense
from .slstm import (
    SIGMOID,
    bounded_exp,
    check_forget_gate,
    check_heads,
    largest_exponent,
    log_forget,
)


@register_for_export
class MLSTMState(NamedTuple):
    """The carry of an mLSTM: h ``(*B, H)``, which it shows, the memory C ``(*B, heads,
    d_k, d_v)``, the normaliser n ``(*B, heads, d_k)``, and m ``(*B, heads)``, the
    logarithm of the scale that C and n are kept at: the true ones are ``C exp(m)`` and
    ``n exp(m)``.
    """

    h: Array
    C: Array
    n: Array
    m: Array


class Steps(NamedTuple):
    """What steps need of their inputs, head by head: ``q, k (..., heads, d_k)``, ``v
    (..., heads, d_v)``, the output gate ``o (..., H)``, and the logarithms of the input
    and the forget gate, ``i, f (..., heads)``.
    """

    q: Array
    k: Array
    v: Array
    o: Array
    i: Array
    f: Array


@dataclasses.dataclass(frozen=True)
class MLSTM(BuiltinCell):
    """The mLSTM of xLSTM (Beck et al. 2024, arXiv:2405.04517, section 2.3), head by
    head::

        q = x W_q + b_q    k = x W_k / sqrt(d_k) + b_k    v = x W_v + b_v       o, i, f = x W + b
        C_t = F C_{t-1} + exp(i) k v^T    n_t = F n_{t-1} + exp(i) k            F = sigmoid(f) or exp(f)
        h_t = sigmoid(o) (C_t^T q) / max(|n_t^T q|, 1)

    computed with C and n divided by exp(m), ``m_t = max(log F + m_{t-1}, i)``, or i
    while n is zero, as nothing was read; the 1 is then exp(-m), so h does not depend on
    m. Nothing here sees h, so many steps can be taken at once: `walk_chunks`, which
    ``Associative`` runs.

    Parameters: ``input_kernel (D, 2 heads d_k + 2 H + 2 heads)``, blocks q, k, v, o, i, f, and ``bias``. Carry:
    `MLSTMState` (h, C, n, m), the last three in float32 at least. Where m is above 40
    (320 in float64) and n^T q below exp(-40), all rounding, exp(-40) stands for
    exp(-m).

    Args:
        hidden_size: H, d_v for each head side by side.
        num_heads: matrix memories, a divisor of H.
        key_size: d_k, default H / heads.
        forget_gate: F is ``"sigmoid"`` or ``"exponential"``.
        input_init: of the blocks q, k, v and o; those of i and f begin at zero.
        forget_init, input_gate_init: their biases, as the authors' code has them:
            evenly from 3 to 6 over the heads, and normal of deviation 0.1.
        learned_initial_carry: make the state before the first step a parameter.
    """  # noqa: E501

    _: dataclasses.KW_ONLY
    num_heads: int = 1
    key_size: int | None = None
    forget_gate: str = SIGMOID
    input_init: Initializer = Normal(math.sqrt(2 / 5))
    bias_init: Initializer = Zeros()
    forget_init: Initializer = Linspace(3.0, 6.0)
    input_gate_init: Initializer = Normal(0.1)
    shares_scale: ClassVar[bool] = (
        True  # the parts of its carry mean something together only
    )

    def __post_init__(self):
        super().__post_init__()
        check_heads(self)
        check_forget_gate(self)
        if self.key_size is not None:
            check_positive(self, key_size=self.key_size)

    @property
    def keys(self) -> int:
        """d_k."""
        return self.key_size or self.hidden_size // self.num_heads

    @property
    def blocks(self) -> tuple[int, ...]:
        """Columns of q, k, v, o, i and f in the packed kernel."""
        return (
            (self.num_heads * self.keys,) * 2
            + (self.hidden_size,) * 2
            + (self.num_heads,) * 2
        )

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
        k_q, k_k, k_values, k_bias, k_i, k_f = jax.random.split(key, 6)
        size = self.num_heads * self.keys
        kernel = [
            self.input_init(k_q, (input_size, size), dtype),
            self.input_init(k_k, (input_size, size), dtype),
            gate_blocks(
                self.input_init, k_values, 2, input_size, self.hidden_size, dtype
            ),
            jnp.zeros((input_size, 2 * self.num_heads), dtype),
        ]
        keys = zip(jax.random.split(k_bias, 4), self.blocks[:4], strict=True)
        bias = [self.bias_init(k, (size,), dtype) for k, size in keys]
        i = self.input_gate_init(k_i, (1, self.num_heads), dtype)[
            0
        ]  # a row: Normal divides by the root of rows
        f = self.forget_init(k_f, (self.num_heads,), dtype)
        return self.with_initial_carry(
            {
                "input_kernel": jnp.concatenate(kernel, axis=-1),
                "bias": jnp.concatenate([*bias, i, f]),
            }
        )

    def zero_carry(
        self, params: Params, batch_shape: tuple[int, ...], dtype: DTypeLike
    ) -> MLSTMState:
        """Zeros: h in ``dtype``, the others in its accumulator's dtype."""
        wide, by_head = accumulator(dtype), (*batch_shape, self.num_heads)
        return MLSTMState(
            jnp.zeros((*batch_shape, self.hidden_size), dtype),
            jnp.zeros((*by_head, self.keys, self.hidden_size // self.num_heads), wide),
            jnp.zeros((*by_head, self.keys), wide),
            jnp.zeros(by_head, wide),
        )

    def project(
        self, params: Params, x: Float[Array, "*TB D"]
    ) -> Float[Array, "*TB G"]:
        """All six blocks, biases added, in the accumulator's dtype."""
        check_features(self, params["input_kernel"], x)
        z = dense(x, params["input_kernel"]).astype(accumulator(x.dtype))
        scale = np.ones(z.shape[-1])
        scale[self.blocks[0] : 2 * self.blocks[0]] /= math.sqrt(self.keys)
        return along(jnp.asarray(scale, z.dtype), z) * z + along(params["bias"], z)

    def steps(self, z: Float[Array, "*TB G"]) -> Steps:
        """The blocks of ``project`` apart."""
        q, k, v, o, i, f = jnp.split(z, np.cumsum(self.blocks)[:-1], axis=-1)
        q, k, v = (
            block.reshape(
                *block.shape[:-1], self.num_heads, block.shape[-1] // self.num_heads
            )
            for block in (q, k, v)
        )
        return Steps(q, k, v, jax.nn.sigmoid(o), i, log_forget(self, f))

    def step(
        self, params: Params, carry: MLSTMState, z: Float[Array, "*B G"]
    ) -> MLSTMState:
        """One step of the equations above."""
        now = self.steps(z)
        old = now.f + carry.m
        m = jnp.where((carry.n == 0).all(-1), now.i, jnp.maximum(old, now.i))
        kept, new = bounded_exp(old - m)[..., None], jnp.exp(now.i - m)[..., None]
        n = kept * carry.n + new * now.k
        C = kept[..., None] * carry.C + (new * now.k)[..., None] * now.v[..., None, :]
        read = jnp.einsum("...k,...kv->...v", now.q, C)
        h = now.o * self.shown(read, (now.q * n).sum(-1), m)
        return MLSTMState(h.astype(carry.h.dtype), C, n, m)

    def shown(
        self,
        read: Float[Array, "*B N v"],
        weight: Float[Array, "*B N"],
        m: Float[Array, "*B N"],
    ) -> Float[Array, "*B H"]:
        """``read / max(|weight|, exp(-m))``, heads side by side, ``(*B, H)``;
        neither exp(-m) nor exp(m) overflows.
        """
        cut = jnp.asarray(largest_exponent(m.dtype), m.dtype)
        zero = jnp.zeros((), m.dtype)
        scale, one = (
            jnp.exp(jnp.minimum(m, zero)),
            jnp.exp(-jnp.clip(m, zero, cut)),
        )  # one of them is 1
        h = read * (scale / jnp.maximum(jnp.abs(weight) * scale, one))[..., None]
        return h.reshape(*h.shape[:-2], self.hidden_size)

    def gate_values(
        self, params: Params, carry: MLSTMState, z: Float[Array, "*B G"]
    ) -> dict[str, Gate]:
        """i and f of each head, the latter of which keeps C, and o."""
        now = self.steps(z)
        most = 1.0 if self.forget_gate == SIGMOID else math.inf
        return {
            "i": Gate(jnp.exp(now.i), high=math.inf),
            "f": Gate(jnp.exp(now.f), high=most, keeps=True),
            "o": Gate(now.o),
        }

    def walk_chunks(
        self,
        params: Params,
        carry: MLSTMState,
        zs: Float[Array, "T *B G"],
        mask: Any,
        resets: Any,
        chunk: int,
        reverse: bool,
    ) -> tuple[MLSTMState, Float[Array, "T *B H"]]:
        """``step`` over ``zs = project(params, xs)``, ``chunk`` steps at a time: the
        last carry, and h after every step.

        The chunkwise form of the paper's appendix and of TFLA (Beck et al. 2025,
        arXiv:2503.14376). Within a chunk, with ``L_ts = log F_{s+1} + ... + log F_t +
        i_s`` for s <= t and ``L_t = log F_1 + ... + log F_t + m_0``::

            m_t = max(L_t, L_t1, ..., L_tt)          S_ts = exp(L_ts - m_t) (q_t . k_s)
            C_t^T q_t = exp(L_t - m_t) C_0^T q_t + sum_s S_ts v_s         n_t alike, with 1 for v

        which are the numbers of ``step``, m included (but for keys that are exactly
        zero, where m is only another scale). Between chunks passes the carry; a chunk's
        insides are made again for its gradient, so that beyond inputs and outputs
        memory grows with T by one carry a chunk, and with ``chunk`` by ``chunk^2`` a
        head.

        Where not ``mask``, h is not that of the held carry, for ``unroll`` shows
        nothing there.
        """  # noqa: E501
        return walk_chunks(self, params, carry, zs, mask, resets, chunk, reverse)
