"""The layers of a stack on devices of their own, block after block of steps.

While one device runs a block of steps, the device of the layer above runs the block
before, whose inputs it was sent. Appleyard et al. (2016, arXiv:1604.01946) run the
layers of an LSTM side by side in this way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

from ..core.cell import Cell
from ..core.engine import AbstractEngine
from ..core.explicit_mesh import under_auto_axes
from ..core.flags import select
from ..core.layer import Layer
from ..core.time_split import gathered
from ..core.types import Carry, Params
from ..core.unroll_spec import UnrollSpec
from ..core.validation import check_one_array, describe_tree
from ..layers.compose import Stack
from ..unrolling import unroll, validate


def wavefront(
    layers: Stack,
    params: Params,
    xs: Float[Array, "T *B D"],
    carry: Carry = None,
    *,
    axis: str,
    block: int,
    mesh: Mesh | None = None,
    engine: AbstractEngine | None = None,
    mask: Bool[Array, "T *B"] | None = None,
    resets: Bool[Array, "T *B"] | None = None,
) -> tuple[Carry, Any]:
    """Unroll a stack of N equal layers on N devices, one layer each.

    It computes what ``unroll(layers, params, xs, carry)`` does: bit for bit for cells
    that run step by step, in blocks of two steps or more, and else up to rounding. At
    tick k device l runs the steps of block ``k - l`` by its layer and sends its outputs
    to device l + 1. So there are ``T / block + N - 1`` ticks, each with one permute of
    ``block`` steps' outputs, and a device is busy for a share of ``T / (T + (N - 1)
    block)`` of the time: a shorter block keeps more devices busy, and costs more sends
    and smaller matrix products. The gradient is JAX's, and a wavefront in the other
    direction.

    It is for deep stacks of cells that are not linear in their state, whose time cannot
    be split. Time of linear and matrix cells is split by `jaxrnn.Across`; a batch that
    is large enough is split without either.

    Every device is given all inputs, and at the end the outputs of the last layer. The
    batch may be split over other axes of the mesh.

    Args:
        layers: a `jaxrnn.stack` of N equal cells or layers, with as many output as
            input features.
        params: its parameters; or those of all layers in one array each, from
            `stacked_params`, where one device could not hold them all.
        xs: the inputs, ``(T, *B, D)``.
        carry: the carry before the first step, as for `jaxrnn.unroll`.
        axis: the mesh axis whose N devices run a layer each.
        block: the number of steps in a block, a divisor of T.
        mesh: the mesh; by default that of ``jax.set_mesh``.
        engine: the engine that runs the steps of a block.
        mask: as for `jaxrnn.unroll`.
        resets: as for `jaxrnn.unroll`.

    Returns:
        ``(carry, ys)``: the last carry of every layer, a tuple of N, and the outputs
        ``(T, *B, D)`` of the last one.

    Raises:
        TypeError: if ``layers`` is no stack, or its layers are not equal.
        ValueError: for a block that does not divide T, another number of layers than
            devices, layers that look ahead or draw random numbers, or outputs that are
            not like the inputs.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from jaxrnn.distributed import wavefront
        >>> devices = jax.devices()
        >>> mesh = jax.sharding.Mesh(devices, ("layer",))
        >>> layers = jaxrnn.stack(*[jaxrnn.GRU(4)] * len(devices))
        >>> params = layers.init(jax.random.key(0), 4)
        >>> xs = jax.random.normal(jax.random.key(1), (6, 2, 4))
        >>> _, ys = wavefront(layers, params, xs, axis="layer", block=2, mesh=mesh)
        >>> bool((ys == jaxrnn.unroll(layers, params, xs)[1]).all())
        True
    """
    layer = _layer_of(layers)
    check_one_array("wavefront", xs)
    spec = UnrollSpec(engine, mask, resets)
    each = _unstacked(layers, params)
    validate(layers, each, xs, carry, spec)
    size = _size_of(axis, mesh)
    _check_sizes(layers, layer, each, xs, block, axis, size)
    if not xs.shape[0]:
        last, ys, *_ = unroll(layers, each, xs, carry, mask=mask, resets=resets)
        return last, ys
    if carry is None:
        carry = layers.initial_carry(each, xs.shape[1:-1])

    def run(xs, params, carry, mask, resets):
        return _over_devices(
            Program(layer, axis, block, mesh, engine), params, carry, xs, mask, resets
        )

    given = each if each is params else Stacked(params)
    last, ys = under_auto_axes(run, xs.ndim - 2, xs, given, tuple(carry), mask, resets)
    return last, ys


def stacked_params(layers: Stack, params: Params) -> Any:
    """Return the parameters of equal layers in one array each, ``(N, ...)``.

    Placed over the axis of a `wavefront`, by ``jax.device_put(stacked,
    NamedSharding(mesh, PartitionSpec(axis)))``, every device holds those of its own
    layer only. `wavefront` takes them, and their gradient has the same form.

    Args:
        layers: a stack of N equal layers.
        params: its parameters.

    Returns:
        The parameters of one layer, with an axis of N before their own.

    Raises:
        TypeError: if ``layers`` is no stack, or its layers are not equal.

    Example:
        >>> import jax, jaxrnn
        >>> from jaxrnn.distributed import stacked_params
        >>> layers = jaxrnn.stack(jaxrnn.GRU(4), jaxrnn.GRU(4))
        >>> params = layers.init(jax.random.key(0), 4)
        >>> stacked_params(layers, params)["bias"].shape
        (2, 12)
    """
    _layer_of(layers)
    return _stack([params[f"layer_{i}"] for i in range(len(layers.layers))])


def _layer_of(layers: Any) -> Cell | Layer:
    """Return the layer of which there are N, after a check of all of them."""
    if not isinstance(layers, Stack):
        raise TypeError(
            f"wavefront: layers must be a jaxrnn.stack of equal layers, "
            f"stack(*[LSTM(512)] * 8), but it is a {type(layers).__name__}"
        )
    first = layers.layers[0]
    for i, other in enumerate(layers.layers):
        if other != first:
            raise TypeError(
                f"wavefront: every device runs the same program, so all layers must be "
                f"equal, but layer 0 is {first!r} and layer {i} is {other!r}: unroll "
                f"what differs before or after"
            )
    if first.requires_key:
        raise ValueError(
            f"wavefront: {type(first).__name__} draws random numbers, which devices "
            f"would draw alike: use jaxrnn.inference, or dropout before and after"
        )
    if not first.causal:
        raise ValueError(
            f"wavefront: {type(first).__name__} looks ahead, so the layer above cannot "
            f"begin before it has ended: use jaxrnn.unroll"
        )
    return first


def _size_of(axis: str, mesh: Mesh | None) -> int:
    """Return the number of devices on the axis."""
    found: Any = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    if axis not in found.shape:
        raise ValueError(
            f"wavefront: there is no mesh axis {axis!r}, only {tuple(found.shape)}: "
            f"give mesh=jax.sharding.Mesh(jax.devices(), ({axis!r},)), or name an axis "
            f"of that of jax.set_mesh"
        )
    return found.shape[axis]


def _check_sizes(
    layers: Stack,
    layer: Cell | Layer,
    params: Params,
    xs: Array,
    block: int,
    axis: str,
    size: int,
) -> None:
    """Check the numbers of layers and steps, and that a layer takes what it makes."""
    count, steps = len(layers.layers), xs.shape[0]
    if count != size:
        raise ValueError(
            f"wavefront: every device of the axis {axis!r} runs one layer, but there "
            f"are {count} layers and {size} devices: take a mesh of {count}"
        )
    whole = isinstance(block, int) and not isinstance(block, bool) and block >= 1
    if not whole or steps % block:
        raise ValueError(
            f"wavefront: block must be a number of steps that divides T = {steps}, "
            f"but it is {block!r}"
        )
    made = jax.eval_shape(lambda p, x: unroll(layer, p, x)[1], params["layer_0"], xs)
    if (
        not isinstance(made, jax.ShapeDtypeStruct)
        or made.shape != xs.shape
        or made.dtype != xs.dtype
    ):
        raise ValueError(
            f"wavefront: what a layer makes is sent to one like it, so outputs must be "
            f"like inputs, {describe_tree(xs)}, but they are {describe_tree(made)}: "
            f"unroll a first layer of another size before"
        )


def _unstacked(layers: Stack, params: Params) -> Any:
    """Return the parameters of every layer, as those of the stack."""
    count = len(layers.layers)
    names = {f"layer_{i}" for i in range(count)}
    if isinstance(params, dict) and set(params) & names:
        return params
    leaves = jax.tree.leaves(params)
    if not leaves or any(jnp.ndim(a) == 0 or len(a) != count for a in leaves):
        raise ValueError(
            f"wavefront: params must be those of the stack, or those of its {count} "
            f"layers in one array each, from stacked_params, but they are "
            f"{describe_tree(params)}"
        )
    return {
        f"layer_{i}": jax.tree.map(lambda a, i=i: a[i], params) for i in range(count)
    }


def _stack(trees: Any) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


class Stacked(NamedTuple):
    """The parameters of all layers in one array each, ``(N, ...)``."""

    params: Params


class Program(NamedTuple):
    """What every device runs, and where; see `wavefront`."""

    layer: Cell | Layer
    axis: str
    block: int
    mesh: Mesh | None
    engine: AbstractEngine | None


def _over_devices(
    program: Program, params: Params, carry: Carry, xs: Array, mask: Any, resets: Any
) -> tuple[Carry, Array]:
    """Run all ticks on all devices."""
    axis, shared = program.axis, PartitionSpec()

    def local(params, carry, xs, mask, resets):
        place = jax.lax.axis_index(axis)

        def own(trees):
            """Return that of this device's layer."""
            return jax.tree.map(
                lambda a: jax.lax.dynamic_index_in_dim(a, place, keepdims=False),
                _stack(trees),
            )

        if isinstance(params, Stacked):
            params = jax.tree.map(lambda a: a[0], params.params)
        else:
            params = own([params[f"layer_{i}"] for i in range(len(params))])

        def run(carry, x, mask, resets):
            how = {"engine": program.engine, "mask": mask, "resets": resets}
            return unroll(program.layer, params, x, carry, **how)

        count = len(carry)
        carry, ys = _ticks(run, own(carry), (xs, mask, resets), axis, program.block)
        carries = jax.tree.map(lambda a: gathered(a, axis), carry)
        ys = jnp.where(place == count - 1, ys, jnp.zeros_like(ys))
        each = (jax.tree.map(lambda a, i=i: a[i], carries) for i in range(count))
        return tuple(each), jax.lax.psum(ys, axis)

    of_params = PartitionSpec(axis) if isinstance(params, Stacked) else shared
    return jax.shard_map(
        local,
        mesh=program.mesh,
        axis_names={axis},
        in_specs=(of_params, shared, shared, shared, shared),
        out_specs=(shared, shared),
        check_vma=False,
    )(params, carry, xs, mask, resets)


