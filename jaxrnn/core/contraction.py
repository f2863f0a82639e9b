"""Products over several axes at once, such as a weight gradient's over time and batch,
in the form that suits the devices.

XLA's CPU compiler makes a strided copy of the cotangent where two axes are contracted,
so on one device they are merged into one first: a plain 2-D product. Split over devices
by their batch, arrays must not be reshaped so: the batch is the minor part of the
merged axis, which the partitioner can not keep split, and every device would gather the
whole sequence. Unmerged, each device multiplies its own part, and one all-reduce adds
the products up. Which of the two it is, is known when a program is lowered, and not
before. So this is a primitive: ``dot_general`` with a lowering of its own. Policies of
``jax.checkpoint`` that name ``dot_general`` do not know it; steps, which are walked by
the engines, hold ``dot_general`` itself.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

Dims = tuple[int, ...]


def contract(
    a: Any, b: Any, *, dimension_numbers: Any, precision: Any = None, **params: Any
) -> Any:
    """``jax.lax.dot_general``, its axes merged where that is faster. ``a`` and ``b``
    are of one dtype.

    Arrays whose types say how they are split (explicit meshes, ``jax.shard_map`` with
    ``check_vma=True``), symbolic sizes and products whose axes are single anyway are
    left to ``dot_general`` itself.
    """
    numbers: Any = tuple(
        tuple(tuple(int(dim) for dim in dims) for dims in side)
        for side in dimension_numbers
    )
    avals = [jax.typeof(a), jax.typeof(b)]
    runs = [
        run
        for aval, over, batch in zip(avals, *numbers, strict=True)
        for run in _runs(aval.ndim, over, batch)
    ]
    if not _is_plain(avals) or all(len(run) == 1 for run in runs):
        return jax.lax.dot_general(a, b, numbers, precision, **params)
    precision = (
        jax.config.jax_default_matmul_precision if precision is None else precision  # type: ignore[attr-defined]
    )
    return contraction_p.bind(
        a, b, dimension_numbers=numbers, precision=precision, **params
    )


def _is_plain(avals: Sequence[Any]) -> bool:
    """Whether the types of these arrays say nothing of devices, and their sizes are
    numbers.
    """
    varying = any(
        getattr(getattr(a, "manual_axis_type", None), "varying", None) for a in avals
    )
    explicit = any(
        kind == AxisType.Explicit for a in avals for kind in a.sharding.mesh.axis_types
    )
    return (
        not varying
        and not explicit
        and all(isinstance(size, int) for a in avals for size in a.shape)
    )


def product(
    a: Any, b: Any, *, dimension_numbers: Any, precision: Any, **params: Any
) -> Any:
    """What `contract` means, as ``dot_general``."""
    return jax.lax.dot_general(a, b, dimension_numbers, precision, **params)


def _merged(a: Any, b: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    """The product with neighbouring axes that go the same way merged into one, and
    parted again.
    """
    (a_over, b_over), (a_batch, b_batch) = dimension_numbers
    free = [
        [i for i in range(v.ndim) if i not in (*over, *batch)]
        for v, over, batch in ((a, a_over, a_batch), (b, b_over, b_batch))
    ]
    shape = [
        *(a.shape[i] for i in a_batch),
        *(a.shape[i] for i in free[0]),
        *(b.shape[i] for i in free[1]),
    ]
    joined = _follows(a_over) and _follows(b_over)
    flat, overs, batches = [], [], []
    for value, over, batch in ((a, a_over, a_batch), (b, b_over, b_batch)):
        runs = _runs(
            value.ndim, over if joined else (), (*batch, *(() if joined else over))
        )
        sizes = [_size(value.shape[i] for i in run) for run in runs]
        place = {i: at for at, run in enumerate(runs) for i in run}
        flat.append(value.reshape(sizes))
        overs.append(tuple(dict.fromkeys(place[i] for i in over)))
        batches.append(tuple(place[i] for i in batch))
    return product(
        *flat, dimension_numbers=(tuple(overs), tuple(batches)), **params
    ).reshape(shape)


def _size(sizes: Any) -> int:
    size = 1
    for each in sizes:
        size *= each
    return size


def _follows(dims: Dims) -> bool:
    """Whether each axis is the one after the last."""
    return all(b == a + 1 for a, b in itertools.pairwise(dims))


def _runs(ndim: int, over: Dims, single: Dims) -> list[list[int]]:
    """All axes in order, neighbours together that are all contracted or all free;
    those of ``single`` alone.
    """
    runs: list[list[int]] = []
    for i in range(ndim):
        alone = i in single or not runs or runs[-1][-1] in single
        if alone or (i in over) != (runs[-1][-1] in over):
            runs.append([i])
        else:
            runs[-1].append(i)
    return runs


contraction_p = Primitive("jaxrnn_contraction")


@functools.lru_cache(maxsize=256)
def _in_one_program(params: Any) -> Any:
    return jax.jit(functools.partial(_merged, **dict(params)))


@contraction_p.def_impl
def _impl(a: Any, b: Any, **params: Any) -> Any:
    return _in_one_program(tuple(params.items()))(a, b)


@functools.lru_cache(maxsize=1024)
def _like(a: Any, b: Any, params: Any) -> Any:
    return jax.eval_shape(functools.partial(product, **dict(params)), a, b)


@contraction_p.def_abstract_eval
def _abstract(a: Any, b: Any, **params: Any) -> Any:
    like = _like(
        *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (a, b)), tuple(params.items())
    )
    return jax.core.ShapedArray(like.shape, like.dtype)


def _rest(ndim: int, *taken: Dims) -> list[int]:
    return [i for i in range(ndim) if not any(i in dims for dims in taken)]


def _transpose_first(
    cotangent: Any,
    a: Any,
    b: Any,
    *,
    dimension_numbers: Any,
    swapped: bool = False,
    **params: Any,
) -> Any:
    """The cotangent of ``a``: the product of that of the result with ``b``, over the
    axes of b that the result has.
    """
    (a_over, b_over), (a_batch, b_batch) = dimension_numbers
    a_kept, b_kept = _rest(a.aval.ndim, a_over, a_batch), _rest(b.ndim, b_over, b_batch)
    count = len(a_batch)
    first = count if swapped else count + len(a_kept)
    over = tuple(range(first, first + len(b_kept)))
    numbers = ((over, tuple(b_kept)), (tuple(range(count)), tuple(b_batch)))
    order = [
        *a_batch,
        *a_kept,
        *(a_over[i] for i in sorted(range(len(b_over)), key=b_over.__getitem__)),
    ]
    made = contract(cotangent, b, dimension_numbers=numbers, **params)
    turned = jax.lax.transpose(made, tuple(order.index(i) for i in range(a.aval.ndim)))
    return turned.astype(a.aval.dtype)


def _transpose_second(
    cotangent: Any, a: Any, b: Any, *, dimension_numbers: Any, **params: Any
) -> Any:
    numbers = tuple((second, first) for first, second in dimension_numbers)
    return _transpose_first(
        cotangent, b, a, dimension_numbers=numbers, swapped=True, **params
    )


ad.defbilinear(contraction_p, _transpose_first, _transpose_second)


def _batched(
    values: Sequence[Any], dims: Sequence[Any], *, dimension_numbers: Any, **params: Any
) -> tuple[Any, int]:
    """A mapped axis leads: a batch axis where both operands have it, else a free
    axis of one.
    """
    (a_over, b_over), (a_batch, b_batch) = dimension_numbers
    values = [
        v if d is None else jnp.moveaxis(v, d, 0)
        for v, d in zip(values, dims, strict=True)
    ]
    (a_over, a_batch), (b_over, b_batch) = (
        tuple(tuple(i + (d is not None) for i in each) for each in pair)
        for pair, d in zip(((a_over, a_batch), (b_over, b_batch)), dims, strict=True)
    )
    if None not in dims:
        numbers, place = ((a_over, b_over), ((0, *a_batch), (0, *b_batch))), 0
    else:
        numbers = ((a_over, b_over), (a_batch, b_batch))
        place = len(a_batch) + (
            0 if dims[1] is None else len(_rest(values[0].ndim, a_over, a_batch))
        )
    return contract(*values, dimension_numbers=numbers, **params), place


batching.primitive_batchers[contraction_p] = _batched


def devices_of(ctx: Any) -> int:
    """Over how many devices XLA splits what is lowered here: those of mesh axes that
    ``shard_map`` handles are not its own.
    """
    where = ctx.module_context.axis_context
    mesh = getattr(where, "mesh", None)
    if mesh is None:
        return getattr(where, "num_devices", None) or 1
    return _size(
        size for name, size in mesh.shape.items() if name not in where.manual_axes
    )


def check_one_device(who: str, ctx: Any) -> None:
    """Raise where what is lowered here is to be split over devices, and ``who`` is a
    call that XLA cannot split.
    """
    if devices_of(ctx) > 1:
        raise ValueError(
            f"{who}: this program is compiled for {devices_of(ctx)} devices, and XLA "
            f"cannot split one kernel over them: call "
            "unroll inside jax.shard_map(..., check_vma=False), so that each device "
            "walks its part of the batch, or use "
            "engine=jaxrnn.Scan(), which is split by itself"
        )


_lower_merged = mlir.lower_fun(_merged, multiple_results=False)
_lower_apart = mlir.lower_fun(product, multiple_results=False)


def _lower(ctx: Any, a: Any, b: Any, **params: Any) -> Any:
    return (_lower_apart if devices_of(ctx) > 1 else _lower_merged)(ctx, a, b, **params)


mlir.register_lowering(contraction_p, _lower)
