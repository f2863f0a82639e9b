"""The chunkwise form of the mLSTM: attention within a chunk, recurrence between chunks.

The step of `MLSTM` is linear in the memory C and the normalizer n, and its gates depend
on the inputs alone. So the effect of step s on a later step t is known before either is
taken: it is the product of the forget gates between them times the input gate of s. A
chunk of consecutive steps is therefore computed at once as attention with decaying
weights, and only C, n and m pass from chunk to chunk.

Dimensions:

    T       steps of the sequence; t and s are steps of one chunk
    *B      batch axes
    N       heads
    k, v    features of a key (d_k) and of a value (d_v)
    G       columns of the packed kernel

Variables of a chunk, with the letters of the mLSTM paper (Beck et al. 2024) and of TFLA
(Beck et al. 2025); F is the forget gate, i the logarithm of the input gate:

    q, k, v          queries, keys, values                            (t, *B, N, k or v)
    C, n, m_0        memory, normalizer, stabilizer before the chunk
    b_t              log F_1 + ... + log F_t, the decay since the chunk began (*B, N, t)
    log_D_ts         log F_{s+1} + ... + log F_t + i_s; -inf for s > t     (*B, N, t, s)
    log_inter_t      b_t + m_0, the weight of the memory before the chunk     (*B, N, t)
    m_t              max(log_inter_t, max_s log_D_ts), the stabilizer         (*B, N, t)
    D, inter         exp(log_D - m), exp(log_inter - m)
    S_ts             D_ts (q_t . k_s), the attention weights               (*B, N, t, s)
    numerator_t      C_t^T q_t = inter_t C^T q_t + sum_s S_ts v_s          (*B, N, t, v)
    denominator_t    n_t^T q_t = inter_t n^T q_t + sum_s S_ts                 (*B, N, t)
    g, a_s           inter and D_s at the last step: the decay of the memory over the
                     chunk, and the weight of step s in the memory after it

A reset before step r makes the memory that steps from r on see the initial one: b_t is
then summed from r, log_D_ts is -inf for s < r <= t, and C, n, m_0 are the initial ones.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..core.flags import expand_flags, select
from ..core.types import Carry, Params
from .slstm import bounded_exp


def walk_chunks(
    cell: Any,
    params: Params,
    carry: Carry,
    zs: Float[Array, "T *B G"],
    mask: Bool[Array, "T *B"] | None,
    resets: Bool[Array, "T *B"] | None,
    chunk: int,
    reverse: bool,
) -> tuple[Carry, Float[Array, "T *B H"]]:
    """Apply an mLSTM over a sequence, chunk by chunk; see `MLSTM.walk_chunks`."""
    steps, batch = zs.shape[0], zs.shape[1:-1]
    if steps == 0:
        return carry, jnp.zeros((0, *carry.h.shape), carry.h.dtype)
    # For `reverse`, time is flipped; the last chunk is padded with masked steps.
    chunk = min(chunk, steps)
    count = -(-steps // chunk)
    padding = count * chunk - steps
    initial = cell.initial_carry(params, batch) if resets is not None else None
    if padding and mask is None:
        mask = jnp.ones((steps, *batch), bool)
    bad, spoiled = _spoiled(zs, resets, reverse)
    zs = jnp.where(bad[..., None], 0, zs)

    def split_into_chunks(leaf):
        if leaf is None:
            return None
        leaf = jnp.flip(leaf, 0) if reverse else leaf
        zeros = jnp.zeros((padding, *leaf.shape[1:]), leaf.dtype)
        leaf = jnp.concatenate([leaf, zeros])
        return leaf.reshape(count, chunk, *leaf.shape[1:])

    def body(memory, chunk_inputs):
        return _chunk(cell, memory, initial, *chunk_inputs)

    # jax.checkpoint: the (t, s) arrays of a chunk are recomputed for its gradient, so
    # that only the memory between chunks is saved.
    chunks = (split_into_chunks(zs), split_into_chunks(mask), split_into_chunks(resets))
    (C, n, m), hs = jax.lax.scan(
        jax.checkpoint(body, prevent_cse=False), (carry.C, carry.n, carry.m), chunks
    )
    hs = hs.reshape(count * chunk, *hs.shape[2:])[:steps].astype(carry.h.dtype)
    hs = jnp.flip(hs, 0) if reverse else hs
    hs = jnp.where(spoiled[..., None], jnp.nan, hs)
    C, n, m = (
        jnp.where(expand_flags(spoiled[0 if reverse else -1], leaf), jnp.nan, leaf)
        for leaf in (C, n, m)
    )
    h = _last_shown(carry.h, hs, mask, resets, initial, reverse)
    return carry._replace(h=h, C=C, n=n, m=m), hs


def _spoiled(
    zs: Float[Array, "T *B G"], resets: Bool[Array, "T *B"] | None, reverse: bool
) -> tuple[Bool[Array, "T *B"], Bool[Array, "T *B"]]:
    """Find the steps whose inputs are not finite, and those that they make NaN.

    The second are the steps from such an input to the next reset. The sums over a chunk
    would instead spread a NaN to earlier steps and across resets, so `walk_chunks`
    replaces the inputs by zero and writes the NaNs itself.
    """
    bad = ~jnp.isfinite(zs).all(-1)

    def latest(flags):  # number of the latest flagged step up to each step, or 0
        return jax.lax.cummax(_places(flags, reverse), axis=0, reverse=reverse)

    latest_bad = latest(bad)
    if resets is None:
        return bad, latest_bad > 0
    return bad, (latest_bad > 0) & (latest_bad >= latest(resets))


def _places(flags: Bool[Array, "T *B"], reverse: bool) -> Int[Array, "T *B"]:
    """Number the flagged steps by their order of computation, from 1; others get 0."""
    numbers = jnp.arange(1, len(flags) + 1, dtype=jnp.int32)
    numbers = jnp.flip(numbers) if reverse else numbers
    return jnp.where(flags, expand_flags(numbers, flags), 0)


def _chunk(
    cell: Any,
    memory: tuple[Array, Array, Array],
    initial: Carry,
    z: Array,
    mask: Array | None,
    resets: Array | None,
) -> tuple[tuple[Array, Array, Array], Array]:
    """Compute one chunk; variables as in the module's docstring.

    Args:
        cell: the `MLSTM`.
        memory: ``(C, n, m_0)`` before the chunk.
        initial: the carry that resets bring in, or None without resets.
        z: projected inputs ``(t, *B, G)``.
        mask, resets: ``(t, *B)``, or None.

    Returns:
        ``(C, n, m)`` after the chunk, and h after each of its steps, ``(t, *B, H)``.
    """
    C, n, m_0 = memory
    q, k, v, o, i, log_F = cell.steps(
        z if mask is None else jnp.where(expand_flags(mask, z), z, 0)
    )
    i, log_F = (jnp.moveaxis(gate, 0, -1) for gate in (i, log_F))  # (*B, N, t)
    if mask is not None:  # a masked step adds nothing (log I = -inf) and keeps all
        is_valid = jnp.moveaxis(mask, 0, -1)[..., None, :]
        i, log_F = jnp.where(is_valid, i, -jnp.inf), jnp.where(is_valid, log_F, 0)
    reset_count = None  # resets from the chunk's beginning up to step t, (*B, 1, t)
    if resets is not None:
        reset_count = jnp.cumsum(resets, 0, dtype=jnp.int32)
        reset_count = jnp.moveaxis(reset_count, 0, -1)[..., None, :]
    C_reset, n_reset, m_reset = (
        memory if initial is None else (initial.C, initial.n, initial.m)
    )

    # The weights. `is_empty` marks the steps whose memory before the chunk (or after
    # the last reset) holds nothing; as in `MLSTM.step`, its m does not count then.
    b, log_decay = _log_decays(log_F, reset_count)
    log_inter = b + _entering(reset_count, m_0[..., None], m_reset[..., None])
    log_D = log_decay + i[..., None, :]
    is_empty = _entering(
        reset_count, (n == 0).all(-1)[..., None], (n_reset == 0).all(-1)[..., None]
    )
    m = log_D.max(-1)
    m = jnp.where(is_empty & (m > -jnp.inf), m, jnp.maximum(log_inter, m))
    inter, D = bounded_exp(log_inter - m), jnp.exp(log_D - m[..., None])

    # The outputs: what the queries read from the memory before the chunk, and from the
    # keys and values of the chunk.
    def read_memory(C, n):
        return jnp.einsum("t...k,...kv->...tv", q, C), jnp.einsum(
            "t...k,...k->...t", q, n
        )

    S = D * jnp.einsum("t...k,s...k->...ts", q, k)
    C_q, n_q = read_memory(C, n)
    if reset_count is not None:
        C_q_reset, n_q_reset = read_memory(C_reset, n_reset)
        C_q = _entering(reset_count, C_q, C_q_reset)
        n_q = _entering(reset_count, n_q, n_q_reset)
    numerator = inter[..., None] * C_q + jnp.einsum("...ts,s...v->...tv", S, v)
    denominator = inter * n_q + S.sum(-1)
    h = o * cell.shown(
        jnp.moveaxis(numerator, -2, 0),
        jnp.moveaxis(denominator, -1, 0),
        jnp.moveaxis(m, -1, 0),
    )

    # The memory after the chunk: that before it decayed by g, plus the chunk's keys and
    # values weighted by a.
    if reset_count is not None:
        C = _entering(reset_count[..., -1], C, C_reset)
        n = _entering(reset_count[..., -1], n, n_reset)
    g, a = inter[..., -1], D[..., -1, :]
    C = g[..., None, None] * C + jnp.einsum("...s,s...k,s...v->...kv", a, k, v)
    n = g[..., None] * n + jnp.einsum("...s,s...k->...k", a, k)
    return (C, n, m[..., -1]), h


def _entering(reset_count: Array | None, of_chunk: Array, of_reset: Array) -> Array:
    """Select ``of_reset`` at steps after a reset in the chunk, else ``of_chunk``."""
    if reset_count is None:
        return of_chunk
    return jnp.where(expand_flags(reset_count, of_chunk) > 0, of_reset, of_chunk)


def _log_decays(
    log_F: Float[Array, "*B N t"], reset_count: Array | None
) -> tuple[Float[Array, "*B N t"], Float[Array, "*B N t s"]]:
    """Sum the logarithms of the forget gates.

    Each sum is computed by itself: the difference of two long cumulative sums, b_t -
    b_s, would lose the digits of a short one.

    Args:
        log_F: log F of each step.
        reset_count: the number of resets up to each step ``(*B, 1, t)``, or None.

    Returns:
        b_t, the sum since the chunk began or was last reset, step t included; and
        ``log F_{s+1} + ... + log F_t``, which is -inf where s > t or where a reset lies
        between them.
    """
    place = np.arange(log_F.shape[-1]).reshape((1,) * (log_F.ndim - 1) + (-1,))
    t, s = place[..., :, None], place[..., None, :]
    sees = t >= s  # s <= t, and below also: no reset in (s, t]
    # Column s holds log F_t for t > s; its cumulative sum over t is the decay since s.
    after_s = jnp.where(t > s, log_F[..., :, None], 0)
    if reset_count is not None:
        sees = sees & (reset_count[..., :, None] == reset_count[..., None, :])
    log_decay = jnp.where(sees, jnp.cumsum(after_s, axis=-2), -jnp.inf)
    if reset_count is None:
        return jnp.cumsum(log_F, -1), log_decay
    return jnp.where(sees, log_F[..., None, :], 0).sum(-1), log_decay


def _last_shown(
    h: Array,
    hs: Array,
    mask: Array | None,
    resets: Array | None,
    initial: Carry,
    reverse: bool,
) -> Array:
    """Return h of the last carry.

    It is the h of the last step computed that is not masked; or that of the initial
    carry if a reset came later; or, if there is neither, the one before all steps.
    """
    steps = hs.shape[0]
    if mask is None:
        return hs[0 if reverse else -1]

    latest_valid = _places(mask, reverse).max(0)
    index = jnp.clip(
        steps - latest_valid if reverse else latest_valid - 1, 0, steps - 1
    )
    last_h = jnp.take_along_axis(hs, index[None, ..., None], axis=0)[0]
    if resets is not None:
        latest_reset = _places(resets, reverse).max(0)
        h = select(latest_reset > 0, initial.h, h)
        return select((latest_valid > 0) & (latest_valid >= latest_reset), last_h, h)
    return select(latest_valid > 0, last_h, h)
