"""Where the arrays of a training step are, when its batch is split over devices.

The devices may be those of one process, or of many that ``jax.distributed`` connects.
Every process then runs the same program on its own rows of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.types import PyTree
from ..truncation.tbptt import TBPTTState, Window
from .state import TrainState


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, P())


def split_at(mesh: Mesh, axis: int) -> NamedSharding:
    """Return the sharding of arrays whose ``axis`` is split over the devices."""
    return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names[0]))


def without_axis_types(mesh: Mesh) -> Mesh:
    """Return a mesh of automatic axes.

    With explicit axes, jit would require every array to be sharded beforehand.
    """
    return Mesh(mesh.devices, mesh.axis_names)


def window_shardings(mesh: Mesh) -> Window:
    """Return the shardings of a window: time leads, the streams follow.

    A context has no time, so that its streams lead.
    """
    rows: Any = split_at(mesh, 1)
    fields = dict.fromkeys(Window._fields, rows) | {
        "key": replicated(mesh),
        "context": split_at(mesh, 0),
    }
    return Window(**fields)


def stream_shardings(mesh: Mesh) -> Any:
    """Return the shardings of a `TrainState` whose carry is a `TBPTTState`.

    The carries of the streams are split over the devices; all else is replicated.
    """
    streams: Any = split_at(mesh, 0)
    carry: Any = TBPTTState(streams, window_shardings(mesh), streams)  # type: ignore[arg-type]
    return replicated_state(mesh)._replace(carry=carry)


def replicated_state(mesh: Mesh) -> Any:
    """Return the shardings of a `TrainState` that every device holds whole."""
    everywhere: Any = replicated(mesh)
    return TrainState(*[everywhere] * len(TrainState._fields))


def shard_state(state: TrainState, mesh: Mesh) -> TrainState:
    """Return a `TrainState` on the devices of a mesh of one axis.

    The carries of the streams, ``(B, ...)``, are split over the axis; parameters, the
    state of the optimizer and all else are copied to every device. The functions of
    `make_train_step` and `make_batch_step` do this with a state that is not there yet.
    It is needed where the arrays of all processes must exist before the first step,
    such as for a checkpoint to restore.

    Args:
        state: a `TrainState`. If there are several processes, it is the same in each.
        mesh: a mesh of one axis, over the devices of all processes.

    Returns:
        The `TrainState` with the same numbers.

    Raises:
        ValueError: if the mesh has more than one axis.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.training import fresh_state, make_optimizer, shard_state
        >>> mesh = jax.sharding.Mesh(jax.devices(), ("streams",))
        >>> params = {"w": jnp.ones(3)}
        >>> state = fresh_state(make_optimizer(), params, jax.random.key(0))
        >>> shard_state(state, mesh).params["w"].sharding.is_fully_replicated
        True
    """
    check_mesh(mesh, "shard_state")
    mesh = without_axis_types(mesh)
    if is_sharded(state, mesh):
        return state
    is_streams = isinstance(state.carry, TBPTTState)
    return place(state, (stream_shardings if is_streams else replicated_state)(mesh))


def is_sharded(state: TrainState, mesh: Mesh) -> bool:
    """Return whether a state is on the devices of ``mesh``."""
    sharding = state.step.sharding
    return isinstance(sharding, NamedSharding) and sharding.mesh == mesh


def place(tree: PyTree, shardings: PyTree) -> Any:
    """Move arrays to where ``shardings``, a prefix of the tree, have them.

    Arrays over several processes stay as they are. Of others, every process holds the
    whole, and gives its own devices what they need.
    """
    return jax.tree.map(
        lambda sharding, part: jax.tree.map(lambda a: placed(a, sharding), part),
        shardings,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, NamedSharding),
    )


def placed(array: Any, sharding: NamedSharding) -> Any:
    """Move one array."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return array
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda at: whole[at])


def zero_like(array: jax.Array) -> jax.Array:
    """Return zeros with the shape and the place of an array.

    They are committed to their device if the array is, since a compiled function is
    compiled again for arguments of the other kind.
    """
    if array.is_fully_addressable:
        return jnp.zeros_like(array)
    zeros = np.zeros(array.shape, array.dtype)
    return jax.make_array_from_callback(
        array.shape, array.sharding, lambda at: zeros[at]
    )


def is_finite(array: jax.Array) -> bool:
    """Return whether all numbers that this process has of an array are finite."""
    parts = (
        [array]
        if array.is_fully_addressable
        else [shard.data for shard in array.addressable_shards]
    )
    return all(np.isfinite(np.asarray(part)).all() for part in parts)


