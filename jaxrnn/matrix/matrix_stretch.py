"""The map of a stretch of steps on a matrix state, computed chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from ..core.types import PyTree
from .chunkwise import run_chunkwise, spoiled_steps
from .stretch import Ends, MatrixStretch
from .terms import (
    MatrixMemory,
    Terms,
    join_micro_steps,
    leave_out,
    log_decay,
)


class Flagged(NamedTuple):
    """What is known of the steps of a stretch.

    Attributes:
        live: ``(T, *B)``, False where the state is held.
        bad: ``(T, *B)``, True where the inputs are not finite; they are not live.
        resets: ``(T, *B)``, or None.
    """

    live: Bool[Array, "T *B"]
    bad: Bool[Array, "T *B"]
    resets: Bool[Array, "T *B"] | None


def stretch_of_terms(
    terms_of: Callable[[PyTree], Terms],
    memory: MatrixMemory,
    initial: MatrixMemory | None,
    given: PyTree,
    steps: Flagged,
    *,
    micro_steps: int,
    reverse: bool,
) -> MatrixStretch:
    """Compute the map of a stretch.

    Args:
        terms_of: returns the terms of steps from ``given``, with any leading axes.
        memory: a state, for its shape.
        initial: the state that a reset brings in; None if it is zero.
        given: what ``terms_of`` takes, of all steps.
        steps: which steps count.
        micro_steps: the number of micro steps in a step.
        reverse: whether to run from the last step to the first.
    """
    shapes = jax.eval_shape(terms_of, jax.tree.map(lambda leaf: leaf[:1], given))
    erases = shapes.a is not None
    nothing = jax.tree.map(jnp.zeros_like, memory)
    keys, values = memory.S.shape[-2:]

    def erasing_terms(given):
        """Return terms that write nothing to ``d_k`` more columns of the state."""
        terms = terms_of(given)
        return terms._replace(v=_wider(terms.v, keys))

    if erases:
        eye = jnp.broadcast_to(
            jnp.eye(keys, dtype=memory.S.dtype), (*memory.S.shape[:-1], keys)
        )
        nothing = MatrixMemory(jnp.concatenate([nothing.S, eye], -1))
        initial = None if initial is None else MatrixMemory(_wider(initial.S, keys))
    last, (_, bad_terms) = run_chunkwise(
        erasing_terms if erases else terms_of,
        lambda y, m, given: (),
        nothing,
        initial,
        given,
        steps.live,
        steps.resets,
        chunk=None,
        reverse=reverse,
        micro_steps=micro_steps,
    )
    bad = steps.bad | bad_terms
    cut = jnp.zeros(steps.live.shape[1:], bool)
    cut = cut if steps.resets is None else steps.resets.any(0)
    ends = Ends(cut, spoiled_steps(bad, steps.resets, reverse)[0 if reverse else -1])
    if erases:
        S, factor = last.S[..., :values], last.S[..., values:]
        return MatrixStretch(MatrixMemory(S), ends, factor=factor)
    terms = leave_out(terms_of(given), steps.live & ~bad_terms)
    if micro_steps > 1:
        terms = join_micro_steps(terms, micro_steps)
    g = None if terms.g is None else _summed(log_decay(terms.g), memory.S)
    turn = None if terms.turn is None else _summed(terms.turn, memory.S)
    return MatrixStretch(last, ends, g, turn)


def _wider(x: Array, columns: int) -> Array:
    """Add columns of zeros."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, columns)])


def _summed(x: Array, S: Array) -> Any:
    """Return the sum over all steps, with as many heads as the state."""
    total = x.astype(S.dtype).sum(0)
    return jnp.repeat(total, S.shape[-3] // total.shape[-2], axis=-2)
