"""The sequential engine for little memory: chunks that are recomputed backwards."""

from __future__ import annotations

import dataclasses

from ..core.cell import Cell
from ..core.types import Size
from ..core.validation import check_auto
from .engine import LoopEngine
from .loops.kinds import Sequential
from .recurrence.heuristics import AUTO, STARTS, choose_segment
from .recurrence.schedule import LoopSchedule


@dataclasses.dataclass(frozen=True)
class Checkpoint(LoopEngine):
    """Save only the carries at chunk starts for the backward pass.

    What happens inside a chunk is recomputed when its gradient is wanted: one more
    forward pass, for memory that grows with ``T / chunk + chunk`` steps instead of T
    (Gruslys et al. 2016, arXiv:1606.03401, with one level). Values are those of
    `Scan`; gradients are equal up to rounding.

    Args:
        chunk: steps between two saved carries, a segment of Gruslys et al. ``"auto"``
            is near ``sqrt(T) / 2``, see `jaxrnn.engines.recurrence.heuristics`; None
            is all of T. A divisor of T saves a copy of the inputs.

    Raises:
        ValueError: for a chunk that is not a size.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.LSTM(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> engine = jaxrnn.Checkpoint(chunk=16)
        >>> _, ys = jaxrnn.unroll(cell, params, jnp.ones((1000, 3)), engine=engine)
        >>> ys.shape
        (1000, 4)
    """

    chunk: int | str | None = AUTO

    def __post_init__(self):
        check_auto(self, chunk=self.chunk)

    def schedule(self, cell: Cell, length: Size) -> LoopSchedule:
        chunk = choose_segment(length) if self.chunk == AUTO else self.chunk or length
        return LoopSchedule(Sequential(), min(int(chunk), max(length, 1)), save=STARTS)
