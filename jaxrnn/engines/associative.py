"""Time in parallel, for cells whose recurrence is linear in the state."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Bool

from ..cell import Carry, Cell, LinearCell, Params
from ..checks import check_positive
from .linear import PREFIX, affine_maps, walk_affine


@dataclasses.dataclass(frozen=True)
class Associative:
    """Walk a linear cell by parallel prefixes: O(log T) depth, about twice the arithmetic of `Scan` (Blelloch 1990).

    For accelerators and small batches; on a CPU `Scan` is faster at every size measured. Values and gradients are those of
    `Scan` to rounding; the gradient is one linear recurrence backwards, which keeps the states and the factors a alone.

    Args:
        chunk: steps walked in parallel at a time, one chunk after another. Less memory, more depth; None: all of T.

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
        """As `Scan.walk`."""
        if not isinstance(cell, LinearCell):
            raise TypeError(
                f"Associative: {type(cell).__name__} is not linear in its state, so its steps cannot be joined in advance: use "
                "Scan(), or Checkpoint() for long sequences; MinGRU, MinLSTM, LRU and RGLRU are linear"
            )
        a, b = affine_maps(cell, params, carry, xs, mask, resets)
        return walk_affine(a, b, carry, method=PREFIX, chunk=self.chunk, reverse=reverse)
