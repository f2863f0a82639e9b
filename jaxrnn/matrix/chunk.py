"""A chunk of steps on a matrix state, computed at once.

Letters: t and s are steps of the chunk, S_0 is the state that enters it, ``G_t = g_1 +
... + g_t``, and ``p_t = S_{t-1}^T a_t`` is what step t reads in order to erase. With
the scores of `jaxrnn.matrix.decay`, of x at step t with y at step s, ::

    without a:       Y = (q exp G) S_0 + A_qk V
    with b = k:      (I - A_ak) U = V + (a exp G_{t-1}) S_0
                     Y = (q exp G) S_0 + A_qk U
    with a and b:    (I - A_ab) P = (a exp G_{t-1}) S_0 + A_ak V
                     Y = (q exp G) S_0 + A_qk V + A_qb P

    S_C = exp(G_C) S_0 + sum over s of exp(g_{s+1} + ... + g_C) x_s^T W_s

where (x, W) are what has been written: (k, V); (k, U); (k, V) and (b, P). The second is
the WY representation of DeltaNet (Yang et al. 2024, arXiv:2406.06484), and the third
that of RWKV-7. A reset makes later steps see the initial state instead of S_0, and
nothing of what was written before it.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .decay import HeadDecay, decay_of, products
from .inverse import exact_matmul, inverse_of_one_minus
from .terms import (
    MatrixMemory,
    Terms,
    bounded_exp,
    group_heads,
    is_empty,
    log_decay,
    map_terms,
)

Written = list[tuple[Array, Array]]  # keys, and the values written at them


def run_chunk(
    memory: MatrixMemory,
    initial: MatrixMemory | None,
    terms: Terms,
    segment: Int[Array, "T *B"] | None,
    reads: str,
) -> tuple[MatrixMemory, tuple[Float[Array, "T *B N V"], Array | None]]:
    """Compute one chunk.

    Args:
        memory: the state before the chunk.
        initial: the state that a reset brings in; None if it is zero.
        terms: ``(C, *B, heads, ...)``, C a power of two.
        segment: the number of resets in the chunk up to each step, or None.
        reads: ``"after"`` or ``"before"``.

    Returns:
        The state after the chunk; what every step read, and its m (or None).
    """
    dtype, shape = memory.S.dtype, memory.S.shape
    terms = map_terms(lambda x: jnp.moveaxis(x, 0, -2), group_heads(terms, dtype))
    groups = terms.q.shape[-4], terms.v.shape[-3]
    if segment is not None:
        segment = jnp.moveaxis(segment, 0, -1)[..., None, None, :]
    memory = _grouped(memory, groups)
    initial = None if initial is None else _grouped(initial, groups)
    if terms.w is not None:
        chunk: Chunk = WeightedChunk(memory, initial, terms, segment)
    else:
        chunk = Chunk(memory, initial, terms, segment)
    y, written = chunk.outputs(reads)
    S, m, m_last = chunk.last_state(written), chunk.m, None
    if m is not None:
        m_last = m[..., -1].reshape(shape[:-2])
        m = jnp.moveaxis(m.reshape(*shape[:-2], m.shape[-1]), -1, 0)
    y = y.reshape(*shape[:-2], *y.shape[-2:])
    return MatrixMemory(S.reshape(shape), m_last), (jnp.moveaxis(y, -2, 0), m)


class Chunk:
    """One chunk; all arrays are ``(*B, groups, heads of a group, C, ...)``.

    Attributes:
        m: the logarithm of the scale of the state after every step, or None.
    """

    m: Array | None = None

    def __init__(self, memory, initial, terms, segment):
        self.memory, self.initial, self.terms = memory, initial, terms
        self.segment, self.size = segment, terms.q.shape[-2]
        g = terms.g
        self.decay = decay_of(None if g is None else log_decay(g), segment, self.size)

    def outputs(self, reads: str) -> tuple[Array, Written]:
        """Return what every step reads, and what has been written."""
        q, k, v, _, a, b = self.terms[:6]
        before = reads == "before"
        y = self.read_entering(q, before=before)
        q_k = self.decay.scores(q, k, before=before)
        if a is None:
            return y + q_k @ v, [(k, v)]
        erased = self.read_entering(a, before=True)
        a_k = self.decay.scores(a, k, before=True)
        if b is None:
            u = exact_matmul(inverse_of_one_minus(a_k), v + erased)
            return y + q_k @ u, [(k, u)]
        a_b = self.decay.scores(a, b, before=True)
        p = exact_matmul(inverse_of_one_minus(a_b), erased + exact_matmul(a_k, v))
        y = y + q_k @ v + self.decay.scores(q, b, before=before) @ p
        return y, [(k, v), (b, p)]

    def read_entering(self, x: Array, *, before: bool) -> Array:
        """Return what x reads of the state that entered, decayed until then."""
        decay = self.decay.since_start(before=before)
        x = x if decay is None else x * decay
        y = exact_matmul(x, self.memory.S) if before else x @ self.memory.S
        if self.segment is None:
            return y
        of_reset = 0 if self.initial is None else x @ self.initial.S
        return jnp.where(self.segment[..., None] > 0, of_reset, y)

    def last_state(self, written: Written) -> Array:
        """Return the state after the chunk."""
        decay = self.decay.since_start(before=False)
        last = 1 if decay is None else decay[..., -1, :, None]
        S, to_end = last * self.entering_last(), self.decay.to_end()
        for key, value in written:
            key = key if to_end is None else key * to_end
            if self.segment is not None:
                in_last = self.segment == self.segment[..., -1:]
                key = jnp.where(in_last[..., None], key, 0)
            S = S + exact_matmul(jnp.swapaxes(key, -1, -2), value)
        return S

    def entering_last(self) -> Array:
        """Return what the last step sees as the state that entered."""
        S = self.memory.S
        if self.segment is None:
            return S
        of_reset = 0 if self.initial is None else self.initial.S
        return jnp.where(self.segment[..., -1, None, None] > 0, of_reset, S)


class WeightedChunk(Chunk):
    """A chunk whose writes have a logarithmic strength w, at the scale exp(m).

    The weights ``exp(between_ts + w_s)`` of all steps s, and that of the state that
    entered, are divided by the largest of them, ``exp(m_t)``.
    """

    def __init__(self, memory, initial, terms, segment):
        if initial is None:
            initial = MatrixMemory(*map(jnp.zeros_like, memory))
        super().__init__(memory, initial, terms, segment)
        g = jnp.zeros_like(terms.w) if terms.g is None else log_decay(terms.g)
        decay = HeadDecay(g, segment)
        log_entering = decay.log_since_start(before=False)
        log_entering = log_entering + self._entering(lambda memory: memory.m)
        empty = self._entering(lambda memory: is_empty(memory.S))
        log_weights = decay.log_weights(before=False)
        log_weights = log_weights + jnp.swapaxes(terms.w, -1, -2)
        m = log_weights.max(-1)
        first = empty & (m > -jnp.inf)
        self.m = jnp.where(first, m, jnp.maximum(log_entering, m))
        self.kept = bounded_exp(log_entering - self.m)
        self.weights = jnp.exp(log_weights - self.m[..., None])

    def _entering(self, of):
        """Return what ``of`` says of the state that each step sees as entering."""
        now = of(self.memory)[..., None]
        if self.segment is None:
            return now
        return jnp.where(self.segment > 0, of(self.initial)[..., None], now)

    def outputs(self, reads):
        q, k, v = self.terms[:3]
        y = q @ self.memory.S
        if self.segment is not None:
            of_reset = q @ self.initial.S
            y = jnp.where(self.segment[..., None] > 0, of_reset, y)
        scores = self.weights * products(q, k, False)
        return self.kept[..., None] * y + scores @ v, [(k, v)]

    def last_state(self, written):
        ((k, v),) = written
        k = k * self.weights[..., -1, :, None]
        S = self.kept[..., -1, None, None] * self.entering_last()
        return S + exact_matmul(jnp.swapaxes(k, -1, -2), v)


def _grouped(memory: MatrixMemory, groups: tuple[int, int]) -> MatrixMemory:
    """Split the heads of a state as `group_heads` splits those of the terms."""
    S, m = memory
    S = S.reshape(*S.shape[:-3], *groups, *S.shape[-2:])
    return MatrixMemory(S, None if m is None else m.reshape(*m.shape[:-1], *groups))
