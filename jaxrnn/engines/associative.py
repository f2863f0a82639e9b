"""Time in parallel, for cells whose recurrence is linear in the state."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Bool

from ..cell import Carry, Cell, LinearCell, Params
from ..checks import check_positive
from .linear import PREFIX, affine_maps, walk_affine

CHUNK = 64  # of a cell that walks chunks by itself, whose work grows by its square


@dataclasses.dataclass(frozen=True)
class Associative:
    """Walk a linear cell by parallel prefixes: O(log T) depth, about twice the arithmetic of `Scan` (Blelloch 1990).

    For accelerators and small batches; on a CPU `Scan` is faster at every size measured. Values and gradients are those of
    `Scan` to rounding; the gradient is one linear recurrence backwards, which keeps the states and the factors a alone.

    A cell whose steps join in another way brings ``walk_chunks``, as `MLSTM` does: chunks of steps as matrix products. Its
    carry is then known at chunk ends only, so ``unroll(..., return_carries=True)`` is refused.

    Args:
        chunk: steps walked in parallel at a time, one chunk after another. Less memory, more depth; None: all of T, and 64
            for a cell with ``walk_chunks``.

    Raises:
        TypeError: for a cell that is not linear in its state.
    """

    chunk: int | None = None

    def __post_init__(self):
        if self.chunk is not None:
            check_positive(self, chunk=self.chunk)

    def walk(
        self,
        cell: Cell,
        params: Params,
        carry: Carry,
        xs: Any,
        mask: Bool[Array, "T *B"] | None = None,
        resets: Bool[Array, "T *B"] | None = None,
        reverse: bool = False,
    ) -> tuple[Carry, Carry]:
        """As `Scan.walk`, but of a cell with ``walk_chunks`` the carries after every step hold h alone, the rest is None."""
        if hasattr(cell, "walk_chunks"):
            zs = cell.project(params, xs)
            last, hs = cell.walk_chunks(params, carry, zs, mask, resets, self.chunk or CHUNK, reverse)
            return last, type(carry)(**{name: hs if name == "h" else None for name in carry._fields})
        if not isinstance(cell, LinearCell):
            raise TypeError(
                f"Associative: {type(cell).__name__} is not linear in its state, so its steps cannot be joined in advance: use "
                "Scan(), or Checkpoint() for long sequences; MinGRU, MinLSTM, LRU, S5 and RGLRU are linear, MLSTM has chunks"
            )
        a, b = affine_maps(cell, params, carry, xs, mask, resets)
        return walk_affine(a, b, carry, method=PREFIX, chunk=self.chunk, reverse=reverse)
