"""The kinds of loops that a schedule chooses from, as values.

Every kind but `AutoLoop` and `Chunkwise` runs a body over a chunk of steps with one
signature, that of `scan_into_buffers`; `loop_function` gives that function.
"""

from __future__ import annotations

import dataclasses
import functools

from .newton import NewtonIteration, newton_into_buffers
from .pallas.primitive import PallasKernel, kernel_into_buffers
from .parallel_prefix import prefix_scan_into_buffers
from .sequential import LoopFunction, scan_into_buffers


@dataclasses.dataclass(frozen=True)
class Sequential:
    """Run one step after another by ``jax.lax.scan``.

    Args:
        unroll: the number of steps in an iteration of the compiled loop; ``"auto"``,
            chosen for the platform.
        parts: whether rows are recorded in parts of one width, as they are on GPUs; see
            `jaxrnn.engines.loops.sequential.parts_of_rows`.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.Scan(unroll=4).schedule(jaxrnn.GRU(8), 100).loop
        Sequential(unroll=4, parts='auto')
    """

    unroll: int | str = "auto"
    parts: bool | str = "auto"


@dataclasses.dataclass(frozen=True)
class ParallelPrefix:
    """Run the steps of a chunk in parallel; they must be affine in the carry.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.Associative().schedule(jaxrnn.MinGRU(8), 100).loop
        ParallelPrefix()
    """


@dataclasses.dataclass(frozen=True)
class Chunkwise:
    """Run chunks of steps by the cell's own ``run_chunks``.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.Associative().schedule(jaxrnn.MLSTM(8), 100).loop
        Chunkwise()
    """


@dataclasses.dataclass(frozen=True)
class AutoLoop:
    """Choose the loop for the platform, when the program is compiled for one.

    Where neither applies, the loop is `Sequential`.

    Args:
        prefix: whether it is `ParallelPrefix` on every platform but a CPU.
        kernel: whether it is a `PallasKernel` on the platforms that
            `heuristics.KERNELS` names.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.Scan().schedule(jaxrnn.MinGRU(8), 100).loop  # linear in its state
        AutoLoop(prefix=True, kernel=False)
    """

    prefix: bool = False
    kernel: bool = False


Loop = (
    Sequential | ParallelPrefix | PallasKernel | Chunkwise | NewtonIteration | AutoLoop
)


def loop_function(loop: Loop) -> LoopFunction:
    """Return the function that runs a body over a chunk of steps."""
    if isinstance(loop, PallasKernel):
        return functools.partial(kernel_into_buffers, kernel=loop)
    if isinstance(loop, NewtonIteration):
        return functools.partial(newton_into_buffers, newton=loop)
    if isinstance(loop, ParallelPrefix):
        return prefix_scan_into_buffers
    parts = isinstance(loop, Sequential) and loop.parts is True
    return functools.partial(
        scan_into_buffers, unroll=steps_an_iteration(loop), parts=parts
    )


def steps_an_iteration(loop: Loop) -> int:
    """Return the number of steps in an iteration of a compiled sequential loop.

    It is one where the schedule was not resolved, since ``jax.lax.scan`` runs the loop.
    """
    if isinstance(loop, Sequential) and not isinstance(loop.unroll, str):
        return loop.unroll
    return 1
