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

from ..core.cell import Gate, overrides
from ..core.dtypes import accumulator, largest_exponent
from ..core.exported import register_for_export
from ..core.types import Params
from ..core.validation import check_features, check_positive
from ..initializers import Initializer, Linspace, Normal, Zeros, gate_blocks
from ..matrix import MatrixCell, MatrixMemory, Terms
from .matrix_base import BuiltinMatrixCell, join_heads
from .ops import along, dense
from .slstm import (
    SIGMOID,
    bounded_exp,
    check_forget_gate,
    log_forget,
)


@register_for_export
class MLSTMState(NamedTuple):
    """The carry of an mLSTM: output, matrix memory, normalizer and stabilizer.

    C and n are stored at a scale whose logarithm is m: the unscaled values are
    ``C exp(m)`` and ``n exp(m)``.

    Attributes:
        h: ``(*B, H)``, the output.
        C: ``(*B, heads, d_k, d_v)``, the memory.
        n: ``(*B, heads, d_k)``, the normalizer.
        m: ``(*B, heads)``, the stabilizer.

    Example:
        >>> import jax, jaxrnn
        >>> cell = jaxrnn.MLSTM(8, num_heads=2, key_size=3)
        >>> def begin(key):
        ...     return cell.initial_carry(cell.init(key, input_size=3), (5,))
        >>> state = jax.eval_shape(begin, jax.random.key(0))
        >>> state.C.shape, state.n.shape, state.m.shape
        ((5, 2, 3, 4), (5, 2, 3), (5, 2))
    """

    h: Array
    C: Array
    n: Array
    m: Array


class Steps(NamedTuple):
    """The projected inputs of steps, head by head.

    ``q, k (..., heads, d_k)`` and ``v (..., heads, d_v)`` are query, key and value;
    ``o (..., H)`` is the output gate after its sigmoid; ``i, f (..., heads)`` are the
    logarithms of the input and the forget gate.
    """

    q: Array
    k: Array
    v: Array
    o: Array
    i: Array
    f: Array


# What `MLSTM.step` does not call.
WRITTEN_OUT = (
    "terms",
    "shown",
    "unpack",
    "pack",
    "reads",
    "micro_steps",
    "written_values",
    "take_in",
    "look_back",
)


