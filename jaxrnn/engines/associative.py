"""Time in parallel, for cells whose recurrence is linear in the state."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..core.cell import (
    AbstractWrappedCell,
    Cell,
    LinearCell,
    is_chunkwise,
    is_linear,
)
from ..core.validation import check_auto
from .engine import LoopEngine
from .loops.kinds import Chunkwise, ParallelPrefix
from .recurrence.heuristics import AUTO, CARRIES
from .recurrence.schedule import LoopSchedule

CHUNK = 32  # of a cell that walks chunks by itself, whose work grows by its square


@dataclasses.dataclass(frozen=True)
class Associative(LoopEngine):
    """Walk a `LinearCell` by parallel prefixes: O(log T) depth, for about twice the
    arithmetic of `Scan` (Blelloch 1990).

    For accelerators, where a loop's step costs a kernel launch; on a CPU `Scan` is
    faster at most sizes measured. Values and gradients are those of `Scan` to rounding,
    as long as the product of the factors of a chunk is finite, which |a| <= 1 makes
    sure (all built-in cells begin there). The gradient is one linear recurrence
    backwards, walked in the same way; what is kept for it are the states, and the
    factors are made again.

    A cell whose steps join in another way brings ``walk_chunks``, as `MLSTM` does:
    chunks of steps as matrix products. Its carry is then known at chunk ends only, so
    ``unroll(..., return_carries=True)`` is refused. A subclass with a ``step`` or an
    ``output`` of its own needs its own ``walk_chunks``.

    Args:
        chunk: steps walked in parallel at a time, one chunk after another: less memory,
            more depth. One longer than T is all of T; None: chosen for the platform,
            see `jaxrnn.engines.recurrence.heuristics`, and 32 for a cell with
            ``walk_chunks``.

    Raises:
        TypeError: for a cell that is not linear in its state.
        ValueError: for a chunk that is no size, or arrays that only JAX's own loop can
            walk.
    """

    chunk: int | str | None = AUTO

    def __post_init__(self):
        check_auto(self, chunk=self.chunk)

    def schedule(self, cell: Cell, length: Any) -> LoopSchedule:
        if is_chunkwise(cell):
            chunk = CHUNK if self.chunk == AUTO else self.chunk or max(length, 1)
            return LoopSchedule(Chunkwise(), chunk, CARRIES, hoist=True)
        if not is_linear(cell):
            raise TypeError(_refusal(cell))
        return LoopSchedule(ParallelPrefix(), self.chunk, CARRIES)


def _refusal(cell: Any) -> str:
    name = type(cell).__name__
    if isinstance(cell, AbstractWrappedCell) and (
        is_linear(cell.cell) or is_chunkwise(cell.cell)
    ):
        what = cell.purpose or f"{name} around {type(cell.cell).__name__}"
        instead = (
            "truncate with window=, which Associative supports"
            if cell.purpose
            else "leave the wrapper out"
        )
        return f"Associative: {what} must be run step by step: use Scan(), or {instead}"
    if isinstance(cell, LinearCell):
        return (
            f"Associative: {name} defines a step of its own, which need not be linear: "
            f"define affine alone, or use Scan()"
        )
    return (
        f"Associative: {name} is not linear in its state, so its steps cannot be "
        f"joined in advance: use Scan(), or Checkpoint "
        "for long sequences. Linear are MinGRU, MinLSTM, LRU, S5, RGLRU and every "
        "jaxrnn.LinearCell; MLSTM has chunks"
    )
