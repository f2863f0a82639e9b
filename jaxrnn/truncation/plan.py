"""The windows of a sequence for `TBPTT`, and the arrays that they are sliced from."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.flags import expand_flags
from ..core.types import PyTree


def window_masks(k1: int, steps: int) -> tuple[Array, ...]:
    """Return the index, start, number of new steps and advance of every window.

    Windows are slices of k2 rows of a padded array whose first k2 - k1 rows are the
    history, so that row r is step ``r - (k2 - k1)`` of the sequence. The window that
    ends before step e has the steps e - k2, ..., e - 1, hence it starts at row e - k1.
    The last window reaches back k2 steps from T, however few of its steps are new.

    Args:
        k1: the number of new steps of a window, fewer in the last one.
        steps: T.

    Returns:
        Four integer arrays with one entry for each window: its index; the row where it
        starts; the number of its new steps; and its advance, the number of rows from
        its start to that of the next window. The last advance is to the first window of
        the sequence's continuation.
    """
    length = max(steps, k1)  # a shorter sequence is padded to one window
    ends = [min(e, length) for e in range(k1, length + k1, k1)]
    new_steps = [end - start for start, end in itertools.pairwise([0, *ends])]
    # Start e - k1 moves by as much as e does. The continuation's first window starts at
    # row T of this array, k1 rows on (or T, where there was only the short window).
    advances = [*new_steps[1:], min(steps, k1)]
    starts = [end - k1 for end in ends]
    columns = ([*range(len(ends))], starts, new_steps, advances)
    return tuple(jnp.asarray(column) for column in columns)


def pad_sequence(sequence: PyTree, steps: int, batch: tuple[int, ...]) -> Any:
    """Fill in the mask and resets, and zero the inputs and targets that are masked.

    Args:
        sequence: a `Window` with T steps.
        steps: T.
        batch: the batch axes ``*B``.

    Returns:
        The sequence without a key.
    """
    sequence = sequence._replace(key=None)
    if sequence.resets is None:
        sequence = sequence._replace(resets=jnp.zeros((steps, *batch), bool))
    if sequence.mask is None:
        return sequence._replace(mask=jnp.ones((steps, *batch), bool))
    # Masked values may be NaN, and 0 * NaN is NaN in a gradient as well.
    clean = jax.tree.map(
        lambda a: jnp.where(expand_flags(sequence.mask, a), a, jnp.zeros_like(a)),
        (sequence.inputs, sequence.targets),
    )
    return sequence._replace(inputs=clean[0], targets=clean[1])
