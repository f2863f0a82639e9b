"""The whole loop inside one kernel, on GPUs and TPUs."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..core.cell import Cell, is_linear, unwrap
from ..core.validation import check_positive
from .engine import LoopEngine
from .loops.pallas.primitive import PallasKernel
from .recurrence.heuristics import AUTO, CARRIES, DOTS
from .recurrence.schedule import LoopSchedule


@dataclasses.dataclass(frozen=True)
class Fused(LoopEngine):
    """Walk time inside one kernel, forwards and backwards, with the recurrent matrices
    on chip from the first step to the last.

    For accelerators, where a step of `Scan` costs a launch per fusion. The kernel is
    made from the step that the cell has anyway, so a cell of one's own has one too;
    derivatives, mask, resets, ``reverse``, ``vmap`` and truncation are those of `Scan`.
    A step fits if, past the projection of its inputs, it multiplies blocks of its carry
    ``(*B, k H)`` by constant matrices ``(k H, m H)`` and does arithmetic on each unit
    by itself: `LSTM` (with peepholes, coupled gates), `GRU` (both forms), `Elman`,
    `SLSTM` of one head, `IndRNN`, the diagonal and all linear cells; not layer
    normalization, projections, `MLSTM`.

    | | NVIDIA GPU of the Hopper kind (jax 0.11 or newer) | TPU |
    |---|---|---|
    | matrices of all blocks, (H, H) padded | to 64; at most 225 KiB of shared memory | to 128; ``memory`` of VMEM |
    | at most, bfloat16 | LSTM 128, GRU 192, Elman 256 | LSTM 1,152, GRU 1,280, Elman 2,304, in 14 MiB |
    | at most, float32 | LSTM 64, GRU 128, Elman 192 | LSTM 896, GRU 1,024, Elman 1,792, in 14 MiB |
    | float32 products | as three bfloat16 ones, 2^-16 (TF32: 2^-10); six, 2^-22, under "highest" precision | the chip's own |
    | bfloat16 | tanh to 2^-11, else float32 arithmetic | float32 arithmetic |
    | without a matrix | 128 units of an example a block, read once, written once | as with one |

    The kernels compile for both, by the makers' own compilers; they have not been run
    or timed on either, only in their interpreters: see benchmarks/NOTES.md. Nothing
    uses them unless named. Second derivatives and forward mode walk by ``lax.scan``,
    and so do a single step and an empty batch; members of a mapped ensemble, each with
    parameters of its own, go one after another.

    Args:
        interpret: ``"gpu"`` or ``"tpu"``: run that kernel's interpreter, on any
            platform; slow, for tests.
        memory: bytes of on-chip memory that a kernel may take (default: 14 MiB on a
            TPU, all of a block's on a GPU).
        save: as for `Scan`: ``"dots"`` or ``"carries"``.

    Raises:
        ValueError: at trace time for a cell whose step does not fit; when compiled for
            a platform without kernels, or where on-chip memory does not hold the
            matrices, with the bytes needed and the bytes there.
    """  # noqa: E501

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

    def schedule(self, cell: Cell, length: Any) -> LoopSchedule:
        by_default = CARRIES if is_linear(cell) else DOTS
        kernel = PallasKernel(
            interpret=self.interpret,
            memory=self.memory,
            cell=type(unwrap(cell)).__name__,
        )
        save = by_default if self.save == AUTO else self.save
        return LoopSchedule(kernel, None, save, hoist=True)
