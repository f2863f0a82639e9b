"""An optimization barrier that separates fusions, on CPUs only.

XLA's CPU compiler (jax 0.11 and newer) fuses the slice of a scanned array into the
elementwise arithmetic that reads it, and then no longer vectorizes that arithmetic: an
LSTM's gates took 42 us per step instead of 21 at (16, 128). A barrier makes the slice
an array of its own. There is none on accelerators, where one fusion less is one kernel
launch more. Nor is there one for a small slice: a loop with few numbers per step is
compiled into one piece of machine code, which a barrier would split (the forward pass
of a DiagonalGRU over 100,000 steps at B 1, H 8 took 40 ms with barriers and 12
without).
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .types import PyTree

LEAST_BYTES = 2048  # smaller slices of a step get no barrier

# The primitive is the identity everywhere; only its lowering for CPUs is a barrier.
_fence = Primitive("jaxrnn_fence")
_fence.def_impl(lambda x: x)
_fence.def_abstract_eval(lambda x: x)
ad.deflinear2(_fence, lambda cotangent, x: [cpu_optimization_barrier(cotangent)])
batching.defvectorized(_fence)
mlir.register_lowering(_fence, mlir.lower_fun(lambda x: x, multiple_results=False))
mlir.register_lowering(
    _fence,
    mlir.lower_fun(jax.lax.optimization_barrier, multiple_results=False),
    platform="cpu",
)


def cpu_optimization_barrier(tree: PyTree) -> Any:
    """Return the same arrays, behind a barrier that XLA's CPU compiler does not cross.

    There is a barrier only if the arrays together have `LEAST_BYTES` bytes or more, and
    only where the program is compiled for a CPU.
    """
    small = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree)) < LEAST_BYTES
    return tree if small else jax.tree.map(lambda a: _fence.bind(a), tree)
