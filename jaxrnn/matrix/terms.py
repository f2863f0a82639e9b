"""The terms of a recurrence on a matrix state, and what is done to them step by step.

The state S ``(*B, heads, d_k, d_v)`` has keys first. Every step decays it, erases from
it and writes to it::

    S_t = (Diag(exp g_t) + b_t a_t^T) S_{t-1} + k_t v_t^T
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core.exported import register_for_export
from ..core.flags import expand_flags

# A decay of exp(-1e4) is zero in every float; the sum of a chunk of such logarithms is
# finite, and that of -inf and its difference would not be.
LEAST_LOG_DECAY = -1e4


@register_for_export
class Terms(NamedTuple):
    """What a step does to the matrix state of every head::

        S_t = (Diag(exp g_t) + b_t a_t^T) S_{t-1} + k_t v_t^T        y_t = S_t^T q_t

    All have the leading axes of the inputs, then the axis of the heads. The keys of a
    head may be shared: q, k, a and b may have fewer heads than v, if their number
    divides that of v, and then serve as many neighboring heads of v.

    Attributes:
        q: ``(..., heads, d_k)``, the query, which reads.
        k: ``(..., heads, d_k)``, the key at which is written.
        v: ``(..., heads, d_v)``, the value that is written.
        g: the logarithm of the decay, at most 0: ``(..., heads, 1)`` for one decay a
            head, ``(..., heads, d_k)`` for one a channel of the keys; None for no
            decay. Below -1e4 it counts as -1e4.
        a: ``(..., heads, d_k)``, the key at which the state before the step is read in
            order to erase; None where nothing is erased.
        b: ``(..., heads, d_k)``, the key at which that is added; None for ``b = k``, as
            in all delta rules, which costs half.
        w: ``(..., heads, 1)``, the logarithm of the strength with which is written:
            ``exp(w_t) k_t v_t^T``, for gates that may be large; None for 1. The state
            is then stored divided by ``exp(m)``, see `MatrixMemory`, so that the cell's
            carry must hold m, as that of `jaxrnn.MLSTM` does.
        turn: ``(..., heads, R)``, angles in radians, R at most d_k / 2, by which the
            pairs of channels (0, 1), (2, 3), ... of the state's keys are rotated
            backwards before all else; None for none. Queries and keys then see each
            other as if those of every step were rotated by the sum of the angles so
            far, which are rotary embeddings. It goes with no decay or one a head, and
            with queries that read "after".

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.matrix import MatrixMemory, Terms
        >>> from jaxrnn.matrix.terms import take_step
        >>> k, v = jnp.array([[1.0, 0.0]]), jnp.array([[3.0]])  # of one head
        >>> delta = Terms(q=k, k=k, v=v, a=-k)  # erases what is at k, and writes v
        >>> memory = MatrixMemory(jnp.array([[[5.0], [7.0]]]))
        >>> memory, y = take_step(memory, delta, "after")
        >>> memory.S.ravel().tolist(), y.ravel().tolist()
        ([3.0, 7.0], [3.0])
    """

    q: Array
    k: Array
    v: Array
    g: Array | None = None
    a: Array | None = None
    b: Array | None = None
    w: Array | None = None
    turn: Array | None = None


def map_terms(f: Callable[[Array], Array], terms: Terms) -> Terms:
    """Apply a function to all terms that are there."""
    return Terms(*(None if x is None else f(x) for x in terms))  # type: ignore[arg-type]


class MatrixMemory(NamedTuple):
    """The matrix state, and the logarithm of its scale.

    Attributes:
        S: ``(*B, heads, d_k, d_v)``.
        m: ``(*B, heads)`` where the terms have w, else None. The state is then
            ``S exp(m)``, with m the largest logarithm of a weight so far: no float
            overflows, whatever w is.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn.matrix import MatrixMemory, Terms
        >>> from jaxrnn.matrix.terms import take_step
        >>> k, v = jnp.array([[1.0]]), jnp.array([[2.0]])  # one head
        >>> large = Terms(q=k, k=k, v=v, w=jnp.array([[1000.0]]))  # exp(1000) k v^T
        >>> memory = MatrixMemory(jnp.zeros((1, 1, 1)), jnp.zeros(1))
        >>> memory, _ = take_step(memory, large, "after")
        >>> memory.S.ravel().tolist(), memory.m.tolist()
        ([2.0], [1000.0])
    """

    S: Array
    m: Array | None = None


def take_step(
    memory: MatrixMemory, terms: Terms, reads: str
) -> tuple[MatrixMemory, Float[Array, "*B N V"]]:
    """Take one step of the recurrence.

    Args:
        memory: the state before the step.
        terms: those of the step.
        reads: ``"after"`` or ``"before"``, whether the query reads S_t or S_{t-1}.

    Returns:
        The state after the step, and what the query read.
    """
    S, m = memory
    terms = spread_heads(terms, S.dtype)
    if terms.turn is not None:
        S = rotate_keys(S, -terms.turn)
    read_before = read(S, terms.q) if reads == "before" else None
    new = S if terms.g is None else jnp.exp(log_decay(terms.g))[..., None] * S
    scale: Any = 1
    if terms.w is not None and m is not None:
        m, kept, scale = rescale(S, m, terms.w, terms.g)
        new = kept[..., None, None] * S
    if terms.a is not None:
        b = terms.k if terms.b is None else terms.b
        new = new + b[..., None] * read(S, terms.a)[..., None, :]
    new = new + (scale * terms.k)[..., None] * terms.v[..., None, :]
    y = read(new, terms.q) if read_before is None else read_before
    return MatrixMemory(new, m), y


def rescale(
    S: Array, m: Array, w: Array, g: Array | None
) -> tuple[Array, Array, Array]:
    """Return m after a step with w, and what the old state and k v^T count at it.

    While the state is zero its scale does not count. Where nothing is written, w being
    -inf, the old scale is kept.
    """
    log_new = w[..., 0]
    log_kept = m if g is None else m + log_decay(g)[..., 0]
    first = is_empty(S) & (log_new > -jnp.inf)
    new = jnp.where(first, log_new, jnp.maximum(log_kept, log_new))
    return new, bounded_exp(log_kept - new), jnp.exp(log_new - new)[..., None]


def is_empty(S: Float[Array, "*B N K V"]) -> Bool[Array, "*B N"]:
    """Whether the state of a head is zero."""
    return (S == 0).all((-2, -1))


def bounded_exp(x: Array) -> Array:
    """Return exp(x) for x <= 0. Where x is above 0, what it multiplies is zero."""
    return jnp.exp(jnp.minimum(x, jnp.zeros((), x.dtype)))


def read(S: Float[Array, "*B N K V"], q: Float[Array, "*B N K"]) -> Array:
    """Return ``S^T q`` of each head."""
    return jnp.einsum("...kv,...k->...v", S, q)


def rotate(x: Float[Array, "*B K"], angles: Float[Array, "... R"]) -> Array:
    """Rotate the channels (0, 1), (2, 3), ... of x by the angles; others stay."""
    turned = 2 * angles.shape[-1]
    first, second = x[..., 0:turned:2], x[..., 1:turned:2]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    pairs = [first * cos - second * sin, first * sin + second * cos]
    joined = jnp.stack(pairs, -1).reshape(*pairs[0].shape[:-1], turned)
    return jnp.concatenate([joined, x[..., turned:]], -1)


def rotate_keys(S: Float[Array, "*B N K V"], angles: Float[Array, "*B N R"]) -> Array:
    """Rotate the keys of a state, those of every value alike."""
    by_value = rotate(jnp.swapaxes(S, -1, -2), angles[..., None, :])
    return jnp.swapaxes(by_value, -1, -2)


def log_decay(g: Array) -> Array:
    """Return g, at least -1e4."""
    return jnp.maximum(g, jnp.asarray(LEAST_LOG_DECAY, g.dtype))


def spread_heads(terms: Terms, dtype: jnp.dtype) -> Terms:
    """Return the terms in ``dtype``, with as many heads as v has."""
    heads = terms.v.shape[-2]

    def spread(x):
        x = x.astype(dtype)
        if x.shape[-2] == heads:
            return x
        return jnp.repeat(x, heads // x.shape[-2], axis=-2)

    return map_terms(spread, terms)


def group_heads(terms: Terms, dtype: jnp.dtype) -> Terms:
    """Split the axis of heads in two: heads of q, and heads of v that share one.

    What all of them share has a second axis of size 1, so that it is computed once.
    """
    groups = terms.q.shape[-2]

    def group(x):
        shape = (*x.shape[:-2], groups, x.shape[-2] // groups, x.shape[-1])
        return x.astype(dtype).reshape(shape)

    return map_terms(group, terms)


def leave_out(terms: Terms, live: Bool[Array, "T *B"]) -> Terms:
    """Let the steps where ``live`` is False neither decay, erase nor write."""

    def put(x, instead):
        return jnp.where(expand_flags(live, x), x, jnp.asarray(instead, x.dtype))

    left_out = map_terms(lambda x: put(x, 0), terms)
    w = None if terms.w is None else put(terms.w, -jnp.inf)
    return left_out._replace(q=terms.q, w=w)


def join_micro_steps(terms: Terms, count: int) -> Terms:
    """Make steps of their own out of the micro steps of every step.

    k, v, a and b have an axis of ``count`` micro steps before that of the heads, and g
    may have it; without it, g decays before the first. q reads after the last.

    Args:
        terms: those of all steps, ``(T, *B, count, heads, ...)``.
        count: the number of micro steps in a step.

    Returns:
        The terms of ``T * count`` steps, ``(T count, *B, heads, ...)``.
    """
    rank = terms.k.ndim

    def at(x, place):
        """Put x at one micro step, and zero at the others."""
        widths = [(0, 0)] * x.ndim
        widths.insert(x.ndim - 2, (place, count - 1 - place))
        return jnp.pad(jnp.expand_dims(x, -3), widths)

    def join(x, place=0):
        x = at(x, place) if x.ndim < rank else x
        x = jnp.moveaxis(x, -3, 1)
        return x.reshape(x.shape[0] * count, *x.shape[2:])

    joined = map_terms(join, terms)
    return joined._replace(q=join(terms.q, count - 1))


def has_channel_decay(terms: Terms) -> bool:
    """Whether every channel of the keys has a decay of its own."""
    return terms.g is not None and terms.g.shape[-1] > 1