def local_rows(mesh: Mesh, batch: int) -> slice:
    """Return which rows of a batch the devices of this process have.

    Args:
        mesh: a mesh of one axis, in which the devices of a process follow each other,
            as in ``jax.devices()``.
        batch: B, the number of rows of the whole batch.

    Returns:
        A slice of the B rows; all of them if there is one process.

    Raises:
        ValueError: if the devices do not divide the batch, or the rows of this process
            do not follow each other.

    Example:
        >>> import jax
        >>> from jaxrnn.training import local_rows
        >>> mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
        >>> local_rows(mesh, 6 * len(jax.devices())) == slice(0, 6 * mesh.size)
        True
    """
    check_mesh(mesh, "local_rows")
    if batch % mesh.size:
        raise ValueError(
            f"local_rows: {mesh.size} devices do not divide a batch of {batch} rows: "
            f"take a multiple of {mesh.size}"
        )
    mine = jax.process_index()
    own = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == mine]
    if not own or own != list(range(own[0], own[-1] + 1)):
        raise ValueError(
            f"local_rows: the devices of process {mine} are those at {own} of the "
            f"mesh, but must be some that follow each other; "
            "jax.sharding.Mesh(jax.devices(), ('rows',)) has them so"
        )
    each = batch // mesh.size
    return slice(own[0] * each, (own[-1] + 1) * each)


def global_batch(local: PyTree, mesh: Mesh, axis: int = 0) -> Any:
    """Return arrays over all processes, of which each gives its own rows.

    Args:
        local: a pytree of arrays that hold the rows `local_rows` of the batch.
        mesh: a mesh of one axis, over which the rows are split.
        axis: the axis of the rows: 0, or 1 where time leads.

    Returns:
        The pytree with arrays of the whole batch, split over the devices. If there is
        one process, they hold the numbers of ``local``.

    Raises:
        ValueError: if the mesh has more than one axis.

    Example:
        >>> import jax, numpy as np
        >>> from jaxrnn.training import global_batch, local_rows
        >>> mesh = jax.sharding.Mesh(jax.devices(), ("rows",))
        >>> B = 2 * mesh.size
        >>> mine = np.arange(B)[local_rows(mesh, B)]
        >>> global_batch(mine, mesh).shape == (B,)
        True
    """
    check_mesh(mesh, "global_batch")
    sharding = split_at(without_axis_types(mesh), axis)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), local
    )


def on_mesh(state: TrainState, mesh: Mesh | None) -> TrainState:
    """Return a state as the step of several processes takes it, or as it is.

    A step of one process moves a new state itself.
    """
    if mesh is None or not mesh.is_multi_process:
        return state
    return shard_state(state, mesh)


def by_rows(
    batches: Callable[[int, slice], PyTree], mesh: Mesh | None, batch: int, axis: int
) -> Callable[[int], PyTree]:
    """Return the function from a step to its batch, of which each process builds rows.

    Args:
        batches: ``batches(step, rows)``, the given rows of the batch of a step.
        mesh: the devices, or None for one.
        batch: the number of rows.
        axis: the axis of the rows.

    Returns:
        The function. In one process its batches are NumPy arrays, which jit splits.
    """
    if mesh is None or not mesh.is_multi_process:
        return lambda step: batches(step, slice(None))
    rows = local_rows(mesh, batch)
    return lambda step: global_batch(batches(step, rows), mesh, axis)


def check_mesh(mesh: Mesh, what: str) -> None:
    """Check that the mesh has one axis; ``what`` is the function that needs it."""
    if len(mesh.axis_names) != 1:
        raise ValueError(
            f"{what}: the mesh must have one axis, over which rows or streams are "
            f"split, but it has {mesh.axis_names}; "
            "jax.sharding.Mesh(jax.devices(), ('streams',)) has one"
        )


def check_axis_name(axis_name: str | None, mesh: Mesh) -> None:
    """Check that a `TBPTT` that sums over an axis means that of the mesh."""
    if axis_name not in (None, mesh.axis_names[0]):
        raise ValueError(
            f"make_train_step: the axis of the mesh is {mesh.axis_names[0]!r}, but "
            f"TBPTT(axis_name={axis_name!r}) sums over another one: leave axis_name "
            f"out, or give the name of the mesh's axis"
        )


def check_streams(batch: tuple[int, ...], mesh: Mesh) -> None:
    """Check that the number of devices divides the first batch axis."""
    if not batch or batch[0] % mesh.size:
        raise ValueError(
            f"make_train_step: the streams are split over {mesh.size} devices, so the "
            f"first batch axis must be a multiple of "
            f"{mesh.size}, but the state was started with batch_shape={tuple(batch)}"
        )


def split_batch(batch: PyTree, mesh: Mesh | None, axis: int) -> Any:
    """Return a batch that is made inside a step, with its rows split over devices."""
    if mesh is None:
        return batch
    where = without_axis_types(mesh)
    return jax.tree.map(
        lambda a: jax.lax.with_sharding_constraint(a, rows_of(a, where, axis)), batch
    )


def rows_of(array: Any, mesh: Mesh, axis: int) -> NamedSharding:
    """Return the sharding of the rows of an array, which devices may not divide."""
    shape = np.shape(array)
    if len(shape) <= axis or shape[axis] % mesh.size:
        return replicated(mesh)
    return split_at(mesh, axis)
