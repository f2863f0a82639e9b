"""Training steps compiled for many devices, which may be those of many processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from ..truncation.tbptt import Window
from .sharding import (
    check_mesh,
    check_streams,
    place,
    placed,
    replicated,
    replicated_state,
    rows_of,
    shard_state,
    stream_shardings,
    window_shardings,
    without_axis_types,
)
from .state import TrainState


def compile_for_mesh(
    step: Callable, mesh: Mesh, *, mapped: bool
) -> Callable[[TrainState, Window, Any], TrainState]:
    """Compile a step of `make_train_step` over a mesh; the sharding stays the same.

    Args:
        step: ``step(state, window, progress) -> state``.
        mesh: the devices.
        mapped: whether ``step`` sums over the axis itself, inside ``jax.shard_map``.
            Otherwise XLA splits the whole program.
    """
    mesh = without_axis_types(mesh)
    states, windows = stream_shardings(mesh), window_shardings(mesh)
    shardings = (states, windows, replicated(mesh))
    compiled = jax.jit(
        _over_axis(step, mesh, shardings) if mapped else step,
        donate_argnums=0,
        in_shardings=shardings,
        out_shardings=states,
    )

    def train_step(state: TrainState, window: Window, progress: Any) -> TrainState:
        check_streams(state.carry.fresh.shape, mesh)
        # A fresh or restored state is on one device; without this transfer jit would
        # compile a second program for it.
        state = shard_state(state, mesh)
        # jit does not split NumPy arrays over the devices of several processes, nor
        # arrays of explicit axes.
        if mesh.is_multi_process or _is_explicit():
            window = place(window, windows)
        with _auto_axes(mesh):
            return compiled(state, window, progress)

    return train_step


def compile_for_batches(
    step: Callable, mesh: Mesh, axis: int
) -> Callable[[TrainState, Any, Any], TrainState]:
    """Compile a step of `make_batch_step` over a mesh.

    Args:
        step: ``step(state, batch, progress) -> state``.
        mesh: the devices.
        axis: the axis of the rows.
    """
    check_mesh(mesh, "make_batch_step")
    mesh = without_axis_types(mesh)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=replicated_state(mesh))

    def batch_step(state: TrainState, batch: Any, progress: Any) -> TrainState:
        batch = jax.tree.map(lambda a: placed(a, rows_of(a, mesh, axis)), batch)
        with _auto_axes(mesh):
            return compiled(shard_state(state, mesh), batch, progress)

    return batch_step


def _over_axis(step: Callable, mesh: Mesh, shardings: Any) -> Callable:
    """Return ``step`` inside ``jax.shard_map``."""
    specs = jax.tree.map(
        lambda sharding: sharding.spec,
        shardings,
        is_leaf=lambda leaf: isinstance(leaf, NamedSharding),
    )
    # check_vma=False: TBPTT itself sums over the devices, and JAX must not add sums of
    # its own.
    return jax.shard_map(
        step, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False
    )


def _is_explicit() -> bool:
    """Return whether ``jax.set_mesh`` has set a mesh of explicit axes here."""
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def _auto_axes(mesh: Mesh) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which arrays on ``mesh``, of automatic axes, are computed.

    JAX refuses them where a mesh of explicit axes is set.
    """
    return jax.set_mesh(mesh) if _is_explicit() else contextlib.nullcontext()
