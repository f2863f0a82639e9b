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

Only W and S_C need S_0, and they are a few products of what does not: scores, inverses
and decayed keys. So these are computed for many chunks side by side, then W and S_C
chunk by chunk, then Y side by side again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .decay import AbstractDecay, decay_of
from .inverse import exact_matmul, inverse_of_one_minus
from .terms import Terms, group_heads, log_decay, map_terms, rotate_keys


class Chunk(NamedTuple):
    """What a chunk makes of the state that enters it, and what its queries read.

    All arrays are ``(*B, groups, heads of a group, ...)``; see `group_heads`. With ::

        W = T (E S_0 + source)        S_C = kept S_0 + x^T W + added
        Y = R S_0 + scores W + Y_0

    What is None stands for zero.

    Attributes:
        kept: ``(..., 1 or K, 1)``, the factors of the state; zero after a reset.
        added: ``(..., K, V)``.
        reading: ``(..., C, K)``, R.
        read: ``(..., C, V)``, Y_0.
        erased: what is erased, or None.
        sees_entering: ``(..., C, 1)``, whether a step comes before all resets, or None
            where there are none.
        turn: ``(..., R)``, the angles by which the state is rotated back at the end, or
            None.
    """

    kept: Array
    added: Array | None
    reading: Array
    read: Array | None
    erased: Erased | None
    sees_entering: Array | None
    turn: Array | None = None


class Erased(NamedTuple):
    """The factors of W in a `Chunk`.

    Attributes:
        inverse: ``(..., C, C)``, T.
        reading: ``(..., C, K)``, E.
        source: ``(..., C, V)``.
        keys: ``(..., C, K)``, x, decayed to the end of the chunk.
        scores: ``(..., C, C)``, of the queries with x.
    """

    inverse: Array
    reading: Array
    source: Array
    keys: Array
    scores: Array


def prepare_chunk(
    initial: Float[Array, "*B N K V"] | None,
    terms: Terms,
    segment: Int[Array, "T *B"] | None,
    reads: str,
    dtype: jnp.dtype,
) -> Chunk:
    """Compute all of a chunk that does not depend on the state that enters it.

    Args:
        initial: the state that a reset brings in; None if it is zero.
        terms: ``(C, *B, heads, ...)``, C a power of two where something is erased or a
            channel decays.
        segment: the number of resets in the chunk up to each step, or None.
        reads: ``"after"`` or ``"before"``.
        dtype: that of the state.
    """
    terms, segment, initial = grouped(terms, segment, initial, dtype)
    q, k, v, g, a, b = terms[:6]
    before = reads == "before"
    decay = decay_of(None if g is None else log_decay(g), segment, q.shape[-2])
    entering = _Entering(decay, segment, initial)
    reading, read = entering.read_by(q, before=before)
    kept, added = entering.at_end(jnp.ones_like(q[..., -1:, :1]))
    keys = _at_end(k, decay, segment)
    if a is None:
        scores = decay.scores(q, k, before=before)
        added, read = _sum(added, _outer(keys, v)), _sum(read, scores @ v)
        return Chunk(kept, added, reading, read, None, entering.sees)
    erasing, source = entering.read_by(a, before=True)
    written = [k] if b is None else [k, b]
    (scores, *of_b), (solved, *solved_b) = decay.tables(
        [(q, before), (a, True)], written
    )
    if b is None:
        source = _sum(source, v)
    else:
        added, read = _sum(added, _outer(keys, v)), _sum(read, scores @ v)
        source = _sum(source, exact_matmul(solved, v))
        (scores,), (solved,), keys = of_b, solved_b, _at_end(b, decay, segment)
    inverse = inverse_of_one_minus(solved)
    erased = Erased(inverse, erasing, source, keys, scores)
    return Chunk(kept, added, reading, read, erased, entering.sees)


def next_state(S: Array, chunk: Chunk) -> tuple[Array, Array | None]:
    """Return the state after a chunk, from the one before it, and W."""
    S, spoiled = _finite(S, chunk)
    new, W, erased = _sum(chunk.added, chunk.kept * S), None, chunk.erased
    if erased is not None:
        source = erased.source + exact_matmul(erased.reading, S)
        W = exact_matmul(erased.inverse, source)
        new = new + _outer(erased.keys, W)
    if chunk.sees_entering is not None:
        new = jnp.where(spoiled & chunk.sees_entering[..., -1:, :], jnp.nan, new)
    return new if chunk.turn is None else rotate_keys(new, -chunk.turn), W


