"""Arrays whose types say how they are split: meshes of explicit axes, the default of
``jax.make_mesh`` on newer jax.

There every operation must say how its result is split, and a loop's carry must be split
at its beginning as it is at its end. A walk does neither. So it runs under
``jax.sharding.auto_axes``, where XLA finds the places, and its results get those that
the inputs' type has: the batch axes of carry and outputs are split as the inputs' are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def mesh_of(tree: Any) -> Any:
    """The explicit mesh on which some array of ``tree`` lies, or None."""
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(tree)]
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def under_auto_axes(function: Callable[..., Any], xs: Any, *args: Any) -> Any:
    """``function(xs, *args) -> (carry, ys, carries)``, its results placed as ``xs
    (T, *B, D)``, where a mesh is explicit.
    """
    mesh = mesh_of((xs, args))
    if mesh is None:
        return function(xs, *args)
    places = _spec(jax.tree.leaves(xs)[0])
    batch_shape = jax.tree.leaves(xs)[0].shape[1:-1]

    def place(leaf: Any, lead: tuple) -> Any:
        has_batch = leaf.shape[len(lead) : len(lead) + len(batch_shape)] == batch_shape
        return NamedSharding(
            mesh, PartitionSpec(*lead, *(places[1:-1] if has_batch else ()))
        )

    auto = jax.sharding.auto_axes(
        function, out_sharding=NamedSharding(mesh, PartitionSpec())
    )
    carry, *sequences = jax.eval_shape(auto, xs, *args)
    out = (
        jax.tree.map(lambda leaf: place(leaf, ()), carry),
        *(
            jax.tree.map(lambda leaf: place(leaf, places[:1]), each)
            for each in sequences
        ),
    )
    return jax.sharding.auto_axes(function, out_sharding=out)(xs, *args)


def _spec(x: Any) -> tuple:
    """The mesh axes of every axis of an array."""
    spec = tuple(jax.typeof(x).sharding.spec)
    return (*spec, *[None] * (x.ndim - len(spec)))