@dataclasses.dataclass(frozen=True)
class MLSTM(BuiltinMatrixCell):
    """The mLSTM of xLSTM, a matrix memory per head::

        q = x W_q + b_q    k = x W_k / sqrt(d_k) + b_k    v = x W_v + b_v
        o, i, f = x W + b                           F = sigmoid(f) or exp(f)
        C_t = F C_{t-1} + exp(i) k v^T
        n_t = F n_{t-1} + exp(i) k
        h_t = sigmoid(o) (C_t^T q) / max(|n_t^T q|, 1)

    Beck et al. (2024, arXiv:2405.04517, section 2.3). C and n are stored divided by
    exp(m), with ``m_t = max(log F + m_{t-1}, i)``, or i as long as n is zero because
    nothing has been read. The 1 then becomes exp(-m), so that h does not depend on m.

    No gate depends on h, so a chunk of steps can be computed at once as attention does:
    see `MatrixCell.run_chunks`. Within a chunk, with ``L_ts = log F_{s+1} + ... + log
    F_t + i_s`` for s <= t and ``L_t = log F_1 + ... + log F_t + m_0``::

        m_t = max(L_t, L_t1, ..., L_tt)
        S_ts = exp(L_ts - m_t) (q_t . k_s)
        C_t^T q_t = exp(L_t - m_t) C_0^T q_t + sum_s S_ts v_s
        n_t^T q_t = exp(L_t - m_t) n_0^T q_t + sum_s S_ts

    (the paper's appendix, and TFLA, Beck et al. 2025, arXiv:2503.14376). The results
    are those of ``step``, m included, except for keys that are exactly zero, where m is
    only another scale.

    Parameters: ``input_kernel (D, 2 heads d_k + 2 H + 2 heads)``, blocks q, k, v, o, i,
    f, and ``bias`` of as many columns. Carry: `MLSTMState` (h, C, n, m), the last three
    in float32 or wider. Output: h. Where m is above 40 (320 in float64) and n^T q below
    exp(-40), which is rounding error only, exp(-40) replaces exp(-m).

    Args:
        hidden_size: H, the values of all heads side by side: H = heads * d_v.
        num_heads: the number of heads, a divisor of H.
        key_size: d_k (default: H / heads).
        forget_gate: whether F is ``"sigmoid"`` or ``"exponential"``.
        input_init: initializer of the blocks q, k, v and o. Those of i and f are
            initialized to zero.
        bias_init: initializer of the biases of q, k, v and o.
        forget_init: initializer of f's bias. By default evenly spaced from 3 to 6 over
            the heads, as in the authors' code.
        input_gate_init: initializer of i's bias. By default normal with standard
            deviation 0.1, as in the authors' code.
        learned_initial_carry: if True, the state before the first step is a parameter.

    Raises:
        ValueError: if ``num_heads`` does not divide ``hidden_size``, for a ``key_size``
            below 1, or for an unknown ``forget_gate``.

    Example::

        >>> import jax, jaxrnn
        >>> cell, xs = jaxrnn.MLSTM(4, num_heads=2), jax.numpy.ones((5, 2, 3))
        >>> params = cell.init(jax.random.key(0), input_size=3)
        >>> carry, ys = jaxrnn.unroll(cell, params, xs)
        >>> carry.C.shape, ys.shape
        ((2, 2, 2, 2), (5, 2, 4))
    """

    _: dataclasses.KW_ONLY
    forget_gate: str = SIGMOID
    input_init: Initializer = Normal(math.sqrt(2 / 5))
    bias_init: Initializer = Zeros()
    forget_init: Initializer = Linspace(3.0, 6.0)
    input_gate_init: Initializer = Normal(0.1)
    # C and n are meaningful only together with m: no part may be replaced on its own.
    shares_scale: ClassVar[bool] = True
    # A subclass may show C and n, which chunks know at their ends alone.
    shows_h_alone: ClassVar[bool] = False
    # They are columns of z and logarithms of sigmoids.
    finite_terms: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_forget_gate(self)

    @property
    def written_values(self) -> int:
        """d_v + 1, since n is stored beside C."""
        return self.values + 1

    @property
    def blocks(self) -> tuple[int, ...]:
        """The number of columns of q, k, v, o, i and f in the packed kernel."""
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
        # Drawn as a row, because `Normal` divides by the square root of the rows.
        i = self.input_gate_init(k_i, (1, self.num_heads), dtype)[0]
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
        """Return zeros: h in ``dtype``, C, n and m in the accumulator's dtype."""
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
        """Return all six blocks, packed, with biases, in the accumulator's dtype."""
        check_features(self, params["input_kernel"], x)
        z = dense(x, params["input_kernel"]).astype(accumulator(x.dtype))
        # k's columns are divided by sqrt(d_k) before the bias is added.
        scale = np.ones(z.shape[-1])
        scale[self.blocks[0] : 2 * self.blocks[0]] /= math.sqrt(self.keys)
        return along(jnp.asarray(scale, z.dtype), z) * z + along(params["bias"], z)

    def steps(self, z: Float[Array, "*TB G"]) -> Steps:
        """Split the result of ``project`` into its blocks.

        Args:
            z: ``project(params, x)``, for any leading axes.

        Returns:
            `Steps` (q, k, v, o, i, f).
        """
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
        """Take one step of the equations above."""
        if overrides(self, MLSTM, WRITTEN_OUT):
            return super().step(params, carry, z)
        q, k, v, o, log_i, log_f = self.steps(z)
        log_kept = log_f + carry.m
        m = jnp.where((carry.n == 0).all(-1), log_i, jnp.maximum(log_kept, log_i))
        # The two gates at the scale of m.
        f, i = bounded_exp(log_kept - m)[..., None], jnp.exp(log_i - m)[..., None]
        n = f * carry.n + i * k
        C = f[..., None] * carry.C + (i * k)[..., None] * v[..., None, :]
        numerator = jnp.einsum("...k,...kv->...v", q, C)
        h = o * self.normalized(numerator, (q * n).sum(-1), m)
        return MLSTMState(h.astype(carry.h.dtype), C, n, m)

    # `step` is that of the terms below, written out, unless a subclass has others.
    run_chunks = MatrixCell.run_chunks

    def terms(self, params: Params, z: Float[Array, "*TB G"]) -> Terms:
        """Return the terms of C and n together: n is one more value, written as 1."""
        q, k, v, _, i, f = self.steps(z)
        v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
        return Terms(q, k, v, g=f[..., None], w=i[..., None])

    def unpack(self, carry: MLSTMState) -> tuple[Array, MatrixMemory, None]:
        """Return h, and C and n side by side with the logarithm of their scale."""
        S = jnp.concatenate([carry.C, carry.n[..., None]], axis=-1)
        return carry.h, MatrixMemory(S, carry.m), None

    def pack(self, h: Array, memory: MatrixMemory, recent: Array | None) -> MLSTMState:
        """Return the carry, C and n apart."""
        S: Any = memory.S
        m: Any = memory.m
        return MLSTMState(h, S[..., :-1], S[..., -1], m)

    def shown(
        self,
        params: Params,
        y: Float[Array, "*TB N W"],
        m: Any,
        z: Float[Array, "*TB G"],
    ) -> Float[Array, "*TB H"]:
        """Return h from what the queries read of C and n."""
        return self.steps(z).o * self.normalized(y[..., :-1], y[..., -1], m)

    def normalized(
        self,
        read: Float[Array, "*B N v"],
        weight: Float[Array, "*B N"],
        m: Float[Array, "*B N"],
    ) -> Float[Array, "*B H"]:
        """Return h before its output gate: ``read / max(|weight|, exp(-m))``.

        Args:
            read: ``C^T q``, at the scale of m.
            weight: ``n^T q``, at the scale of m.
            m: the stabilizer.

        Returns:
            The heads side by side, ``(*B, H)``.
        """
        return join_heads(normalized_read(read, weight, m))

    def gate_values(
        self, params: Params, carry: MLSTMState, z: Float[Array, "*B G"]
    ) -> dict[str, Gate]:
        """Return i and f of each head (f keeps C), and o."""
        steps = self.steps(z)
        largest_f = 1.0 if self.forget_gate == SIGMOID else math.inf
        return {
            "i": Gate(jnp.exp(steps.i), high=math.inf),
            "f": Gate(jnp.exp(steps.f), high=largest_f, keeps=True),
            "o": Gate(steps.o),
        }


def normalized_read(
    read: Float[Array, "*B N v"],
    weight: Float[Array, "*B N"],
    m: Float[Array, "*B N"],
) -> Float[Array, "*B N v"]:
    """Return ``read / max(|weight|, exp(-m))``, both at the scale of m."""
    # exp(-m) overflows for m << 0, so there both terms are multiplied by exp(m):
    # read exp(m) / max(|weight| exp(m), 1). Of `scale` and `one` at least one is 1.
    cut = jnp.asarray(largest_exponent(m.dtype), m.dtype)
    zero = jnp.zeros((), m.dtype)
    scale, one = jnp.exp(jnp.minimum(m, zero)), jnp.exp(-jnp.clip(m, zero, cut))
    return read * (scale / jnp.maximum(jnp.abs(weight) * scale, one))[..., None]
