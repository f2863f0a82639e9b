"""Contractions over several axes at once, such as a weight gradient's (time and batch).

XLA's CPU compiler makes a strided copy of the cotangent if two axes are contracted, so
on one device they are merged into one first, for a plain 2-D product. Arrays whose
batch is sharded over devices must not be reshaped so: the batch is the minor part of
the merged axis, which the partitioner cannot keep sharded, and every device would
gather the whole sequence. Without the reshape each device multiplies its own part, and
one all-reduce adds the products.

Which of the two it must be is known only when a program is lowered. This is therefore a
primitive, ``dot_general`` with a lowering of its own. Policies of ``jax.checkpoint``
that name ``dot_general`` do not apply to it; the steps that engines unroll contain
``dot_general`` itself.

Terms: dimension numbers ``((a_over, b_over), (a_batch, b_batch))`` as in
``jax.lax.dot_general``; "over" axes are contracted, the others that are no batch axes
are "free". The result has the axes (batch, free of a, free of b).
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

from .foreign import optional_attribute, varying_axes

Dims = tuple[int, ...]


def contract(
    a: Any, b: Any, *, dimension_numbers: Any, precision: Any = None, **params: Any
) -> Any:
    """Compute ``jax.lax.dot_general``, with axes merged where that is faster.

    ``dot_general`` itself is used for arrays whose types hold their sharding (explicit
    meshes, ``jax.shard_map`` with ``check_vma=True``), for symbolic sizes, and if there
    are no neighboring axes to merge.

    Args:
        a, b: the operands, of the same dtype.
        dimension_numbers, precision, **params: as for ``jax.lax.dot_general``.

    Returns:
        The product, as that of ``jax.lax.dot_general``.
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
    if not is_plain(avals) or all(len(run) == 1 for run in runs):
        return jax.lax.dot_general(a, b, numbers, precision, **params)
    if precision is None:
        config: Any = jax.config
        precision = config.jax_default_matmul_precision
    return contraction_p.bind(
        a, b, dimension_numbers=numbers, precision=precision, **params
    )


def is_plain(avals: Sequence[Any]) -> bool:
    """Return whether the types hold no sharding and all sizes are integers."""
    varying = any(varying_axes(a) for a in avals)
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
    """Compute what `contract` means by one ``dot_general``, without merging axes."""
    return jax.lax.dot_general(a, b, dimension_numbers, precision, **params)


def _merged(a: Any, b: Any, *, dimension_numbers: Any, **params: Any) -> Any:
    """Compute the product with neighboring axes of the same kind merged into one.

    Free axes are merged on either side. Contracted axes are merged if they are in order
    and next to each other in both operands. The result is reshaped to the shape that
    ``dot_general`` would have given it.
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
    can_merge_over = _follows(a_over) and _follows(b_over)
    merged, overs, batches = [], [], []
    for value, over, batch in ((a, a_over, a_batch), (b, b_over, b_batch)):
        # Batch axes stay single, as do contracted axes that cannot be merged.
        if can_merge_over:
            runs = _runs(value.ndim, over, batch)
        else:
            runs = _runs(value.ndim, (), (*batch, *over))
        sizes = [_size(value.shape[i] for i in run) for run in runs]
        new_axis = {i: axis for axis, run in enumerate(runs) for i in run}
        merged.append(value.reshape(sizes))
        overs.append(tuple(dict.fromkeys(new_axis[i] for i in over)))
        batches.append(tuple(new_axis[i] for i in batch))
    return product(
        *merged, dimension_numbers=(tuple(overs), tuple(batches)), **params
    ).reshape(shape)


def _size(sizes: Any) -> int:
    """Multiply sizes, which are plain integers."""
    product_of_sizes = 1
    for size in sizes:
        product_of_sizes *= size
    return product_of_sizes


def _follows(dims: Dims) -> bool:
    """Return whether each axis follows directly on the one before."""
    return all(b == a + 1 for a, b in itertools.pairwise(dims))


def _runs(ndim: int, over: Dims, single: Dims) -> list[list[int]]:
    """Group all axes, in order, into runs of neighbors that are all over or all free.

    Axes of ``single`` form runs of their own.
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
def _in_one_program(params: tuple[tuple[str, Any], ...]) -> Any:
    """Return the compiled product for eager calls, cached by its parameters."""
    return jax.jit(functools.partial(_merged, **dict(params)))


@contraction_p.def_impl
def _impl(a: Any, b: Any, **params: Any) -> Any:
    """Evaluate the primitive eagerly."""
    return _in_one_program(tuple(params.items()))(a, b)


@functools.lru_cache(maxsize=1024)
def _like(a: Any, b: Any, params: tuple[tuple[str, Any], ...]) -> Any:
    """Return the shape and dtype of the product, cached by those of the operands."""
    return jax.eval_shape(functools.partial(product, **dict(params)), a, b)


@contraction_p.def_abstract_eval
def _abstract(a: Any, b: Any, **params: Any) -> Any:
    """Return the abstract value of the result."""
    like = _like(
        *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (a, b)), tuple(params.items())
    )
    return jax.core.ShapedArray(like.shape, like.dtype)


