"""Time in parallel, for cells whose recurrence is linear in the state."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, Bool

from ..core.cell import (
    Carry,
    Cell,
    LinearCell,
    Params,
    is_chunkwise,
    is_linear,
    unsupported_chunkwise_reason,
)
from ..core.validation import check_positive
from .recurrence.heuristics import CARRIES
from .recurrence.passes import AUTO, Pace
from .recurrence.primitives import Plan
from .recurrence.run import run_recurrence, unsupported_arrays_reason

CHUNK = 32  # of a cell that walks chunks by itself, whose work grows by its square


@dataclasses.dataclass(frozen=True)
class Associative:
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

    chunk: int | None = None

    def __post_init__(self):
        if self.chunk is not None:
            check_positive(self, chunk=self.chunk)

    @property
    def own_chunk(self) -> int:
        """Steps in a chunk of a cell with ``walk_chunks``."""
        return self.chunk or CHUNK

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
        """As `Scan.walk`, but of a cell with ``walk_chunks`` the carries after every
        step hold h alone, the rest is None.
        """
        if is_chunkwise(cell):
            reason = unsupported_chunkwise_reason(cell) or unsupported_arrays_reason(
                jax.tree.leaves((params, carry, xs, mask, resets))
            )
            if reason is not None:
                raise ValueError(
                    f"{type(cell).__name__}: {reason}: only engine=jaxrnn.Scan() walks "
                    f"that"
                )
            zs = cell.project(params, xs)
            chunked: Any = cell
            last, hs = chunked.walk_chunks(
                params, carry, zs, mask, resets, self.own_chunk, reverse
            )
            return last, type(carry)(
                **{name: hs if name == "h" else None for name in carry._fields}
            )
        if not is_linear(cell):
            raise TypeError(_refusal(cell))
        plan = Plan(Pace(self.chunk or AUTO, reverse=reverse, prefix=True), CARRIES)
        return run_recurrence(cell, params, carry, (xs, mask, resets), plan)


def _refusal(cell: Any) -> str:
    name, inner = type(cell).__name__, getattr(cell, "cell", None)
    if is_linear(inner) or is_chunkwise(inner):
        scaled = (
            "truncate with window=, which Associative takes"
            if name == "ScaledCell"
            else "leave the wrapper out"
        )
        what = (
            "scaled gradients (gradient_scale, ARTBP)"
            if name == "ScaledCell"
            else f"{name} around {type(inner).__name__}"
        )
        return (
            f"Associative: {what} must be walked step by step: use Scan(), or {scaled}"
        )
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
