"""A fence between fusions, on CPUs only.

XLA's CPU compiler (jax 0.11 and newer) fuses the slice of a scanned array into the
elementwise arithmetic that reads it, and then no longer vectorizes that: an LSTM's
gates took 42 us a step instead of 21 at (16, 128). A fence makes the slice an array of
its own. On accelerators nothing is fenced: there a fusion less is a kernel launch more.
Nor is a small slice: a loop of few numbers a step is compiled into one piece of machine
code, which a fence would cut (a DiagonalGRU forwards over 100,000 steps at B 1, H 8: 40
ms with fences, 12 without).
"""

from __future__ import annotations

from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

LEAST_BYTES = 2048  # of the slices of a step that are fenced

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


def cpu_optimization_barrier(tree: Any) -> Any:
    """The same arrays; on a CPU no fusion reaches across, if together they have
    `LEAST_BYTES` or more.
    """
    small = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(tree)) < LEAST_BYTES
    return tree if small else jax.tree.map(lambda a: _fence.bind(a), tree)
