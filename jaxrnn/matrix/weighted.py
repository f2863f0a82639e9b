"""A chunk of steps whose writes have strengths that may be large, as those of mLSTM.

The state is stored divided by ``exp(m_t)``, the largest weight so far. So the weights
of a chunk depend on m of the state that enters it, and chunks run one after another.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .chunk import grouped, grouped_heads
from .decay import HeadDecay, products
from .inverse import exact_matmul
from .terms import MatrixMemory, Terms, bounded_exp, is_empty, log_decay


def run_weighted_chunk(
    memory: MatrixMemory,
    initial: MatrixMemory | None,
    terms: Terms,
    segment: Int[Array, "T *B"] | None,
) -> tuple[MatrixMemory, tuple[Float[Array, "T *B N V"], Float[Array, "T *B N"]]]:
    """Compute one chunk, of terms with w.

    Args:
        memory: the state before the chunk.
        initial: the state that a reset brings in; None if it is zero.
        terms: ``(C, *B, heads, ...)``.
        segment: the number of resets in the chunk up to each step, or None.

    Returns:
        The state after the chunk; what every step read, and its m.
    """
    shape = memory.S.shape
    terms, segment, _ = grouped(terms, segment, None, memory.S.dtype)
    groups = terms.q.shape[-4]
    if initial is None:
        initial = jax.tree.map(jnp.zeros_like, memory)
    chunk = _WeightedChunk(
        _grouped(memory, groups), _grouped(initial, groups), terms, segment
    )
    y = chunk.outputs()
    m = chunk.m.reshape(*shape[:-2], chunk.m.shape[-1])
    y = y.reshape(*shape[:-2], *y.shape[-2:])
    last = MatrixMemory(chunk.last_state().reshape(shape), m[..., -1])
    return last, (jnp.moveaxis(y, -2, 0), jnp.moveaxis(m, -1, 0))


class _WeightedChunk:
    """The weights ``exp(between_ts + w_s)`` of all steps s, and that of the state that
    entered, divided by the largest of them, ``exp(m_t)``.

    All arrays are ``(*B, groups, heads of a group, C, ...)``.
    """

    def __init__(self, memory, initial, terms, segment):
        self.memory, self.initial = memory, initial
        self.terms, self.segment = terms, segment
        g = jnp.zeros_like(terms.w) if terms.g is None else log_decay(terms.g)
        decay = HeadDecay(g, segment)
        log_entering = decay.log_since_start(before=False)
        log_entering = log_entering + self._entering(lambda memory: memory.m)
        empty = self._entering(lambda memory: is_empty(memory.S))
        log_weights = decay.log_weights + jnp.swapaxes(terms.w, -1, -2)
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

    def outputs(self) -> Array:
        """Return what every step reads."""
        q, k, v = self.terms[:3]
        y = q @ self.memory.S
        if self.segment is not None:
            y = jnp.where(self.segment[..., None] > 0, q @ self.initial.S, y)
        scores = self.weights * products(q, k, False)
        return self.kept[..., None] * y + scores @ v

    def last_state(self) -> Array:
        """Return the state after the chunk."""
        S, (_, k, v) = self.memory.S, self.terms[:3]
        if self.segment is not None:
            was_reset = self.segment[..., -1, None, None] > 0
            S = jnp.where(was_reset, self.initial.S, S)
        k = k * self.weights[..., -1, :, None]
        if self.segment is not None:
            in_last = self.segment == self.segment[..., -1:]
            k = jnp.where(in_last[..., None], k, 0)
        written = exact_matmul(jnp.swapaxes(k, -1, -2), v)
        return self.kept[..., -1, None, None] * S + written


def _grouped(memory: MatrixMemory, groups: int) -> MatrixMemory:
    """Split the heads of a state into groups."""
    m: Any = memory.m
    return MatrixMemory(
        grouped_heads(memory.S, -3, groups), grouped_heads(m, -1, groups)
    )
