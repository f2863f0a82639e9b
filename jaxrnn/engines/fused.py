"""The engine that runs the whole loop inside one kernel, on GPUs and TPUs."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ..core.cell import Cell, is_linear, unwrap
from ..core.engine import Supports
from ..core.types import Size
from ..core.validation import check_positive
from .engine import LoopEngine
from .loops.pallas.primitive import PallasKernel
from .recurrence.heuristics import AUTO, CARRIES, DOTS
from .recurrence.schedule import LoopSchedule


@dataclasses.dataclass(frozen=True)
class Fused(LoopEngine):
    """Run the whole loop inside one kernel, with the recurrent matrices on chip.

    Choose it on accelerators, where each step of `Scan` costs a launch per fusion. The
    matrices stay on chip from the first step to the last, in the forward pass and in
    the backward pass. The kernel is generated from the step of any cell; derivatives,
    mask, resets, ``reverse``, ``vmap`` and truncation are those of `Scan`.

    A step is supported if, after the projection of its inputs, it multiplies blocks of
    its carry ``(*B, k H)`` by constant matrices ``(k H, m H)`` and is otherwise
    arithmetic on each unit by itself. These are `LSTM` (with peepholes and coupled
    gates), `GRU` (both forms), `Elman`, `SLSTM` of one head, `IndRNN`, the diagonal
    cells and all linear cells; layer normalization, projections and `MLSTM` are not
    supported.

    On an NVIDIA GPU of the Hopper generation, with jax 0.11 or newer:

    - The matrices, each block ``(H, H)`` padded to a multiple of 64, must fit in
      225 KiB of shared memory.
    - So H is at most, in bfloat16, 128 for LSTM, 192 for GRU and 256 for Elman; in
      float32, 64 for LSTM, 128 for GRU and 192 for Elman.
    - A float32 product is computed as three bfloat16 products, with an error of 2^-16
      (TF32: 2^-10), or as six, with 2^-22, under the precision "highest".
    - In bfloat16, tanh has an error of 2^-11; other arithmetic is in float32.
    - Without a matrix, a block of the grid takes 128 units of one example. Everything
      is read once and written once.

    On a TPU:

    - The matrices, each block ``(H, H)`` padded to a multiple of 128, must fit in
      ``memory`` bytes of VMEM.
    - With 14 MiB H is at most, in bfloat16, 1,152 for LSTM, 1,280 for GRU and 2,304 for
      Elman; in float32, 896 for LSTM, 1,024 for GRU and 1,792 for Elman.
    - Float32 products are those of the chip, and bfloat16 arithmetic is in float32.

    The kernels have been compiled for both by the vendors' compilers, but they have
    been run only in their interpreters, not on a chip, and not timed; see
    benchmarks/NOTES.md. Nothing uses them unless they are named. Second derivatives and
    forward mode run by ``lax.scan``, and so do a single step and an empty batch. The
    members of a mapped ensemble, each with its own parameters, run one after another.

    Args:
        interpret: ``"gpu"`` or ``"tpu"`` runs the interpreter of that kernel on any
            platform. It is slow, and meant for tests.
        memory: bytes of on-chip memory that a kernel may use. The default is 14 MiB on
            a TPU, and all of a block's shared memory on a GPU.
        save: as for `Scan`: ``"dots"`` or ``"carries"``; ``"auto"`` is ``"carries"``
            for a linear cell, and ``"dots"`` for all others.

    Raises:
        ValueError: for options that do not exist; at trace time, for a cell whose step
            is not supported; when compiled, for a platform without kernels, or if the
            matrices do not fit in on-chip memory, with the bytes needed and available.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> cell = jaxrnn.IndRNN(4)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> engine = jaxrnn.Fused(interpret="tpu")
        >>> _, ys = jaxrnn.unroll(cell, params, jnp.ones((5, 2, 3)), engine=engine)
        >>> ys.shape
        (5, 2, 4)
    """

    supports: ClassVar[Supports] = Supports.EVERYTHING & ~Supports.ANY_CELL

    interpret: str | None = None
    memory: int | None = None
    save: str = AUTO

    def __post_init__(self):
        if self.interpret not in (None, "gpu", "tpu"):
            raise ValueError(
                f"Fused: interpret must be 'gpu', 'tpu' or None, but it is "
                f"{self.interpret!r}"
            )
        if self.memory is not None:
            check_positive(self, memory=self.memory)
        if self.save not in (AUTO, DOTS, CARRIES):
            raise ValueError(
                f"Fused: save must be {DOTS!r}, {CARRIES!r} or {AUTO!r}, but it is "
                f"{self.save!r}"
            )

    def schedule(self, cell: Cell, length: Size | None) -> LoopSchedule:
        by_default = CARRIES if is_linear(cell) else DOTS
        kernel = PallasKernel(
            interpret=self.interpret,
            memory=self.memory,
            cell=type(unwrap(cell)).__name__,
        )
        save = by_default if self.save == AUTO else self.save
        return LoopSchedule(kernel, None, save, hoist=True)
