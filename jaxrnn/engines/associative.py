"""Time in parallel, for cells whose recurrence is linear in the state."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxtyping import Array, Bool

from ..cell import Carry, Cell, LinearCell, Params
from ..checks import check_positive
from .recurrence import CARRIES, Plan
from .step import walk_by_plan
from .walks import AUTO, Pace


@dataclasses.dataclass(frozen=True)
class Associative:
    """Walk a `LinearCell` by parallel prefixes: O(log T) depth, for about twice the arithmetic of `Scan` (Blelloch 1990).

    For accelerators, where a loop's step costs a kernel launch; on a CPU `Scan` is faster at every size measured. Values and
    gradients are those of `Scan` to rounding. The gradient is one linear recurrence backwards, walked in the same way; what is
    kept for it are the states, and the factors are made again.

    Args:
        chunk: steps walked in parallel at a time, one chunk after another: less memory, more depth. One longer than T is all
            of T; None: chosen for the platform, see `jaxrnn.engines.defaults`.

    Raises:
        TypeError: for a cell that is not linear in its state.
        ValueError: for a chunk that is no size, or arrays that only JAX's own loop can walk.
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
            raise TypeError(_refusal(cell))
        plan = Plan(Pace(self.chunk or AUTO, reverse=reverse, prefix=True), CARRIES)
        return walk_by_plan(cell, params, carry, (xs, mask, resets), plan)


def _refusal(cell: Any) -> str:
    if isinstance(getattr(cell, "cell", None), LinearCell):  # wrapped by truncated_unroll
        return (
            "Associative: scaled gradients (gradient_scale, ARTBP) are walked step by step: use Scan(), or truncate with "
            "window=, which Associative takes"
        )
    return (
        f"Associative: {type(cell).__name__} is not linear in its state, so its steps cannot be joined in advance: use Scan(), "
        "or Checkpoint() for long sequences. Linear are MinGRU, MinLSTM, LRU, RGLRU and every jaxrnn.LinearCell"
    )