def _ticks(
    run: Any, carry: Carry, sequence: tuple[Array, Any, Any], axis: str, block: int
) -> tuple[Carry, Array]:
    """Run this device's layer over all blocks, each as soon as it is there.

    Returns:
        The last carry, and the outputs of this device's layer.
    """
    size, place = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    steps = sequence[0].shape[0]
    count = steps // block
    blocks = jax.tree.map(lambda a: a.reshape(count, block, *a.shape[1:]), sequence)
    upwards = [(i, i + 1) for i in range(size - 1)]

    def tick(state, k):
        carry, sent = state
        number = k - place
        there = (number >= 0) & (number < count)
        x, mask, resets = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(
                a, jnp.clip(number, 0, count - 1), keepdims=False
            ),
            blocks,
        )
        x = select(place == 0, x, sent)

        def rest(carry, x, mask, resets):
            return carry, jnp.zeros_like(x)

        carry, ys = jax.lax.cond(there, run, rest, carry, x, mask, resets)
        return (carry, jax.lax.ppermute(ys, axis, upwards)), ys

    ticks = jnp.arange(count + size - 1, dtype=jnp.int32)
    (carry, _), ys = jax.lax.scan(tick, (carry, jnp.zeros_like(blocks[0][0])), ticks)
    own = jax.lax.dynamic_slice_in_dim(ys, place, count)
    return carry, own.reshape(steps, *ys.shape[2:])
