"""flax's own scan, for cells that draw random numbers or keep variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from ..core.types import Carry


def scan_cell(
    cell: nnx.Module,
    *,
    state_axes: Mapping[Any, Any] | None,
    broadcast_rngs: Any,
    unroll: int,
) -> Callable[[Callable, Carry, Any], tuple[Carry, Any]]:
    """Return a loop that scans a cell as ``nnx.RNN`` does, and updates its variables.

    Args:
        cell: the cell.
        state_axes: where each kind of variable goes, as for ``nnx.scan``: an int is an
            axis over time, ``nnx.Carry`` hands it from step to step, None gives every
            step the same. The default hands all of them from step to step.
        broadcast_rngs: a filter of the key streams from which all steps of a call draw
            the same numbers; a call advances each of them by one.
        unroll: the steps per iteration.

    Returns:
        ``loop(step, carry, inputs) -> (carry, outputs)``, with time first.
    """
    shared = nnx.All(nnx.RngState, broadcast_rngs)
    axes = nnx.StateAxes({shared: None, **(state_axes or {...: nnx.Carry})})

    def loop(step: Callable, carry: Carry, inputs: Any) -> tuple[Carry, Any]:
        scanned = nnx.compat.scan(
            in_axes=(axes, nnx.Carry, 0), out_axes=(nnx.Carry, 0), unroll=unroll
        )(step)
        # One split makes new keys for every call.
        split = nnx.split_rngs(splits=1, only=broadcast_rngs, squeeze=True)
        return split(scanned)(cell, carry, inputs)

    return loop
