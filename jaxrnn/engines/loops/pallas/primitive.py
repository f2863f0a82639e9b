"""The loop as a JAX primitive, which is lowered to one Pallas kernel.

`kernel_into_buffers` has the signature of
`jaxrnn.engines.loops.sequential.scan_into_buffers`. The forward and backward passes of
the recurrence give it the bodies of their loops, whatever the cell. A mapped loop is
the loop of the mapped body, so the mapped axis joins the rows from which the kernel
cuts its tiles. Derivatives of the loop itself are those of ``jax.lax.scan``. They occur
in second derivatives only: the first derivative of a recurrence is the backward pass,
whose loop is a kernel, too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ....core.contraction import check_one_device, devices_of
from ....core.types import Carry
from ...jaxpr.evaluate import eval_jaxpr, split_by_sizes, vmap_options
from ..sequential import scan_into_buffers
from .block_form import KernelUnsupportedError, LoopBody
from .complex_to_real import is_complex, merge_complex, real_body, split_complex
from .layout import check_dtypes

TARGETS = {"cuda": "gpu", "tpu": "tpu"}  # the kernel of each platform


@dataclasses.dataclass(frozen=True)
class PallasKernel:
    """Run the loop as one kernel.

    Args:
        interpret: as for `jaxrnn.Fused`.
        memory: as for `jaxrnn.Fused`.
        named: whether the user named the engine. If not, ``jax.lax.scan`` runs a loop
            that is not supported; otherwise an error is raised.
        cell: the name of the cell, for errors.

    Example:
        >>> import jaxrnn
        >>> jaxrnn.Fused(interpret="tpu").schedule(jaxrnn.GRU(8), 100).loop
        PallasKernel(interpret='tpu', memory=None, named=True, cell='GRU')
    """

    interpret: str | None = None
    memory: int | None = None
    named: bool = True
    cell: str = "this cell"


def kernel_into_buffers(
    body: Callable,
    carry: Sequence,
    given: Any,
    rows: list,
    first: Carry,
    steps: int,
    *,
    reverse: bool,
    kernel: PallasKernel,
) -> tuple[list, list]:
    """Run a loop by a kernel; the arguments are those of `scan_into_buffers`.

    Raises:
        KernelUnsupportedError: if the kernel is named, but the body is not supported.
    """
    row = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), given)
    traced, consts = trace_body(body, list(carry), row)
    empty = any(0 in jnp.shape(c) for c in carry)
    if empty or unsupported_body_reason(traced):
        if kernel.named and not empty:
            raise KernelUnsupportedError(
                f"Fused: {kernel.cell} has no kernel: "
                f"{unsupported_body_reason(traced)}. Use "
                f"engine=jaxrnn.Scan()"
            )
        return scan_into_buffers(
            body, carry, given, rows, first, steps, reverse=reverse, unroll=1
        )
    last, outs = kernel_loop(
        traced, consts, carry, jax.tree.leaves(given), steps, reverse, kernel
    )
    whole = [r.shape == out.shape for r, out in zip(rows, outs, strict=True)]
    return last, [
        out if same else jax.lax.dynamic_update_slice_in_dim(r, out, first, 0)
        for r, out, same in zip(rows, outs, whole, strict=True)
    ]


def unsupported_body_reason(body: LoopBody) -> str | None:
    """Say why a body cannot be expressed as a kernel, or None."""
    try:
        _ = (
            real_body(body) if any(map(is_complex, body.closed.in_avals)) else body
        ).form
    except KernelUnsupportedError as reason:
        return str(reason)
    return None


def _gpu() -> ModuleType:
    """Import the kernels for GPUs.

    Importing Pallas takes a good part of the time of ``import jaxrnn``, and only
    `Fused` needs it.
    """
    from . import mosaic_gpu

    return mosaic_gpu


def _tpu() -> ModuleType:
    """Import the kernels for TPUs."""
    from . import mosaic_tpu

    return mosaic_tpu


def memory_reason(
    body: LoopBody, steps: int, target: str, memory: int | None = None
) -> str | None:
    """Say why a kernel exceeds the on-chip memory of a device, or None."""
    try:
        if target == "gpu":
            _gpu().plan_layout(body.form, memory or _gpu().SHARED)
        else:
            _tpu().plan_layout(body.form, steps, memory or _tpu().MEMORY)
    except ValueError as reason:
        return str(reason)
    return None


def unsupported_reason(
    body: LoopBody, steps: int, platform: str, kernel: PallasKernel
) -> str | None:
    """Say why a kernel cannot be compiled for a platform, or None."""
    target = kernel.interpret or TARGETS.get(platform)
    if target is None:
        return (
            f"Fused: there are kernels for NVIDIA GPUs and TPUs, but this is compiled "
            f"for {platform}: use jaxrnn.Scan(). "
            "Fused(interpret='gpu') or 'tpu' runs a kernel's interpreter there, which "
            "is slow and for tests"
        )
    try:
        if target == "gpu":
            _gpu().mosaic()
        elif not kernel.interpret:
            check_dtypes(body.form, "TPU")
    except ValueError as reason:
        return str(reason)
    return memory_reason(body, steps, target, kernel.memory)


def memory_budget(
    body: LoopBody, steps: int, platform: str, kernel: PallasKernel
) -> tuple[int, int]:
    """Return the bytes of on-chip memory that a kernel needs, and those available.

    On a GPU a kernel without a matrix needs a fixed amount, which is not counted.
    """
    target = kernel.interpret or TARGETS[platform]
    if target == "gpu":
        memory = kernel.memory or _gpu().SHARED
        layout = _gpu().plan_layout(body.form, memory)
        return _gpu().bytes_needed(body.form, layout), memory
    memory = kernel.memory or _tpu().MEMORY
    layout = _tpu().plan_layout(body.form, steps, memory)
    return _tpu().bytes_needed(body.form, layout), memory


def trace_body(body: Callable, carry: Sequence, row: Any) -> tuple[LoopBody, list[Any]]:
    """Trace the body of a loop.

    Returns the traced body, whose first arguments are the arrays that it closes over,
    and those arrays.
    """
    closed = jax.make_jaxpr(lambda carry, row: body(carry, row))(carry, row)
    consts = list(closed.consts)
    opened = jax.make_jaxpr(
        lambda *flat: eval_jaxpr(closed.jaxpr, flat[: len(consts)], flat[len(consts) :])
    )(*consts, *closed.in_avals)
    traced = LoopBody(opened, len(consts), len(carry), len(jax.tree.leaves(row)))
    return traced, consts


def kernel_loop(
    body: LoopBody,
    consts: Sequence,
    carry: Sequence,
    given: Sequence,
    steps: int,
    reverse: bool,
    kernel: PallasKernel,
):
    """Bind the loop primitive; return the last carry and the outputs of all steps.

    A complex value is passed to the kernel as two real ones.
    """
    if any(map(is_complex, body.closed.in_avals)):
        like = list(body.closed.out_avals)
        real = real_body(body)
        last, outs = kernel_loop(
            real,
            split_complex(consts),
            split_complex(carry),
            split_complex(given),
            steps,
            reverse,
            kernel,
        )
        return merge_complex(last, like[: body.carry]), merge_complex(
            outs, like[body.carry :]
        )
    out = loop_p.bind(
        *consts, *carry, *given, body=body, steps=steps, reverse=reverse, kernel=kernel
    )
    return list(out[: body.carry]), list(out[body.carry :])


def by_scan(
    *flat: object,
    body: LoopBody,
    steps: int,
    reverse: bool,
    kernel: PallasKernel | None = None,
) -> list[Any]:
    """Compute what the kernel computes, by ``jax.lax.scan``."""
    consts, carry, given = split_by_sizes(flat, (body.consts, body.carry))
    last, outs = jax.lax.scan(
        lambda c, x: body(consts, c, x),
        list(carry),
        list(given),
        length=steps,
        reverse=reverse,
    )
    return [*last, *outs]


def _lowered(
    *flat: Any,
    body: LoopBody,
    steps: int,
    reverse: bool,
    kernel: PallasKernel,
    platform: str,
) -> list[Any]:
    reason, target = (
        unsupported_reason(body, steps, platform, kernel),
        kernel.interpret or TARGETS.get(platform),
    )
    if reason and kernel.named:
        raise ValueError(reason)
    if reason:
        return by_scan(*flat, body=body, steps=steps, reverse=reverse)
    if target == "gpu" and kernel.interpret:
        return _on_host(flat, body, steps, reverse, kernel)
    consts, carry, given = split_by_sizes(flat, (body.consts, body.carry))
    kernels = _gpu() if target == "gpu" else _tpu()
    last, outs = kernels.run_loop(body, consts, carry, given, steps, reverse, kernel)
    return [*last, *outs]


def _on_host(
    flat: Sequence, body: LoopBody, steps: int, reverse: bool, kernel: PallasKernel
) -> list[Any]:
    """Run the GPU interpreter inside a callback.

    The interpreter has ordered callbacks, which no primitive can contain.
    """

    def run_interpreter(*flat):
        consts, carry, given = split_by_sizes(
            [jnp.asarray(a) for a in flat], (body.consts, body.carry)
        )
        last, outs = _gpu().run_loop(body, consts, carry, given, steps, reverse, kernel)
        return [*last, *outs]

    like = jax.eval_shape(
        functools.partial(by_scan, body=body, steps=steps, reverse=reverse), *flat
    )
    return jax.pure_callback(run_interpreter, list(like), *flat)


loop_p = Primitive("jaxrnn_kernel_loop")
loop_p.multiple_results = True


@functools.lru_cache(maxsize=256)
def _compiled(params: tuple) -> Callable:
    return jax.jit(lambda *args: loop_p.bind(*args, **dict(params)))


loop_p.def_impl(lambda *args, **params: _compiled(tuple(params.items()))(*args))


@loop_p.def_abstract_eval
def _avals(
    *avals: Any, body: LoopBody, steps: int, reverse: bool, kernel: PallasKernel
) -> list[Any]:
    return list(
        jax.make_jaxpr(
            functools.partial(by_scan, body=body, steps=steps, reverse=reverse)
        )(*avals).out_avals
    )


def _lower(
    platform: str, ctx: Any, *args: Any, kernel: PallasKernel, **params: Any
) -> Any:
    if kernel.named:
        check_one_device("Fused", ctx)
    as_loop = not kernel.named and devices_of(ctx) > 1
    how = (
        by_scan
        if as_loop
        else functools.partial(_lowered, kernel=kernel, platform=platform)
    )
    return mlir.lower_fun(how, multiple_results=True)(ctx, *args, **params)


for _platform in ("cpu", "cuda", "tpu", "rocm"):
    mlir.register_lowering(
        loop_p, functools.partial(_lower, _platform), platform=_platform
    )


def _mapped(
    axis_data: Any,
    args: Sequence,
    dims: Sequence,
    *,
    body: LoopBody,
    steps: int,
    reverse: bool,
    kernel: PallasKernel,
):
    """Bind the loop of the mapped body; the mapped axis leads the batch axes."""
    none, n_given = None, body.consts + body.carry
    if all(d is none for d in dims):
        out = loop_p.bind(*args, body=body, steps=steps, reverse=reverse, kernel=kernel)
        return out, [none] * len(out)
    moved, axes = [], []
    for i, (a, d) in enumerate(zip(args, dims, strict=True)):
        if body.consts <= i and d is none:
            a, d = jnp.broadcast_to(a[None], (axis_data.size, *a.shape)), 0
        moved.append(a if d is none else jnp.moveaxis(a, d, 1 if i >= n_given else 0))
        axes.append(none if d is none else 0)
    avals = [
        jax.ShapeDtypeStruct(
            a.shape if d is none else (axis_data.size, *a.shape), a.dtype
        )
        for a, d in zip(body.closed.in_avals, axes, strict=True)
    ]
    whole = jax.vmap(
        lambda *flat: eval_jaxpr(body.closed.jaxpr, body.closed.consts, flat),
        tuple(axes),
        **vmap_options(axis_data),
    )
    many = LoopBody(jax.make_jaxpr(whole)(*avals), body.consts, body.carry, body.given)
    if unsupported_body_reason(many) and not unsupported_body_reason(
        body
    ):  # matrices are mapped: one kernel after another
        fixed = [a for a, axis in zip(moved, axes, strict=True) if axis is none]
        mapped = [
            jnp.moveaxis(a, 1, 0) if i >= n_given else a
            for i, (a, x) in enumerate(zip(moved, axes))
            if x is not none
        ]

        def member(mine):
            of_all, of_one = iter(fixed), iter(mine)
            full = [next(of_all if axis is none else of_one) for axis in axes]
            return loop_p.bind(
                *full, body=body, steps=steps, reverse=reverse, kernel=kernel
            )

        out = jax.lax.map(member, mapped)
        return out, [0] * len(out)
    out = loop_p.bind(*moved, body=many, steps=steps, reverse=reverse, kernel=kernel)
    return out, [0] * body.carry + [1] * (len(out) - body.carry)


batching.fancy_primitive_batchers[loop_p] = _mapped


def _jvp(primals: Sequence, tangents: Sequence, **params: Any):
    function = functools.partial(by_scan, **params)
    return jax.jvp(
        lambda *args: function(*args),
        tuple(primals),
        tuple(map(ad.instantiate_zeros, tangents)),
    )


ad.primitive_jvps[loop_p] = _jvp
