"""The windows of a sequence for `TBPTT`: where each begins and ends, and the arrays
that they are cut from.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core.cell import expand_flags


def window_masks(k1: int, steps: int) -> tuple[Array, ...]:
    """Per window: its index; the row where it starts, counted from k2 - k1 steps before
    the sequence; how many of its steps are new; and how far ahead the next window
    starts. The last one reaches back k2 steps from T, however few are new.
    """
    length = max(steps, k1)
    ends = [min(e, length) for e in range(k1, length + k1, k1)]
    newest = [end - before for before, end in itertools.pairwise([0, *ends])]
    ahead = [*newest[1:], min(steps, k1)]
    return tuple(
        jnp.asarray(each)
        for each in ([*range(len(ends))], [end - k1 for end in ends], newest, ahead)
    )


def pad_sequence(sequence: Any, steps: int, batch: tuple[int, ...]) -> Any:
    """``sequence`` with a mask and resets, and inputs and targets that are finite
    where masked.
    """
    sequence = sequence._replace(key=None)
    if sequence.resets is None:
        sequence = sequence._replace(resets=jnp.zeros((steps, *batch), bool))
    if sequence.mask is None:
        return sequence._replace(mask=jnp.ones((steps, *batch), bool))
    # What is masked may be NaN, and 0 * NaN is NaN in a gradient too.
    clean = jax.tree.map(
        lambda a: jnp.where(expand_flags(sequence.mask, a), a, jnp.zeros_like(a)),
        (sequence.inputs, sequence.targets),
    )
    return sequence._replace(inputs=clean[0], targets=clean[1])
