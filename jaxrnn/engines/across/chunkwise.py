"""Cells with a matrix state, or a large one, whose time is split over devices.

The devices exchange one map of their state a stretch, see `jaxrnn.matrix.stretch`.
Derivatives are JAX's: the map is computed again for its own, from inputs alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ...core.engine import AbstractEngine
from ...core.flags import select
from ...core.lagged_stretch import recent_before
from ...core.time_split import TimeSplit
from ...core.types import Carry, Params
from ...matrix.looking_back import LookingBack
from ...matrix.stretch import Entering
from ..recurrence.run import Sequence


def run_chunkwise(
    split: TimeSplit,
    engine: AbstractEngine,
    cell: LookingBack,
    params: Params,
    carry: Carry,
    sequence: Sequence,
    reverse: bool,
) -> tuple[Carry, Carry]:
    """Run a cell over this device's stretch of time.

    Args:
        split: the axis over which time is split.
        engine: the engine that runs the steps of a stretch.
        cell: a `jaxrnn.MatrixCell` or `jaxrnn.extending.StateSpaceCell`.
        params: its parameters.
        carry: the carry before the first step of all.
        sequence: inputs, mask and resets of this device's steps.
        reverse: whether the steps run from the last to the first.

    Returns:
        The carry after the last step of all, on every device, and what the engine
        knows of the carries after every step of this device.
    """
    xs, mask, resets = sequence
    state, recent = cell.parts(carry)
    if recent is not None:
        remembered = cell.remembered(params, cell.project(params, xs))
        recent = recent_before(split, recent, remembered, mask, resets, reverse)

    @jax.checkpoint
    def stretch_of(params, carry, sequence):
        xs, mask, resets = sequence
        zs = cell.project(params, xs)
        return cell.stretch(params, carry, zs, mask, resets, reverse)

    stretch = stretch_of(params, cell.with_parts(carry, state, recent), sequence)
    kind = type(stretch)
    entering = Entering(state, jnp.zeros_like(stretch.ends.spoiled))
    entering = split.carry_before(stretch, entering, kind.then, kind.after, reverse)
    nan = jax.tree.map(lambda s: jnp.full_like(s, jnp.nan), entering.state)
    state = select(entering.spoiled, nan, entering.state)
    last, carries = engine.run(
        cell, params, cell.with_parts(carry, state, recent), *sequence, reverse
    )
    return _last_of_all(split, last, sequence, reverse), carries


def _last_of_all(
    split: TimeSplit, last: Any, sequence: Sequence, reverse: bool
) -> Carry:
    """Return the carry after the last step of all, from those of every stretch.

    h is that of the last stretch with a valid step, or a reset, in a row. The h before
    the first step of all, which others have been given too, counts on the first device.
    """
    _, mask, resets = sequence
    rank = split.rank(reverse)
    at_end = rank == split.size - 1
    kept = split.kept(at_end, last)
    if mask is not None:
        happened = mask.any(0) | (rank == 0)
        if resets is not None:
            happened = happened | resets.any(0)
        latest = split.latest(happened, reverse)
        kept = kept._replace(h=split.kept(latest, last.h))
    return split.sum(kept)
