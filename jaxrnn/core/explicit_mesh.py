"""Meshes with explicit axes, where an array's type holds its sharding.

They are the default of ``jax.make_mesh`` in newer versions of jax. With them every
operation must determine the sharding of its result, and a loop's carry must have the
same sharding before and after a step; an unroll guarantees neither. It therefore runs
under ``jax.sharding.auto_axes``, where XLA chooses shardings, and its results get those
that the type of the inputs has: the batch axes of carry and outputs are sharded as
those of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .types import Inputs, PyTree


def mesh_of(tree: PyTree) -> Any:
    """Return the explicit mesh of the first array of ``tree`` that has one, or None."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree)]
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def axes_of(xs: Inputs) -> tuple | None:
    """Return the mesh axes of every axis of the inputs, on a mesh of explicit axes.

    Args:
        xs: the inputs, a pytree of arrays; the first one counts.

    Returns:
        For every axis the name or the names of mesh axes, or None; None alone where
        the type holds no sharding.
    """
    leaf = jax.tree.leaves(xs)[0]
    return _spec(leaf) if mesh_of(leaf) is not None else None


def under_auto_axes(
    function: Callable[..., Any], batch_ndim: int, xs: Inputs, *args: object
) -> Any:
    """Call ``function`` under ``auto_axes`` if any argument has an explicit mesh.

    Args:
        function: ``function(xs, *args) -> (carry, ys, carries)``.
        batch_ndim: the number of batch axes.
        xs: the inputs, a pytree of arrays ``(T, *B, ...)``.
        *args: further arguments of ``function``.

    Returns:
        The results of ``function``, sharded along time and batch as ``xs``.
    """
    mesh = mesh_of((xs, args))
    if mesh is None:
        return function(xs, *args)
    axes = _spec(jax.tree.leaves(xs)[0])[: 1 + batch_ndim]
    batch_shape = jax.tree.leaves(xs)[0].shape[1 : 1 + batch_ndim]

    def sharding_of(leaf: Any, lead: tuple) -> Any:
        has_batch = leaf.shape[len(lead) : len(lead) + len(batch_shape)] == batch_shape
        return NamedSharding(
            mesh, PartitionSpec(*lead, *(axes[1:] if has_batch else ()))
        )

    auto = jax.sharding.auto_axes(
        function, out_sharding=NamedSharding(mesh, PartitionSpec())
    )
    carry, *sequences = jax.eval_shape(auto, xs, *args)
    out = (
        jax.tree.map(lambda leaf: sharding_of(leaf, ()), carry),
        *(
            jax.tree.map(lambda leaf: sharding_of(leaf, axes[:1]), sequence)
            for sequence in sequences
        ),
    )
    return jax.sharding.auto_axes(function, out_sharding=out)(xs, *args)


def _spec(x: Inputs) -> tuple:
    """Return the mesh axes of every axis of an array, None where it is not sharded."""
    spec = tuple(jax.typeof(x).sharding.spec)
    return (*spec, *[None] * (x.ndim - len(spec)))
