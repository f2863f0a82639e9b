"""Convolutions of a step and of all steps at once, as each platform needs them.

Two things depend on what a program is compiled for. It is known only when the program
is lowered, so that this is a primitive with lowerings of its own, as contractions are
(`jaxrnn.core.contraction`).

- *Devices.* A convolution has one batch axis and one contracted axis. What is done for
  all steps at once needs one axis in which time and batch are merged. In the order in
  which arrays lie in memory, ``(T, B)``, time is its major part; JAX's rule for
  ``vmap`` merges in this order. If the batch is sharded over devices, the partitioner
  cannot keep such an axis sharded, and every device gathers the whole sequence. It can
  keep ``(B, T)``, which would cost a transposed copy on one device.
- *CPU.* XLA:CPU has a fast convolution for one layout: the batch first, the features
  last, and the kernel as ``(*K, in, out)``. It transposes operands to this layout at
  the top of a program, but not in a loop, where the gradient of a kernel is 20 times
  slower without it. So operands are transposed here.

Terms: ``dimension_numbers`` of a convolution name a batch and a feature axis of its
first operand, of which the latter is contracted; "out features" and "in features" of
its second operand, of which the latter are contracted; and a batch and a feature axis
of the result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import JaxprEqn, Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

from .contraction import devices_of, is_plain

convolution_p = Primitive("jaxrnn_convolution")


def convolution(
    x: Array,
    kernel: Array,
    *,
    over_steps: bool,
    maps_steps: bool = False,
    batch_first: bool = False,
    channels_last: bool = False,
    **params: Any,
) -> Array:
    """Compute a convolution of one step, or of all of them.

    Args:
        x: the first operand, with a leading axis of steps if ``over_steps``.
        kernel: the second operand, the same for all steps.
        over_steps: whether ``x`` and the result have an axis of steps.
        maps_steps: whether an axis that ``vmap`` adds counts steps. Otherwise it is one
            more axis of the batch. It is of no account here.
        batch_first: whether the batch is the major part of the axis in which it is
            merged with the steps.
        channels_last: whether operands are transposed to the layout of XLA:CPU.
        **params: those of the primitive ``conv_general_dilated``.
    """
    convolve = _channels_last if channels_last else jax.lax.conv_general_dilated_p.bind
    if not over_steps:
        return convolve(x, kernel, **params)
    if not batch_first:
        return jax.vmap(lambda x: convolve(x, kernel, **params))(x)
    numbers = params["dimension_numbers"]
    y = convolve(_merge_minor(x, numbers.lhs_spec[0]), kernel, **params)
    y = _split(y, numbers.out_spec[0], x.shape[0], minor=True)
    return jnp.moveaxis(y, numbers.out_spec[0] + 1, 0)


def _channels_last(
    x: Array, kernel: Array, *, dimension_numbers: Any, **params: Any
) -> Array:
    """Compute a convolution in the layout for which XLA:CPU has a fast one."""
    (batch, feature, *places), (outs, ins, *window), out = dimension_numbers
    last = x.ndim - 1
    axes = (last, *range(1, last))  # of the features, and of the places
    layout = jax.lax.ConvDimensionNumbers(
        (0, *axes), (last, last - 1, *range(last - 1)), (0, *axes)
    )
    y = jax.lax.conv_general_dilated_p.bind(
        jnp.transpose(x, (batch, *places, feature)),
        jnp.transpose(kernel, (*window, ins, outs)),
        dimension_numbers=layout,
        **params,
    )
    places_of_result = [out[0], *out[2:], out[1]]
    return jnp.transpose(y, [places_of_result.index(axis) for axis in range(y.ndim)])


def _merge_minor(x: Array, axis: int) -> Array:
    """Merge the leading axis into a later one, as its minor part.

    ``axis`` is counted without the leading axis.
    """
    return _merge(jnp.moveaxis(x, 0, axis + 1), axis)


def _merge_major(x: Array, axis: int) -> Array:
    """Merge the leading axis into a later one, as its major part."""
    return _merge(jnp.moveaxis(x, 0, axis), axis)


def _merge(x: Array, axis: int) -> Array:
    """Merge an axis and the next one."""
    size = x.shape[axis] * x.shape[axis + 1]
    return x.reshape(*x.shape[:axis], size, *x.shape[axis + 2 :])


def _split(x: Array, axis: int, parts: int, *, minor: bool = False) -> Array:
    """Split an axis in two; its major part, or its minor one, has ``parts`` entries."""
    rest = x.shape[axis] // parts
    sizes = (rest, parts) if minor else (parts, rest)
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def own_convolutions(
    eqns: Iterable[JaxprEqn], *, maps_steps: bool = False
) -> dict[int, Callable[[Array, Array], Array]]:
    """Return functions that compute the convolutions of a step.

    Args:
        eqns: the equations of a step.
        maps_steps: whether they run in a ``vmap`` whose axis counts steps.

    Returns:
        Functions of both operands, by the ``id`` of each equation that is a
        convolution, but for those that say how their result lies on an explicit mesh.
    """
    return {
        id(eqn): functools.partial(
            _bind, **eqn.params | {"out_sharding": None}, maps_steps=maps_steps
        )
        for eqn in eqns
        if eqn.primitive.name == "conv_general_dilated" and not _is_placed(eqn.params)
    }


def _bind(
    x: Array,
    kernel: Array,
    *,
    over_steps: bool = False,
    maps_steps: bool = False,
    **params: Any,
) -> Array:
    """Bind the primitive, or compute what it stands for if types hold a sharding."""
    is_typed = not is_plain([jax.typeof(x), jax.typeof(kernel)])
    convolve = convolution if is_typed else convolution_p.bind
    return convolve(x, kernel, over_steps=over_steps, maps_steps=maps_steps, **params)


def can_sum_over_steps(eqn: JaxprEqn) -> bool:
    """Return whether `sum_over_steps` applies to an equation."""
    return (
        eqn.primitive.name == "conv_general_dilated"
        and eqn.params["feature_group_count"] == 1
        and not _is_placed(eqn.params)
    )


def _is_placed(params: dict[str, Any]) -> bool:
    """Return whether the result of a convolution has a place on an explicit mesh.

    On meshes of other kinds JAX's rules fill in a sharding that says nothing.
    """
    sharding = params["out_sharding"]
    return sharding is not None and AxisType.Explicit in sharding.mesh.axis_types


def contracted_axes(params: dict[str, Any]) -> tuple[int, int]:
    """Return the axes of both operands that a convolution contracts."""
    numbers = params["dimension_numbers"]
    return numbers.lhs_spec[1], numbers.rhs_spec[1]


def sum_over_steps(x: Array, kernels: Array, **params: Any) -> Array:
    """Compute the sum of the convolutions of all steps, as one convolution.

    The steps join the contracted axis::

        sum_t sum_b x_tb * k_tb  =  sum_(t,b) x_(tb) * k_(tb)

    Such a sum is the gradient of a kernel, with pictures as ``x`` and their cotangents
    as ``kernels``; what is contracted is the batch.

    Args:
        x: the first operands, ``(steps, ...)``.
        kernels: the second operands, ``(steps, ...)``.
        **params: those of the equation, which `can_sum_over_steps`.
    """
    params["out_sharding"] = None
    axes = contracted_axes(params)
    return _bind(*map(_merge_major, (x, kernels), axes), **params)


def sum_parts_over_steps(x: Array, kernels: Array, **params: Any) -> Array:
    """Compute the sum over steps for each part of the contracted axis.

    The parts are one more spatial axis, along which the convolution has a stride of n -
    1, a kernel of n entries and n - 1 zeros between the entries of ``x``. An output at
    place i reads positions i (n - 1) to i (n - 1) + n - 1 then, of which only n i holds
    an entry, x_i, which meets entry i of the kernel. Groups of features would say the
    same, but the partitioner gathers their operands; this form it knows as one product
    for each part.

    Args:
        x: the first operands, ``(parts, steps, ...)``.
        kernels: the second operands, ``(parts, steps, ...)``.
        **params: as in `sum_over_steps`.

    Returns:
        The sums, ``(parts, ...)``.
    """
    parts = len(x)
    x, kernels = (
        _merge(jnp.moveaxis(a, 1, axis + 1), axis + 1)
        for a, axis in zip((x, kernels), contracted_axes(params), strict=True)
    )
    lhs, rhs, out = (
        (spec[0] + 1, spec[1] + 1, 0, *(axis + 1 for axis in spec[2:]))
        for spec in params["dimension_numbers"]
    )
    inner = {
        **params,
        "out_sharding": None,
        "dimension_numbers": jax.lax.ConvDimensionNumbers(lhs, rhs, out),
        "window_strides": (max(1, parts - 1), *params["window_strides"]),
        "padding": ((0, 0), *params["padding"]),
        "lhs_dilation": (parts, *params["lhs_dilation"]),
        "rhs_dilation": (1, *params["rhs_dilation"]),
    }
    return jax.lax.conv_general_dilated_p.bind(x, kernels, **inner)


@functools.lru_cache(maxsize=256)
def _in_one_program(params: tuple[tuple[str, Any], ...]) -> Any:
    """Return the compiled convolution for eager calls, cached by its parameters."""
    return jax.jit(functools.partial(convolution, **dict(params)))


@convolution_p.def_impl
def _impl(x: Array, kernel: Array, **params: Any) -> Array:
    """Evaluate the primitive eagerly."""
    return _in_one_program(tuple(params.items()))(x, kernel)


@convolution_p.def_abstract_eval
def _abstract(x: Any, kernel: Any, **params: Any) -> Any:
    """Return the abstract value of the result."""
    like = _like(
        *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (x, kernel)),
        tuple(params.items()),
    )
    return jax.core.ShapedArray(like.shape, like.dtype)


@functools.lru_cache(maxsize=1024)
def _like(x: Any, kernel: Any, params: tuple[tuple[str, Any], ...]) -> Any:
    """Return the shape and dtype of the result, cached by those of the operands."""
    return jax.eval_shape(functools.partial(convolution, **dict(params)), x, kernel)


def _transpose(side: int) -> Callable[..., Array]:
    """Return the function that gives the cotangent of an operand."""

    def transpose(cotangent: Array, x: Any, kernel: Any, **params: Any) -> Array:
        known, unknown = (kernel, x) if side == 0 else (x, kernel)

        def product(value: Array) -> Array:
            x, kernel = (value, known) if side == 0 else (known, value)
            return convolution(x, kernel, **params)

        (result,) = jax.linear_transpose(product, unknown.aval)(cotangent)
        return result

    return transpose


ad.defbilinear(convolution_p, _transpose(0), _transpose(1))


def _batched(
    values: Sequence[Any],
    dims: Sequence[Any],
    *,
    over_steps: bool,
    maps_steps: bool,
    **params: Any,
) -> tuple[Array, int]:
    """Let a mapped axis of ``x`` alone be that of the steps, or join the batch.

    What else is mapped is left to JAX's rule.
    """
    x, kernel = values
    alone = dims[0] is not None and dims[1] is None and not over_steps
    if alone and maps_steps:
        return _bind(jnp.moveaxis(x, dims[0], 0), kernel, over_steps=True, **params), 0
    if alone and params["batch_group_count"] == 1:
        numbers, size = params["dimension_numbers"], x.shape[dims[0]]
        x = _merge_major(jnp.moveaxis(x, dims[0], 0), numbers.lhs_spec[0])
        y = _bind(x, kernel, **params)
        return _split(y, numbers.out_spec[0], size), numbers.out_spec[0]
    mapped: Callable[..., Array] = functools.partial(
        convolution, over_steps=over_steps, **params
    )
    return jax.vmap(mapped, in_axes=tuple(dims))(x, kernel), 0


batching.primitive_batchers[convolution_p] = _batched


def _lowering(channels_last: bool) -> Callable[..., Any]:
    """Return the lowering for platforms with or without the layout of XLA:CPU."""
    lower_steps_first, lower_batch_first = (
        mlir.lower_fun(
            functools.partial(
                convolution, batch_first=batch_first, channels_last=channels_last
            ),
            multiple_results=False,
        )
        for batch_first in (False, True)
    )

    def lower(ctx: Any, x: Any, kernel: Any, **params: Any) -> Any:
        lower = lower_batch_first if devices_of(ctx) > 1 else lower_steps_first
        return lower(ctx, x, kernel, **params)

    return lower


mlir.register_lowering(convolution_p, _lowering(channels_last=False))
mlir.register_lowering(convolution_p, _lowering(channels_last=True), platform="cpu")
