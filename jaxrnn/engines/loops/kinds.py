"""The kinds of loops that a schedule chooses from, as values.

Every kind but `AutoLoop` and `Chunkwise` runs a body over a chunk of steps with one
signature, that of `scan_into_buffers`; `loop_function` gives that function.
"""

from __future__ import annotations

import dataclasses
import functools

from .pallas.primitive import PallasKernel, kernel_into_buffers
from .parallel_prefix import prefix_scan_into_buffers
from .sequential import LoopFunction, scan_into_buffers


@dataclasses.dataclass(frozen=True)
class Sequential:
    """One step after another by ``jax.lax.scan``, ``unroll`` steps an iteration."""

    unroll: int = 1


@dataclasses.dataclass(frozen=True)
class ParallelPrefix:
    """The steps of a chunk by parallel prefixes, for steps that are affine."""


@dataclasses.dataclass(frozen=True)
class Chunkwise:
    """The cell's own chunks: ``cell.walk_chunks``."""


@dataclasses.dataclass(frozen=True)
class AutoLoop:
    """A loop that is chosen for the platform when the program is compiled for one.

    ``prefix``: `ParallelPrefix` is a candidate, everywhere but on CPUs. ``kernel``: a
    `PallasKernel` is one, on the platforms that `heuristics.KERNELS` names. Otherwise
    the loop is `Sequential`.
    """

    prefix: bool = False
    kernel: bool = False


Loop = Sequential | ParallelPrefix | PallasKernel | Chunkwise | AutoLoop


def loop_function(loop: Loop) -> LoopFunction:
    """The function that runs a body over a chunk of steps."""
    if isinstance(loop, PallasKernel):
        return functools.partial(kernel_into_buffers, kernel=loop)
    if isinstance(loop, ParallelPrefix):
        return prefix_scan_into_buffers
    return functools.partial(scan_into_buffers, unroll=steps_an_iteration(loop))


def steps_an_iteration(loop: Loop) -> int:
    """Steps in one iteration of a compiled loop over single steps."""
    return loop.unroll if isinstance(loop, Sequential) else 1
