"""The chunkwise form of the matrix memory: attention within a chunk of steps, the
recurrence between chunks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..core.cell import Carry, Params, expand_flags, select
from .slstm import bounded_exp


def walk_chunks(
    cell: Any,
    params: Params,
    carry: Carry,
    zs: Float[Array, "T *B G"],
    mask: Any,
    resets: Any,
    chunk: int,
    reverse: bool,
) -> tuple[Carry, Float[Array, "T *B H"]]:
    """As `MLSTM.walk_chunks` says. Time is turned round to be walked backwards, and
    held steps fill the last chunk.
    """
    steps, batch = zs.shape[0], zs.shape[1:-1]
    if steps == 0:
        return carry, jnp.zeros((0, *carry.h.shape), carry.h.dtype)
    chunk = min(chunk, steps)
    count = -(-steps // chunk)
    held = count * chunk - steps
    initial = cell.initial_carry(params, batch) if resets is not None else None
    if held and mask is None:
        mask = jnp.ones((steps, *batch), bool)
    bad, spoiled = _spoiled(zs, resets, reverse)
    zs = jnp.where(bad[..., None], 0, zs)

    def cut(leaf):
        if leaf is None:
            return None
        leaf = jnp.flip(leaf, 0) if reverse else leaf
        leaf = jnp.concatenate([leaf, jnp.zeros((held, *leaf.shape[1:]), leaf.dtype)])
        return leaf.reshape(count, chunk, *leaf.shape[1:])

    def one(memory, part):
        return _chunk(cell, memory, initial, *part)

    parts = (cut(zs), cut(mask), cut(resets))
    (C, n, m), hs = jax.lax.scan(
        jax.checkpoint(one, prevent_cse=False), (carry.C, carry.n, carry.m), parts
    )
    hs = hs.reshape(count * chunk, *hs.shape[2:])[:steps].astype(carry.h.dtype)
    hs = jnp.flip(hs, 0) if reverse else hs
    hs = jnp.where(spoiled[..., None], jnp.nan, hs)
    C, n, m = (
        jnp.where(expand_flags(spoiled[0 if reverse else -1], leaf), jnp.nan, leaf)
        for leaf in (C, n, m)
    )
    return carry._replace(
        h=_last_shown(carry.h, hs, mask, resets, initial, reverse), C=C, n=n, m=m
    ), hs


def _spoiled(
    zs: Float[Array, "T *B G"], resets: Any, reverse: bool
) -> tuple[Bool[Array, "T *B"], Bool[Array, "T *B"]]:
    """Which steps hold something that is not finite, and which come after such a step,
    up to a reset. Sums over a chunk would carry it to steps before, and across resets.
    """
    bad = ~jnp.isfinite(zs).all(-1)

    def last(flags):
        return jax.lax.cummax(_places(flags, reverse), axis=0, reverse=reverse)

    at = last(bad)
    return bad, (at > 0) if resets is None else (at > 0) & (at >= last(resets))


def _places(flags: Bool[Array, "T *B"], reverse: bool) -> Int[Array, "T *B"]:
    """Where a flag is set, the step's place in the order of walking, from 1;
    elsewhere 0.
    """
    steps = jnp.arange(1, len(flags) + 1, dtype=jnp.int32)
    return jnp.where(
        flags, expand_flags(jnp.flip(steps) if reverse else steps, flags), 0
    )


def _chunk(
    cell: Any, memory: Any, initial: Any, z: Array, mask: Any, resets: Any
) -> tuple[Any, Array]:
    """C, n and m after a chunk, and h after every step of it. Letters: t and s
    steps, N heads, k and v features.
    """
    C, n, first = memory
    now = cell.steps(z if mask is None else jnp.where(expand_flags(mask, z), z, 0))
    i, f = (jnp.moveaxis(gate, 0, -1) for gate in (now.i, now.f))  # (*B, N, t)
    if mask is not None:  # what is masked keeps all and adds nothing
        keep = jnp.moveaxis(mask, 0, -1)[..., None, :]
        i, f = jnp.where(keep, i, -jnp.inf), jnp.where(keep, f, 0)
    late = None
    if (
        resets is not None
    ):  # how many lie in the chunk up to and with each step, (*B, 1, t)
        late = jnp.moveaxis(jnp.cumsum(resets, 0, dtype=jnp.int32), 0, -1)[..., None, :]

    def read_by_queries(C, n):
        return jnp.einsum("t...k,...kv->...tv", now.q, C), jnp.einsum(
            "t...k,...k->...t", now.q, n
        )

    fresh = memory if initial is None else (initial.C, initial.n, initial.m)
    since, between = _log_decays(f, late)
    old, new = (
        since + _entering(late, first[..., None], fresh[2][..., None]),
        between + i[..., None, :],
    )  # L_t and L_ts
    empty = _entering(
        late, (n == 0).all(-1)[..., None], (fresh[1] == 0).all(-1)[..., None]
    )
    m = new.max(-1)
    m = jnp.where(empty & (m > -jnp.inf), m, jnp.maximum(old, m))
    old, new = bounded_exp(old - m), jnp.exp(new - m[..., None])

    scores = new * jnp.einsum("t...k,s...k->...ts", now.q, now.k)
    before = read_by_queries(C, n)
    if late is not None:
        before = tuple(
            _entering(late, *pair)
            for pair in zip(before, read_by_queries(*fresh[:2]), strict=True)
        )
    read = old[..., None] * before[0] + jnp.einsum("...ts,s...v->...tv", scores, now.v)
    weight = old * before[1] + scores.sum(-1)
    shown = cell.shown(
        jnp.moveaxis(read, -2, 0), jnp.moveaxis(weight, -1, 0), jnp.moveaxis(m, -1, 0)
    )

    if late is not None:
        C, n = (
            _entering(late[..., -1], C, fresh[0]),
            _entering(late[..., -1], n, fresh[1]),
        )
    kept, added = old[..., -1], new[..., -1, :]
    C = kept[..., None, None] * C + jnp.einsum(
        "...s,s...k,s...v->...kv", added, now.k, now.v
    )
    n = kept[..., None] * n + jnp.einsum("...s,s...k->...k", added, now.k)
    return (C, n, m[..., -1]), now.o * shown


def _entering(late: Any, of_chunk: Array, of_reset: Array) -> Array:
    """What the last reset brought in, or what the chunk began with where none came,
    (*B, N, t, ...).
    """
    return (
        of_chunk
        if late is None
        else jnp.where(expand_flags(late, of_chunk) > 0, of_reset, of_chunk)
    )


def _log_decays(
    f: Float[Array, "*B N t"], late: Any
) -> tuple[Float[Array, "*B N t"], Float[Array, "*B N t s"]]:
    """Sums of log F: from the chunk's beginning, or the last reset, with step t; and
    behind step s with step t, -inf where s is not before t or a reset lies between.
    Each is a sum of its own, for a difference of two long ones loses its digits.
    """
    place = np.arange(f.shape[-1]).reshape((1,) * (f.ndim - 1) + f.shape[-1:])
    together = (
        place[..., :, None] >= place[..., None, :]
    )  # s is t or before it, and no reset in between
    later = jnp.where(place[..., :, None] > place[..., None, :], f[..., :, None], 0)
    if late is not None:
        together = together & (late[..., :, None] == late[..., None, :])
    between = jnp.where(together, jnp.cumsum(later, axis=-2), -jnp.inf)
    if late is None:
        return jnp.cumsum(f, -1), between
    return jnp.where(together, f[..., None, :], 0).sum(-1), between


def _last_shown(
    h: Array, hs: Array, mask: Any, resets: Any, initial: Carry, reverse: bool
) -> Array:
    """h of the last step walked that was not masked, or the initial one after a
    later reset, or the one before all steps.
    """
    steps = hs.shape[0]
    if mask is None:
        return hs[0 if reverse else -1]

    at = _places(mask, reverse).max(0)
    place = jnp.clip(steps - at if reverse else at - 1, 0, steps - 1)
    shown = jnp.take_along_axis(hs, place[None, ..., None], axis=0)[0]
    if resets is not None:
        fresh = _places(resets, reverse).max(0)
        h = select(fresh > 0, initial.h, h)
        return select((at > 0) & (at >= fresh), shown, h)
    return select(at > 0, shown, h)
