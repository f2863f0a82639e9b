"""The engine that is parallel in time, for cells that are linear in their state."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..core.cell import (
    AbstractWrappedCell,
    Cell,
    LinearCell,
    is_chunkwise,
    is_linear,
    without_context,
)
from ..core.engine import Supports
from ..core.gradient_scale import ScaledCell
from ..core.layer import Layer
from ..core.types import Size
from ..core.validation import check_auto
from .engine import LoopEngine
from .loops.kinds import Chunkwise, ParallelPrefix
from .recurrence.heuristics import AUTO, CARRIES
from .recurrence.schedule import LoopSchedule


@dataclasses.dataclass(frozen=True)
class Associative(LoopEngine):
    """Run the steps of a `LinearCell` in parallel, by an associative scan.

    The depth is O(log T), for about twice the arithmetic of `Scan` (Blelloch 1990).
    Choose it on accelerators, where each step of a loop costs a kernel launch; on a CPU
    `Scan` is faster at most measured sizes.

    Values and gradients are those of `Scan` up to rounding, if the product of the
    factors of a chunk is finite. ``|a| <= 1`` ensures that, and all built-in cells
    begin there. The gradient is a linear recurrence backwards in time, which runs in
    the same way (Martin & Cundy 2018, arXiv:1709.04057). The states are saved for it,
    and the factors are recomputed.

    A cell whose steps can be joined in another way defines ``run_chunks``: a
    `jaxrnn.MatrixCell`, for example, computes a chunk of steps by matrix products. What
    is solved for and what is added to the state is then multiplied in full precision on
    every platform; what queries read has JAX's default precision. The whole carry is
    known at chunk ends only, so ``unroll(..., return_carries=True)`` raises. A subclass
    that overrides ``step`` must override ``run_chunks``, too.

    Args:
        chunk: steps that run in parallel; the chunks run one after another. A smaller
            chunk takes less memory and more depth. None is all of T. ``"auto"`` chooses
            for the platform, by the rules in `jaxrnn.engines.recurrence.heuristics`;
            for a cell with ``run_chunks`` it is what the cell says: for matrix cells
            32 on a CPU, the fastest or nearly so of 16, 32, 64 and 128, and 64
            elsewhere, which takes fewer kernel launches but has not been measured.

    Raises:
        TypeError: for a cell that is not linear in its state.
        ValueError: for a chunk that is not a size, or for arrays that only
            ``jax.lax.scan`` supports.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.MinGRU(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs, engine = jnp.ones((100, 3)), jaxrnn.Associative(chunk=32)
        >>> _, ys = jaxrnn.unroll(cell, params, xs, engine=engine)
        >>> bool(jnp.allclose(ys, jaxrnn.unroll(cell, params, xs)[1], atol=1e-5))
        True
    """

    supports: ClassVar[Supports] = Supports.EVERYTHING & ~Supports.ANY_CELL

    chunk: int | str | None = AUTO

    def __post_init__(self):
        check_auto(self, chunk=self.chunk)

    def schedule(self, cell: Cell, length: Size) -> LoopSchedule:
        if is_chunkwise(cell):
            chunk = self.chunk or max(length, 1)
            return LoopSchedule(Chunkwise(), chunk, CARRIES, hoist=True)
        if not is_linear(cell):
            raise TypeError(_refusal(cell))
        return LoopSchedule(ParallelPrefix(), self.chunk, CARRIES)


def _refusal(cell: Cell | Layer) -> str:
    """Say why the engine does not support a cell, and what to use instead."""
    plain = without_context(cell)
    if plain is not cell and is_chunkwise(plain):
        return (
            f"Associative: {type(plain).__name__} takes a context, so its steps run "
            f"one by one: use Scan()"
        )
    cell = plain
    name = type(cell).__name__
    if isinstance(cell, AbstractWrappedCell) and (
        is_linear(cell.cell) or is_chunkwise(cell.cell)
    ):
        what = (
            cell.purpose or f"{name} around {type(without_context(cell.cell)).__name__}"
        )
        instead = (
            "truncate with window=, which Associative supports"
            if isinstance(cell, ScaledCell)
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
