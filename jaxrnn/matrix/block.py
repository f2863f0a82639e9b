"""Several chunks of a sequence on a matrix state, prepared side by side."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .chunk import Chunk, grouped_heads, next_state, prepare_chunk, read_chunk
from .terms import Terms
from .turn import without_turns

BLOCK_BYTES = 64_000_000  # what the chunks of a block are prepared in


def chunks_in_block(count: int, size: int, S: Array) -> int:
    """Choose how many of ``count`` chunks of ``size`` steps are prepared together.

    More of them are more independent work at a time, and fewer states that are kept;
    fewer take less memory. Blocks are equally long, but for the last.
    """
    *batch, keys, values = S.shape
    row = 3 * size + 3 * keys + 2 * values
    states = 3 * keys * values
    each = math.prod(batch) * (size * row + states) * S.dtype.itemsize
    most = max(1, BLOCK_BYTES // max(each, 1))
    return -(-count // -(-count // most))


def run_block(
    S: Float[Array, "*B N K V"],
    initial: Float[Array, "*B N K V"] | None,
    given: tuple[Terms, Int[Array, "G T *B"] | None],
    reads: str,
) -> tuple[Array, Float[Array, "G T *B N V"]]:
    """Compute some chunks, one after another but for what can be prepared.

    Args:
        S: the state before the first chunk.
        initial: the state that a reset brings in; None if it is zero.
        given: the terms of the chunks, ``(G, C, *B, heads, ...)``, and the number of
            resets in a chunk up to each step, or None.
        reads: ``"after"`` or ``"before"``.

    Returns:
        The state after the last chunk, and what every step reads.
    """

    def prepare(given: tuple[Terms, Any]) -> Chunk:
        terms, segment = given
        if terms.turn is None:
            return prepare_chunk(initial, terms, segment, reads, S.dtype)
        terms, angles = without_turns(terms, segment)
        chunk = prepare_chunk(initial, terms, segment, reads, S.dtype)
        times = S.shape[-3] // angles.shape[-2]
        angles = jnp.repeat(angles.astype(S.dtype), times, axis=-2)
        return chunk._replace(turn=grouped_heads(angles, -2, terms.q.shape[-2]))

    chunks = jax.vmap(prepare)(given)
    shape, groups = S.shape, chunks.reading.shape[-4]

    def advance(S, chunk):
        after, W = next_state(S, chunk)
        return after, (S, W)

    last, (before, W) = jax.lax.scan(advance, grouped_heads(S, -3, groups), chunks)
    y = read_chunk(before, W, chunks)
    y = jnp.moveaxis(y, -2, 1).reshape(
        y.shape[0], y.shape[-2], *shape[:-2], y.shape[-1]
    )
    return last.reshape(shape), y