def _rest(ndim: int, *taken: Dims) -> list[int]:
    """Return the axes that are in none of ``taken``, in order."""
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
    """Return the cotangent of ``a``.

    With batch axes n, free axes i of a and j of b, and contracted axes k::

        y_nij = sum_k a_nik b_njk       =>      a_bar_nik = sum_j y_bar_nij b_njk

    which is another contraction, over the free axes of b.

    Args:
        cotangent: y_bar, with the axes (n, i, j); or (n, j, i) if ``swapped``, where
            ``a`` was the second operand of the product.
        a: the operand whose cotangent is wanted, known by its type only.
        b: the other operand.
    """
    (a_over, b_over), (a_batch, b_batch) = dimension_numbers
    a_free, b_free = _rest(a.aval.ndim, a_over, a_batch), _rest(b.ndim, b_over, b_batch)
    count = len(a_batch)
    first_j = count if swapped else count + len(a_free)
    over = tuple(range(first_j, first_j + len(b_free)))
    numbers = ((over, tuple(b_free)), (tuple(range(count)), tuple(b_batch)))
    # The result has the axes (n, i, k), with k in the order in which b has them.
    # `order` lists the axes of a in that order; the transpose undoes it.
    order = [
        *a_batch,
        *a_free,
        *(a_over[i] for i in sorted(range(len(b_over)), key=b_over.__getitem__)),
    ]
    a_bar = contract(cotangent, b, dimension_numbers=numbers, **params)
    a_bar = jax.lax.transpose(a_bar, tuple(order.index(i) for i in range(a.aval.ndim)))
    return a_bar.astype(a.aval.dtype)


def _transpose_second(
    cotangent: Any, a: Any, b: Any, *, dimension_numbers: Any, **params: Any
) -> Any:
    """Return the cotangent of ``b``: `_transpose_first` with the operands swapped."""
    numbers = tuple((second, first) for first, second in dimension_numbers)
    return _transpose_first(
        cotangent, b, a, dimension_numbers=numbers, swapped=True, **params
    )


ad.defbilinear(contraction_p, _transpose_first, _transpose_second)


def _batched(
    values: Sequence[Any], dims: Sequence[Any], *, dimension_numbers: Any, **params: Any
) -> tuple[Any, int]:
    """Move the mapped axis of each operand to the front, and contract.

    It becomes a batch axis if both operands have it, otherwise a free axis of the one
    that has it.

    Returns:
        The product, and the place of the mapped axis in it.
    """
    (a_over, b_over), (a_batch, b_batch) = dimension_numbers
    values = [
        v if d is None else jnp.moveaxis(v, d, 0)
        for v, d in zip(values, dims, strict=True)
    ]
    # All other axes of an operand with a mapped axis are now one place further back.
    (a_over, a_batch), (b_over, b_batch) = (
        tuple(tuple(i + (d is not None) for i in axes) for axes in pair)
        for pair, d in zip(((a_over, a_batch), (b_over, b_batch)), dims, strict=True)
    )
    if None not in dims:
        numbers, place = ((a_over, b_over), ((0, *a_batch), (0, *b_batch))), 0
    else:
        # The result is (batch, free of a, free of b); the mapped axis comes first among
        # the free axes of its operand.
        numbers = ((a_over, b_over), (a_batch, b_batch))
        place = len(a_batch) + (
            0 if dims[1] is None else len(_rest(values[0].ndim, a_over, a_batch))
        )
    return contract(*values, dimension_numbers=numbers, **params), place


batching.primitive_batchers[contraction_p] = _batched


def devices_of(ctx: Any) -> int:
    """Return over how many devices XLA partitions the program that is lowered here.

    Mesh axes that ``shard_map`` handles (manual axes) do not count.
    """
    axis_context = ctx.module_context.axis_context
    # Which of the two it has depends on how the program was made.
    mesh = optional_attribute(axis_context, "mesh")
    if mesh is None:
        return optional_attribute(axis_context, "num_devices") or 1
    return _size(
        size
        for name, size in mesh.shape.items()
        if name not in axis_context.manual_axes
    )


def check_one_device(who: str, ctx: Any) -> None:
    """Raise ValueError if XLA partitions this program, but cannot partition ``who``."""
    if devices_of(ctx) > 1:
        raise ValueError(
            f"{who}: this program is compiled for {devices_of(ctx)} devices, and XLA "
            f"cannot split one kernel over them: call unroll inside "
            f"jax.shard_map(..., check_vma=False), so that each device computes its "
            f"part of the batch, or use engine=jaxrnn.Scan(), which XLA can split"
        )


_lower_merged = mlir.lower_fun(_merged, multiple_results=False)
_lower_apart = mlir.lower_fun(product, multiple_results=False)


def _lower(ctx: Any, a: Any, b: Any, **params: Any) -> Any:
    """Merge axes if the program is for one device."""
    return (_lower_apart if devices_of(ctx) > 1 else _lower_merged)(ctx, a, b, **params)


mlir.register_lowering(contraction_p, _lower)
