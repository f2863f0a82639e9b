"""A chunk of steps whose writes have strengths that may be large, as those of mLSTM.

The state is stored divided by ``exp(m_t)``, the largest weight so far. So the weights
of a chunk depend on m of the state that enters it, and chunks run one after another.

The values of a step often are d_v numbers and a 1, which makes a normalizer. Matrix
products whose sides are no multiples of a vector register are slow, so that columns
beyond such a multiple are kept apart. No column of the state depends on another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core.dtypes import largest_exponent
from .chunk import grouped, grouped_heads
from .decay import HeadDecay, products
from .inverse import exact_matmul
from .terms import MatrixMemory, Terms, bounded_exp, is_empty, log_decay

REGISTER = 8  # numbers in a vector register


class WeightedMemory(NamedTuple):
    """A `MatrixMemory` with strengths, its columns in parts.

    Attributes:
        S: ``(*B, heads, d_k, d)`` per part.
        m: ``(*B, heads)``, the logarithm of the scale.
        empty: ``(*B, heads)``, whether nothing has been written, so that m says
            nothing.
    """

    S: tuple[Array, ...]
    m: Array
    empty: Array


def split_columns(x: Float[Array, "*B V"]) -> tuple[Array, ...]:
    """Split the last axis into a multiple of `REGISTER` columns, and the others."""
    size = x.shape[-1]
    whole = size - size % REGISTER
    return (x,) if whole in (0, size) else (x[..., :whole], x[..., whole:])


def join_columns(parts: tuple[Array, ...]) -> Float[Array, "*B V"]:
    """Return the inverse of `split_columns`."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def in_parts(memory: MatrixMemory) -> WeightedMemory:
    """Return a state with its columns in parts."""
    m: Any = memory.m
    return WeightedMemory(split_columns(memory.S), m, is_empty(memory.S))


def joined(memory: WeightedMemory) -> MatrixMemory:
    """Return the inverse of `in_parts`."""
    return MatrixMemory(join_columns(memory.S), memory.m)


def run_weighted_chunk(
    memory: WeightedMemory,
    initial: WeightedMemory | None,
    terms: Terms,
    segment: Int[Array, "T *B"] | None,
) -> tuple[
    WeightedMemory, tuple[tuple[Float[Array, "T *B N V"], ...], Float[Array, "T *B N"]]
]:
    """Compute one chunk, of terms with w.

    Args:
        memory: the state before the chunk.
        initial: the state that a reset brings in; None if it is zero.
        terms: ``(C, *B, heads, ...)``.
        segment: the number of resets in the chunk up to each step, or None.

    Returns:
        The state after the chunk; what every step read, in parts, and its m.
    """
    lead = memory.m.shape
    terms, segment, _ = grouped(terms, segment, None, memory.S[0].dtype)
    groups = terms.q.shape[-4]
    if initial is None:
        nothing = jax.tree.map(jnp.zeros_like, memory)
        initial = nothing._replace(empty=~nothing.empty)
    chunk = _WeightedChunk(
        _grouped(memory, groups), _grouped(initial, groups), terms, segment
    )

    def by_head(x, features):
        """Join the groups of heads again."""
        return x.reshape(*lead, *x.shape[x.ndim - features :])

    m, empty = by_head(chunk.m, 1), by_head(chunk.empty, 1)
    S, ys = (
        tuple(by_head(x, 2) for x in parts)
        for parts in (chunk.last_state(), chunk.outputs())
    )
    ys = tuple(jnp.moveaxis(y, -2, 0) for y in ys)
    last = WeightedMemory(S, m[..., -1], empty[..., -1])
    return last, (ys, jnp.moveaxis(m, -1, 0))


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
        empty = self._entering(lambda memory: memory.empty)
        wrote = self._wrote(decay.sees(before=False))
        log_weights = decay.log_weights + jnp.swapaxes(terms.w, -1, -2)
        # What wrote zero to a state of zero has no say in the scale, as in `rescale`.
        counts = (wrote | ~empty)[..., None, :]
        m = jnp.where(counts, log_weights, -jnp.inf).max(-1)
        self.empty = empty & ~wrote
        self.m = jnp.where(empty & wrote, m, jnp.maximum(log_entering, m))
        self.kept = bounded_exp(log_entering - self.m)
        # Above 0 are those alone that have no say. What they multiply is zero, which an
        # infinite factor would make NaN.
        log_weights = log_weights - self.m[..., None]
        most = largest_exponent(log_weights.dtype)
        self.weights = jnp.exp(
            jnp.minimum(log_weights, jnp.asarray(most, log_weights.dtype))
        )

    def _wrote(self, sees):
        """Whether anything but zero was written, since a reset, up to each step."""
        _, k, v = self.terms[:3]
        writes = (k != 0).any(-1) & (v != 0).any(-1)
        writes = writes & (self.terms.w > -jnp.inf)[..., 0]
        if self.segment is None:
            return jax.lax.cummax(writes.astype(jnp.int32), writes.ndim - 1) > 0
        return (sees & writes[..., None, :]).any(-1)

    def _entering(self, of):
        """Return what ``of`` says of the state that each step sees as entering."""
        now = of(self.memory)[..., None]
        if self.segment is None:
            return now
        return jnp.where(self.segment > 0, of(self.initial)[..., None], now)

    def outputs(self) -> list[Array]:
        """Return what every step reads, in parts."""
        q, k, v = self.terms[:3]
        scores = self.weights * products(q, k, False)
        ys = []
        for S, initial, v_part in self._parts(v):
            y = q @ S
            if self.segment is not None:
                y = jnp.where(self.segment[..., None] > 0, q @ initial, y)
            ys.append(self.kept[..., None] * y + scores @ v_part)
        return ys

    def last_state(self) -> list[Array]:
        """Return the state after the chunk, in parts."""
        _, k, v = self.terms[:3]
        k = k * self.weights[..., -1, :, None]
        was_reset = None
        if self.segment is not None:
            was_reset = self.segment[..., -1, None, None] > 0
            in_last = self.segment == self.segment[..., -1:]
            k = jnp.where(in_last[..., None], k, 0)
        k, kept = jnp.swapaxes(k, -1, -2), self.kept[..., -1, None, None]
        parts = []
        for S, initial, v_part in self._parts(v):
            S = S if was_reset is None else jnp.where(was_reset, initial, S)
            parts.append(kept * S + exact_matmul(k, v_part))
        return parts

    def _parts(self, v):
        """Return the parts of the state, of the initial state, and of the values."""
        return zip(self.memory.S, self.initial.S, split_columns(v), strict=True)


def _grouped(memory: WeightedMemory, groups: int) -> WeightedMemory:
    """Split the heads of a state into groups."""
    return WeightedMemory(
        tuple(grouped_heads(part, -3, groups) for part in memory.S),
        grouped_heads(memory.m, -1, groups),
        grouped_heads(memory.empty, -1, groups),
    )
