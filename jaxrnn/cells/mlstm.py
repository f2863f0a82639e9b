"""The matrix memory of xLSTM: one step of it, and whole chunks of steps as matrix products."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..cell import Carry, Gate, Params, accumulator, expand, select
from ..checks import check_features, check_positive
from ..initializers import Initializer, Linspace, Normal, Zeros, gate_blocks
from .arithmetic import along, dense
from .base import BuiltinCell
from .slstm import SIGMOID, bounded_exp, check_forget_gate, check_heads, largest_exponent, log_forget


class MLSTMState(NamedTuple):
    """The carry of an mLSTM: h ``(*B, H)``, which it shows, the memory C ``(*B, heads, d_k, d_v)``, the normaliser n
    ``(*B, heads, d_k)``, and m ``(*B, heads)``, the logarithm of the scale that C and n are kept at: the true ones are
    ``C exp(m)`` and ``n exp(m)``.
    """

    h: Array
    C: Array
    n: Array
    m: Array


class Steps(NamedTuple):
    """What steps need of their inputs, head by head: ``q, k (..., heads, d_k)``, ``v (..., heads, d_v)``, the output gate
    ``o (..., H)``, and the logarithms of the input and the forget gate, ``i, f (..., heads)``.
    """

    q: Array
    k: Array
    v: Array
    o: Array
    i: Array
    f: Array


@dataclasses.dataclass(frozen=True)
class MLSTM(BuiltinCell):
    """The mLSTM of xLSTM (Beck et al. 2024, arXiv:2405.04517, section 2.3), head by head::

        q = x W_q + b_q    k = x W_k / sqrt(d_k) + b_k    v = x W_v + b_v       o, i, f = x W + b
        C_t = F C_{t-1} + exp(i) k v^T    n_t = F n_{t-1} + exp(i) k            F = sigmoid(f) or exp(f)
        h_t = sigmoid(o) (C_t^T q) / max(|n_t^T q|, 1)

    computed with C and n divided by exp(m), ``m_t = max(log F + m_{t-1}, i)``, or i while n is zero, as nothing was read; the
    1 is then exp(-m), so h does not depend on m. Nothing here sees h, so many steps can be taken at once: `walk_chunks`,
    which ``Associative`` runs.

    Parameters: ``input_kernel (D, 2 heads d_k + 2 H + 2 heads)``, blocks q, k, v, o, i, f, and ``bias``. Carry:
    `MLSTMState` (h, C, n, m), the last three in float32 at least. Where m is above 40 (320 in float64) and n^T q below
    exp(-40), all rounding, exp(-40) stands for exp(-m).

    Args:
        hidden_size: H, d_v for each head side by side.
        heads: matrix memories, a divisor of H.
        key_size: d_k, default H / heads.
        forget_gate: F is ``"sigmoid"`` or ``"exponential"``.
        input_init: of the blocks q, k, v and o; those of i and f begin at zero.
        forget_init, input_gate_init: their biases, as the authors' code has them: evenly from 3 to 6 over the heads, and
            normal of deviation 0.1.
        learned_initial_carry: make the state before the first step a parameter.
    """

    _: dataclasses.KW_ONLY
    heads: int = 1
    key_size: int | None = None
    forget_gate: str = SIGMOID
    input_init: Initializer = Normal(math.sqrt(2 / 5))
    bias_init: Initializer = Zeros()
    forget_init: Initializer = Linspace(3.0, 6.0)
    input_gate_init: Initializer = Normal(0.1)
    shares_scale: ClassVar[bool] = True  # the parts of its carry mean something together only

    def __post_init__(self):
        super().__post_init__()
        check_heads(self)
        check_forget_gate(self)
        if self.key_size is not None:
            check_positive(self, key_size=self.key_size)

    @property
    def keys(self) -> int:
        """d_k."""
        return self.key_size or self.hidden_size // self.heads

    @property
    def blocks(self) -> tuple[int, ...]:
        """Columns of q, k, v, o, i and f in the packed kernel."""
        return (self.heads * self.keys,) * 2 + (self.hidden_size,) * 2 + (self.heads,) * 2

    def init(self, key: Array, input_size: int, dtype: Any = None) -> Params:
        """Draw parameters for ``input_size`` features, in ``dtype`` (default: jax's default float)."""
        check_positive(self, input_size=input_size)
        dtype = dtype or jnp.result_type(float)
        k_q, k_k, k_values, k_bias, k_i, k_f = jax.random.split(key, 6)
        size = self.heads * self.keys
        kernel = [
            self.input_init(k_q, (input_size, size), dtype),
            self.input_init(k_k, (input_size, size), dtype),
            gate_blocks(self.input_init, k_values, 2, input_size, self.hidden_size, dtype),
            jnp.zeros((input_size, 2 * self.heads), dtype),
        ]
        keys = zip(jax.random.split(k_bias, 4), self.blocks[:4], strict=True)
        bias = [self.bias_init(k, (size,), dtype) for k, size in keys]
        i = self.input_gate_init(k_i, (1, self.heads), dtype)[0]  # a row: Normal divides by the root of rows
        f = self.forget_init(k_f, (self.heads,), dtype)
        return self.with_initial_carry(
            {"input_kernel": jnp.concatenate(kernel, axis=-1), "bias": jnp.concatenate([*bias, i, f])}
        )

    def zero_carry(self, params: Params, batch_shape: tuple[int, ...], dtype: Any) -> MLSTMState:
        """Zeros: h in ``dtype``, the others in its accumulator's dtype."""
        wide, by_head = accumulator(dtype), (*batch_shape, self.heads)
        return MLSTMState(
            jnp.zeros((*batch_shape, self.hidden_size), dtype),
            jnp.zeros((*by_head, self.keys, self.hidden_size // self.heads), wide),
            jnp.zeros((*by_head, self.keys), wide),
            jnp.zeros(by_head, wide),
        )

    def project(self, params: Params, x: Float[Array, "*TB D"]) -> Float[Array, "*TB G"]:
        """All six blocks, biases added, in the accumulator's dtype."""
        check_features(self, params["input_kernel"], x)
        z = dense(x, params["input_kernel"]).astype(accumulator(x.dtype))
        scale = np.ones(z.shape[-1])
        scale[self.blocks[0] : 2 * self.blocks[0]] /= math.sqrt(self.keys)
        return along(jnp.asarray(scale, z.dtype), z) * z + along(params["bias"], z)

    def steps(self, z: Float[Array, "*TB G"]) -> Steps:
        """The blocks of ``project`` apart."""
        q, k, v, o, i, f = jnp.split(z, np.cumsum(self.blocks)[:-1], axis=-1)
        q, k, v = (block.reshape(*block.shape[:-1], self.heads, -1) for block in (q, k, v))
        return Steps(q, k, v, jax.nn.sigmoid(o), i, log_forget(self, f))

    def step(self, params: Params, carry: MLSTMState, z: Float[Array, "*B G"]) -> MLSTMState:
        """One step of the equations above."""
        now = self.steps(z)
        old = now.f + carry.m
        m = jnp.where((carry.n == 0).all(-1), now.i, jnp.maximum(old, now.i))
        kept, new = bounded_exp(old - m)[..., None], jnp.exp(now.i - m)[..., None]
        n = kept * carry.n + new * now.k
        C = kept[..., None] * carry.C + (new * now.k)[..., None] * now.v[..., None, :]
        read = jnp.einsum("...k,...kv->...v", now.q, C)
        h = now.o * self._shown(read, (now.q * n).sum(-1), m)
        return MLSTMState(h.astype(carry.h.dtype), C, n, m)

    def _shown(self, read: Float[Array, "*B N v"], weight: Float[Array, "*B N"], m: Float[Array, "*B N"]):
        """``read / max(|weight|, exp(-m))``, heads side by side; neither exp(-m) nor exp(m) overflows."""
        cut = jnp.asarray(largest_exponent(m.dtype), m.dtype)
        zero = jnp.zeros((), m.dtype)
        scale, one = jnp.exp(jnp.minimum(m, zero)), jnp.exp(-jnp.clip(m, zero, cut))  # one of them is 1
        h = read * (scale / jnp.maximum(jnp.abs(weight) * scale, one))[..., None]
        return h.reshape(*h.shape[:-2], self.hidden_size)

    def gate_values(self, params: Params, carry: MLSTMState, z: Float[Array, "*B G"]) -> dict[str, Gate]:
        """i and f of each head, the latter of which keeps C, and o."""
        now = self.steps(z)
        most = 1.0 if self.forget_gate == SIGMOID else math.inf
        return {"i": Gate(jnp.exp(now.i), high=math.inf), "f": Gate(jnp.exp(now.f), high=most, keeps=True), "o": Gate(now.o)}

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
        """``step`` over ``zs = project(params, xs)``, ``chunk`` steps at a time: the last carry, and h after every step.

        The chunkwise form of the paper's appendix and of TFLA (Beck et al. 2025, arXiv:2503.14376). Within a chunk, with
        ``L_ts = log F_{s+1} + ... + log F_t + i_s`` for s <= t and ``L_t = log F_1 + ... + log F_t + m_0``::

            m_t = max(L_t, L_t1, ..., L_tt)          S_ts = exp(L_ts - m_t) (q_t . k_s)
            C_t^T q_t = exp(L_t - m_t) C_0^T q_t + sum_s S_ts v_s         n_t alike, with 1 for v

        which are the numbers of ``step``, m included (but for keys that are exactly zero, where m is only another scale).
        Between chunks passes the carry; a chunk's insides are made again for
        its gradient, so memory grows with T by inputs and outputs alone, and with ``chunk``, by ``chunk^2`` a head.

        Where not ``mask``, h is not that of the held carry, for ``unroll`` shows nothing there.
        """
        steps, batch = zs.shape[0], zs.shape[1:-1]
        if steps == 0:
            return carry, jnp.zeros((0, *carry.h.shape), carry.h.dtype)
        chunk = min(chunk, steps)
        count = -(-steps // chunk)
        held = count * chunk - steps
        initial = self.initial_carry(params, batch) if resets is not None else None

        def cut(leaf, fill):
            leaf = jnp.flip(leaf, 0) if reverse else leaf
            leaf = jnp.concatenate([leaf, jnp.full((held, *leaf.shape[1:]), fill, leaf.dtype)])
            return leaf.reshape(count, chunk, *leaf.shape[1:])

        if held and mask is None:
            mask = jnp.ones((steps, *batch), bool)
        flags = (None if mask is None else cut(mask, False), None if resets is None else cut(resets, False))

        def one(state, part):
            return self._chunk(state, initial, *part)

        state = (carry.C, carry.n, carry.m)
        (C, n, m), hs = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), state, (cut(zs, 0), *flags))
        hs = hs.reshape(count * chunk, *hs.shape[2:])[:steps].astype(carry.h.dtype)
        hs = jnp.flip(hs, 0) if reverse else hs
        return MLSTMState(_last_shown(carry.h, hs, mask, resets, initial, reverse), C, n, m), hs

    def _chunk(self, state: Any, initial: MLSTMState | None, z: Array, mask: Any, resets: Any) -> tuple[Any, Array]:
        """C, n and m after a chunk, and h after every step of it."""
        C, n, m_first = state
        if mask is not None:
            z = jnp.where(expand(mask, z), z, 0)
        now = self.steps(z)
        i, f = now.i, now.f
        if mask is not None:  # what is masked keeps all and adds nothing
            i = jnp.where(expand(mask, i), i, -jnp.inf)
            f = jnp.where(expand(mask, f), f, 0)
        late = _lateness(resets)
        since, between = _log_decays(jnp.moveaxis(f, 0, -1), late)
        start, empty = m_first[..., None], (n == 0).all(-1)[..., None]
        if initial is not None:
            begun = late > 0
            start = jnp.where(begun, initial.m[..., None], start)
            empty = jnp.where(begun, (initial.n == 0).all(-1)[..., None], empty)
        old, new = since + start, between + jnp.moveaxis(i, 0, -1)[..., None, :]  # L_t and L_ts
        m = new.max(-1)
        m = jnp.where(empty & (m > -jnp.inf), m, jnp.maximum(old, m))
        old, new = bounded_exp(old - m), jnp.exp(new - m[..., None])  # (*B, N, t) and (*B, N, t, s)
        scores = new * jnp.einsum("t...k,s...k->...ts", now.q, now.k)
        read = jnp.einsum("t...k,...kv->...tv", now.q, C)
        weight = jnp.einsum("t...k,...k->...t", now.q, n)
        if initial is not None and self.learned_initial_carry:
            read = jnp.where(begun[..., None], jnp.einsum("t...k,...kv->...tv", now.q, initial.C), read)
            weight = jnp.where(begun, jnp.einsum("t...k,...k->...t", now.q, initial.n), weight)
        elif initial is not None:
            read, weight = jnp.where(begun[..., None], 0, read), jnp.where(begun, 0, weight)
        read = old[..., None] * read + jnp.einsum("...ts,s...v->...tv", scores, now.v)
        weight = old * weight + scores.sum(-1)
        shown = self._shown(*(jnp.moveaxis(a, d, 0) for a, d in ((read, -2), (weight, -1), (m, -1))))
        if initial is not None:
            C, n = (
                jnp.where(begun[..., -1].reshape(begun.shape[:-1] + (1,) * (a.ndim - begun.ndim + 1)), b, a)
                for a, b in ((C, initial.C), (n, initial.n))
            )
        kept, added = old[..., -1], new[..., -1, :]
        C = kept[..., None, None] * C + jnp.einsum("...s,s...k,s...v->...kv", added, now.k, now.v)
        n = kept[..., None] * n + jnp.einsum("...s,s...k->...k", added, now.k)
        return (C, n, m[..., -1]), now.o * shown


def _lateness(resets: Any) -> Any:
    """How many resets lie in the chunk up to and with each step, ``(*B, 1, t)``; None without resets."""
    if resets is None:
        return None
    return jnp.moveaxis(jnp.cumsum(resets, 0, dtype=jnp.int32), 0, -1)[..., None, :]


def _log_decays(f: Float[Array, "*B N t"], late: Any) -> tuple[Float[Array, "*B N t"], Float[Array, "*B N t s"]]:
    """Sums of log F: from the chunk's beginning, or the last reset, with step t; and behind step s with step t, -inf where s
    is not before t or a reset lies between. Each is a sum of its own, for a difference of two long ones loses its digits.
    """
    place = np.arange(f.shape[-1])
    place = place.reshape((1,) * (f.ndim - 1) + place.shape)
    behind, same = place[..., :, None] > place[..., None, :], True
    if late is not None:
        same = late[..., :, None] == late[..., None, :]
    later = jnp.where(behind, f[..., :, None], 0)
    between = jnp.where((place[..., :, None] >= place[..., None, :]) & same, jnp.cumsum(later, axis=-2), -jnp.inf)
    if late is None:
        return jnp.cumsum(f, -1), between
    here = (place[..., :, None] >= place[..., None, :]) & same
    return jnp.where(here, f[..., None, :], 0).sum(-1), between


def _last_shown(h: Array, hs: Array, mask: Any, resets: Any, initial: Carry, reverse: bool) -> Array:
    """h of the last step walked that was not masked, or the initial one after a later reset, or the one before all steps."""
    steps = hs.shape[0]
    if mask is None:
        return hs[0 if reverse else -1]

    def last(flags):  # its place in the order of walking, from 1; 0: none
        number = jnp.arange(steps, 0, -1) if reverse else jnp.arange(1, steps + 1)
        return jnp.where(flags, number.reshape(-1, *[1] * (flags.ndim - 1)), 0).max(0)

    at = last(mask)
    place = jnp.clip(steps - at if reverse else at - 1, 0, steps - 1)
    shown = jnp.take_along_axis(hs, place[None, ..., None], axis=0)[0]
    if resets is not None:
        fresh = last(resets)
        h = select(fresh > 0, initial.h, h)
        return select((at > 0) & (at >= fresh), shown, h)
    return select(at > 0, shown, h)
