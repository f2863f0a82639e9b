"""The loop as a JAX primitive: one kernel on the platforms that have one, JAX's own loop where it is differentiated.

``kernel_into`` takes the place of `jaxrnn.engines.buffers.scan_into`: the walks of a recurrence, forwards and backwards, give
it their loop's body, and it does not matter which cell that came from. A mapped loop is the loop of the mapped body, so its
axis joins the rows that the kernel's tiles are cut from. Derivatives of the loop itself (second derivatives of a walk, that
is: a first one is a walk backwards, a kernel too) are those of ``jax.lax.scan``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ..jaxprs import mapping_of, run, split
from . import gpu, tpu
from .blocks import Body
from .complexes import as_real, is_complex, joined, parted

PLATFORMS = ("cuda", "tpu")


def kernel_into(
    body: Callable, carry: Sequence, given: Any, rows: list, first: Any, steps: int, *, reverse: bool, kernel: Any
) -> tuple[list, list]:
    """As `scan_into`, by the kernel that ``kernel``, an engine with its options, stands for."""
    row = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), given)
    traced, consts = traced_body(body, list(carry), row)
    last, outs = kernel_loop(traced, consts, carry, jax.tree.leaves(given), steps, reverse, kernel)
    whole = [r.shape == out.shape for r, out in zip(rows, outs, strict=True)]
    return last, [
        out if same else jax.lax.dynamic_update_slice_in_dim(r, out, first, 0)
        for r, out, same in zip(rows, outs, whole, strict=True)
    ]


def traced_body(body: Callable, carry: Sequence, row: Any) -> tuple[Body, list[Any]]:
    """A loop's body with what it closes over made its first arguments, and in real numbers."""
    closed = jax.make_jaxpr(lambda carry, row: body(carry, row))(carry, row)
    consts = list(closed.consts)
    opened = jax.make_jaxpr(lambda *flat: run(closed.jaxpr, flat[: len(consts)], flat[len(consts) :]))(
        *consts, *closed.in_avals
    )
    traced = Body(opened, len(consts), len(carry), len(jax.tree.leaves(row)))
    return traced, consts


def kernel_loop(body: Body, consts: Sequence, carry: Sequence, given: Sequence, steps: int, reverse: bool, kernel: Any):
    """``(last carry, outs)``; complex values go through the kernel as two real ones each."""
    if any(map(is_complex, body.closed.in_avals)):
        like = list(body.closed.out_avals)
        real = as_real(body)
        last, outs = kernel_loop(real, parted(consts), parted(carry), parted(given), steps, reverse, kernel)
        return joined(last, like[: body.carry]), joined(outs, like[body.carry :])
    out = loop_p.bind(*consts, *carry, *given, body=body, steps=steps, reverse=reverse, kernel=kernel)
    return list(out[: body.carry]), list(out[body.carry :])


def by_scan(*flat: Any, body: Body, steps: int, reverse: bool, kernel: Any = None) -> list[Any]:
    """What the kernel computes, in JAX's own loop."""
    consts, carry, given = split(flat, (body.consts, body.carry))
    last, outs = jax.lax.scan(
        lambda c, x: body(consts, c, x), list(carry), list(given), length=steps, reverse=reverse
    )
    return [*last, *outs]


def _lowered(*flat: Any, body: Body, steps: int, reverse: bool, kernel: Any, platform: str) -> list[Any]:
    consts, carry, given = split(flat, (body.consts, body.carry))
    target = kernel.interpret or {"cuda": "gpu", "tpu": "tpu"}.get(platform)
    if target is None:
        raise ValueError(
            f"Fused: there are kernels for NVIDIA GPUs and TPUs, but this is compiled for {platform}: use engine=jaxrnn.Scan(), "
            "or Fused(interpret='gpu') or 'tpu' to run a kernel's interpreter, which is slow and for tests"
        )
    if target == "tpu":
        last, outs = tpu.walk(body, consts, carry, given, steps, reverse, kernel)
        return [*last, *outs]
    if kernel.interpret:
        gpu.plan(body.form, kernel.memory or gpu.SHARED)
        return _on_host(flat, body, steps, reverse, kernel)
    last, outs = gpu.walk(body, consts, carry, given, steps, reverse, kernel)
    return [*last, *outs]


def _on_host(flat: Sequence, body: Body, steps: int, reverse: bool, kernel: Any) -> list[Any]:
    """The GPU interpreter keeps its memory in callbacks, ordered ones, that no primitive can pass on: so it runs as a whole
    inside a callback.
    """

    def run_interpreter(*flat):
        consts, carry, given = split([jnp.asarray(a) for a in flat], (body.consts, body.carry))
        last, outs = gpu.walk(body, consts, carry, given, steps, reverse, kernel)
        return [*last, *outs]

    like = jax.eval_shape(functools.partial(by_scan, body=body, steps=steps, reverse=reverse), *flat)
    return jax.pure_callback(run_interpreter, list(like), *flat)


loop_p = Primitive("jaxrnn_kernel_loop")
loop_p.multiple_results = True


@functools.lru_cache(maxsize=256)
def _compiled(params: tuple) -> Callable:
    return jax.jit(lambda *args: loop_p.bind(*args, **dict(params)))


loop_p.def_impl(lambda *args, **params: _compiled(tuple(params.items()))(*args))


@loop_p.def_abstract_eval
def _avals(*avals: Any, body: Body, steps: int, reverse: bool, kernel: Any) -> list[Any]:
    return list(jax.make_jaxpr(functools.partial(by_scan, body=body, steps=steps, reverse=reverse))(*avals).out_avals)


for _platform in ("cpu", "cuda", "tpu", "rocm"):
    _rule = mlir.lower_fun(functools.partial(_lowered, platform=_platform), multiple_results=True)
    mlir.register_lowering(loop_p, _rule, platform=_platform)


def _mapped(axis_data: Any, args: Sequence, dims: Sequence, *, body: Body, steps: int, reverse: bool, kernel: Any):
    """The loop of the mapped body: its axis leads the carry's batch axes."""
    none, n_given = None, body.consts + body.carry
    if all(d is none for d in dims):
        out = loop_p.bind(*args, body=body, steps=steps, reverse=reverse, kernel=kernel)
        return out, [none] * len(out)
    moved, axes = [], []
    for i, (a, d) in enumerate(zip(args, dims, strict=True)):
        if body.consts <= i < n_given and d is none:
            a, d = jnp.broadcast_to(a[None], (axis_data.size, *a.shape)), 0
        moved.append(a if d is none else jnp.moveaxis(a, d, 1 if i >= n_given else 0))
        axes.append(none if d is none else 0)
    avals = [
        jax.ShapeDtypeStruct(a.shape if d is none else (axis_data.size, *a.shape), a.dtype)
        for a, d in zip(body.closed.in_avals, axes, strict=True)
    ]
    whole = jax.vmap(lambda *flat: run(body.closed.jaxpr, body.closed.consts, flat), tuple(axes), **mapping_of(axis_data))
    many = Body(jax.make_jaxpr(whole)(*avals), body.consts, body.carry, body.given)
    out = loop_p.bind(*moved, body=many, steps=steps, reverse=reverse, kernel=kernel)
    return out, [0] * body.carry + [1] * (len(out) - body.carry)


batching.fancy_primitive_batchers[loop_p] = _mapped


def _jvp(primals: Sequence, tangents: Sequence, **params: Any):
    function = functools.partial(by_scan, **params)
    return jax.jvp(lambda *args: function(*args), tuple(primals), tuple(map(ad.instantiate_zeros, tangents)))


ad.primitive_jvps[loop_p] = _jvp
