"""Optimization barriers that separate fusions, on the platforms where that pays.

On CPUs: XLA's compiler (jax 0.11 and newer) fuses the slice of a scanned array into the
elementwise arithmetic that reads it, and then no longer vectorizes that arithmetic: an
LSTM's gates took 42 us per step instead of 21 at (16, 128). A barrier makes the slice
an array of its own. There is none on accelerators, where one fusion less is one kernel
launch more. Nor is there one for a small slice: a loop with few numbers per step is
compiled into one piece of machine code, which a barrier would split (the forward pass
of a DiagonalGRU over 100,000 steps at B 1, H 8 took 40 ms with barriers and 12
without). On the way forwards few numbers are fewer than on the way back: a GRU over
1,024 steps at B 4, H 16, with slices of 768 bytes, took 1.26 ms without a barrier and
0.62 with one, and the gradient of an LSTM there 1.9 ms without barriers in its pullback
and 2.5 with them.

On NVIDIA's and AMD's GPUs: XLA fuses what computes a row into the kernel that writes it
to its place among all rows, one kernel for each array of rows. Behind a barrier one
kernel computes all rows of a step, and the writes are copies, which run beside the
kernels that follow. A step of an LSTM that is recorded for its gradient so has 3
kernels one after another instead of 7 (compiled for a described H100, not run).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .foreign import optional_attribute
from .types import PyTree

# Smaller slices of a step get no barrier on a CPU, in a loop forwards and in others.
LEAST_BYTES_FORWARDS, LEAST_BYTES = 512, 2048


def _identity_with(lowering: Callable[[Any], Any], *platforms: str) -> Primitive:
    """Make a primitive that is the identity, and lowered otherwise on some platforms.

    Args:
        lowering: a function that is the identity, as it is lowered on ``platforms``.
        *platforms: what JAX calls them when it lowers a program.
    """
    fence = Primitive("jaxrnn_fence")
    fence.def_impl(lambda x: x)
    fence.def_abstract_eval(lambda x: x)
    ad.deflinear2(fence, lambda cotangent, x: [fence.bind(cotangent)])
    batching.defvectorized(fence)
    mlir.register_lowering(fence, mlir.lower_fun(lambda x: x, multiple_results=False))
    lowered = mlir.lower_fun(lowering, multiple_results=False)

    def special(ctx: Any, x: Any) -> Any:
        return [x] if _is_refused(lowering, ctx) else lowered(ctx, x)

    for platform in platforms:
        mlir.register_lowering(fence, special, platform=platform)
    return fence


def _is_refused(lowering: Callable[[Any], Any], ctx: Any) -> bool:
    """Whether a program is exported, and `jax.export` refuses the operation in it.

    It does not save layouts, since XLA does not promise that it will read them.
    """
    how = optional_attribute(ctx.module_context, "lowering_parameters")
    return lowering is _row_major and optional_attribute(how, "for_export", False)


def _row_major(x: Any) -> Any:
    """Return the same array, in memory with its first axis the slowest."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


_CPU = _identity_with(jax.lax.optimization_barrier, "cpu")
_GPU = _identity_with(jax.lax.optimization_barrier, "cuda", "rocm")
_TPU = _identity_with(_row_major, "tpu")


def cpu_optimization_barrier(tree: PyTree, least_bytes: int = LEAST_BYTES) -> Any:
    """Return the same arrays, behind a barrier that XLA's CPU compiler does not cross.

    There is a barrier only if the arrays together have ``least_bytes`` or more, and
    only where the program is compiled for a CPU.
    """
    small = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree)) < least_bytes
    return tree if small else jax.tree.map(lambda a: _CPU.bind(a), tree)


def gpu_optimization_barrier(tree: PyTree) -> Any:
    """Return the same arrays, behind a barrier that XLA's GPU compiler does not cross.

    Each array is behind a barrier of its own, and only where the program is compiled
    for a GPU.
    """
    return jax.tree.map(lambda a: _GPU.bind(a), tree)


def rows_together(tree: PyTree) -> Any:
    """Return the same arrays ``(T, ...)``, each row in one piece of a TPU's memory.

    Programs for other platforms, and exported ones, are the same with and without it.
    """
    return jax.tree.map(lambda a: _TPU.bind(a) if a.ndim > 2 else a, tree)