def read_chunk(S: Array, W: Array | None, chunk: Chunk) -> Float[Array, "*B N C V"]:
    """Return what every step of a chunk reads, from the state before it, and W."""
    S, spoiled = _finite(S, chunk)
    y = _sum(chunk.read, chunk.reading @ S)
    if chunk.erased is not None and W is not None:
        y = y + chunk.erased.scores @ W
    if chunk.sees_entering is None:
        return y
    return jnp.where(spoiled & chunk.sees_entering, jnp.nan, y)


def grouped(
    terms: Terms, segment: Any, initial: Any, dtype: jnp.dtype
) -> tuple[Terms, Any, Any]:
    """Put the steps of a chunk last but one, and split the heads by `group_heads`.

    Returns:
        The terms ``(*B, groups, heads of a group, C, ...)``, the segments ``(*B, 1, 1,
        C)`` and the initial state ``(*B, groups, heads of a group, K, V)``.
    """
    terms = map_terms(lambda x: jnp.moveaxis(x, 0, -2), group_heads(terms, dtype))
    if segment is not None:
        segment = jnp.moveaxis(segment, 0, -1)[..., None, None, :]
    if initial is not None:
        initial = grouped_heads(initial, -3, terms.q.shape[-4])
    return terms, segment, initial


def grouped_heads(x: Array, axis: int, groups: int) -> Array:
    """Split an axis of all heads, counted from the last, into groups."""
    shape, rest = x.shape[:axis], x.shape[x.ndim + axis + 1 :]
    return x.reshape(*shape, groups, x.shape[axis] // groups, *rest)


class _Entering:
    """What becomes of the state that enters a chunk, and of the one a reset brings.

    Attributes:
        sees: whether each step sees the state that entered, or None where all do.
    """

    def __init__(self, decay, segment, initial):
        self.decay, self.initial = decay, initial
        self.sees = None if segment is None else segment[..., None] == 0

    def read_by(self, x: Array, *, before: bool) -> tuple[Array, Array | None]:
        """Return the factors by which x reads what entered, and what else it reads."""
        decay = self.decay.since_start(before=before)
        x = x if decay is None else x * decay
        if self.sees is None:
            return x, None
        of_reset = None
        if self.initial is not None:
            of_reset = jnp.where(self.sees, 0, exact_matmul(x, self.initial))
        return jnp.where(self.sees, x, 0), of_reset

    def at_end(self, one: Array) -> tuple[Array, Array | None]:
        """Return the factors of what entered at the end, and what a reset brought."""
        decay = self.decay.since_start(before=False)
        kept = one if decay is None else decay[..., -1, :, None]
        if self.sees is None:
            return kept, None
        sees, of_reset = self.sees[..., -1:, :], None
        if self.initial is not None:
            of_reset = jnp.where(sees, 0, kept * self.initial)
        return jnp.where(sees, kept, 0), of_reset


def _at_end(key: Array, decay: AbstractDecay, segment: Any) -> Array:
    """Return the keys of what has been written, as the end of the chunk sees them."""
    to_end = decay.to_end()
    key = key if to_end is None else key * to_end
    if segment is None:
        return key
    return jnp.where((segment == segment[..., -1:])[..., None], key, 0)


def _sum(x: Array | None, y: Array) -> Array:
    """Return the sum, in which None stands for zero."""
    return y if x is None else x + y


def _outer(keys: Array, values: Array) -> Float[Array, "*B K V"]:
    """Return the sum over the steps of ``key value^T``."""
    return exact_matmul(jnp.swapaxes(keys, -1, -2), values)


def _finite(S: Array, chunk: Chunk) -> tuple[Array, Any]:
    """Replace columns that are not finite, which steps behind a reset must not see.

    In a product their zero factors would not keep them out.

    Returns:
        The state, and which columns were replaced.
    """
    if chunk.sees_entering is None:
        return S, None
    finite = jnp.isfinite(S).all(-2, keepdims=True)
    return jnp.where(finite, S, jnp.zeros_like(S)), ~finite
