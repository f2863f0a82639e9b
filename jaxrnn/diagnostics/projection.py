"""Trajectories of states, and the plane in which most of their variance lies."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Carry, Context, Inputs, Params
from ..core.validation import check_int, lead_ndim
from ..unrolling import unroll
from .fixed_points import check_limit
from .held_step import HeldStep, asked
from .transition import check_supported


@dataclasses.dataclass(frozen=True, eq=False)
class ProjectedStates:
    """States of sequences, and their principal axes.

    Attributes:
        vectors: the states as vectors of n real numbers, ``(T, *B, n)``.
        center: their mean, ``(n,)``.
        axes: the principal axes, orthonormal rows, ``(K, n)``.
        shares: the share of the variance along each axis, ``(K,)``.
        like: one carry, by whose form vectors become carries.
    """

    vectors: Float[np.ndarray, "T *B n"]
    center: Float[np.ndarray, " n"]
    axes: Float[np.ndarray, "K n"]
    shares: Float[np.ndarray, " K"]
    like: Carry

    def project(self, vectors: Float[np.ndarray, "*S n"]) -> Float[np.ndarray, "*S K"]:
        """Return the coordinates of vectors along the axes, ``(*S, K)``.

        Args:
            vectors: such as ``self.vectors``, or ``vectors`` of a `Linearization`.
        """
        return (np.asarray(vectors) - self.center) @ self.axes.T

    @property
    def coordinates(self) -> Float[np.ndarray, "T *B K"]:
        """The coordinates of the states along the axes."""
        return self.project(self.vectors)


def project_states(
    cell: Cell | Layer,
    params: Params,
    xs: Inputs,
    carry: Carry = None,
    *,
    axes: int = 2,
    mask: Bool[Array, "T *B"] | None = None,
) -> ProjectedStates:
    """Return the states of sequences and their principal component analysis.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters.
        xs: the inputs, ``(T, *B, D)``.
        carry: the carry before the first step (default: the initial carry).
        axes: K, the number of principal axes.
        mask: as for `jaxrnn.unroll`. States of masked steps do not count for the axes.

    Returns:
        `ProjectedStates`. The sign of an axis is such that its largest number is
        positive. Parts of the carry that are not floating-point are left out.

    Raises:
        ValueError: as `jaxrnn.unroll`, or if there are fewer than two states or more
            axes than numbers in a state.

    Example:
        >>> import jax, jaxrnn.diagnostics
        >>> cell = jaxrnn.GRU(6)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (10, 4, 3))
        >>> states = jaxrnn.diagnostics.project_states(cell, params, xs)
        >>> states.vectors.shape, states.coordinates.shape
        ((10, 4, 6), (10, 4, 2))
    """
    what = "project_states"
    check_supported(cell, what)
    _, _, carries = unroll(  # type: ignore[misc]
        cell, params, xs, carry, mask=mask, return_carries=True
    )
    leaves = jax.tree.leaves(carries)
    held = tuple(not jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves)
    if all(held):
        raise ValueError(
            f"{what}: {type(cell).__name__} has no carry of real numbers, so there is "
            f"no state to project"
        )
    lead = lead_ndim(xs, cell.feature_ndim)
    vectors = np.asarray(HeldStep(cell, held).vector(carries, lead))
    counted = vectors.reshape(-1, vectors.shape[-1])
    if mask is not None:
        counted = counted[np.asarray(mask).reshape(-1)]
    axes = check_int(what, "axes", axes, 1, vectors.shape[-1], "numbers in a state")
    if len(counted) < 2:
        raise ValueError(
            f"{what}: principal axes need at least two states, but there are "
            f"{len(counted)}"
        )
    center, rows, shares = principal_axes(counted, axes)
    like = jax.tree.map(lambda a: a[(0,) * lead], carries)
    return ProjectedStates(vectors, center, rows, shares, like)


def principal_axes(
    vectors: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean of vectors ``(S, n)``, their principal axes, and the shares."""
    center = vectors.mean(0)
    variances, columns = np.linalg.eigh(
        np.cov(vectors.T, bias=True).reshape(vectors.shape[1], vectors.shape[1])
    )
    rows = columns.T[::-1][:count]
    signs = np.sign(rows[np.arange(len(rows)), np.abs(rows).argmax(-1)])
    total = max(variances.sum(), np.finfo(variances.dtype).tiny)
    shares = np.maximum(variances[::-1][:count], 0) / total
    return center, (rows * signs[:, None]).astype(vectors.dtype), shares


class PlaneFlow(NamedTuple):
    """The flow of states on the plane of the first two principal axes.

    Attributes:
        places: points of a grid, ``(G, G, 2)``.
        arrows: the projected step ``F(s, x) - s`` from each, ``(G, G, 2)``.
    """

    places: Float[np.ndarray, "G G 2"]
    arrows: Float[np.ndarray, "G G 2"]


def plane_flow(
    cell: Cell | Layer,
    params: Params,
    x: Inputs,
    states: ProjectedStates,
    *,
    size: int = 15,
    margin: float = 0.1,
    context: Context = None,
) -> PlaneFlow:
    """Return where a held input moves states on the plane of two principal axes.

    The states are those of the plane itself: their other coordinates are those of the
    mean. A step may lead out of the plane; its projection is returned.

    Args:
        cell: a cell, or a causal layer without randomness.
        params: the parameters.
        x: the held input, ``(D,)``.
        states: what `project_states` returns, with two axes or more.
        size: G, the number of points of the grid along each axis.
        margin: how far the grid reaches beyond the states, as a share of their range.
        context: as for `fixed_points`.

    Returns:
        `PlaneFlow`.

    Raises:
        ValueError: as `fixed_points`, or for states with one axis.

    Example:
        >>> import jax, jax.numpy as jnp, jaxrnn.diagnostics
        >>> cell = jaxrnn.GRU(6)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (10, 4, 3))
        >>> states = jaxrnn.diagnostics.project_states(cell, params, xs)
        >>> flow = jaxrnn.diagnostics.plane_flow(cell, params, jnp.zeros(3), states)
        >>> flow.arrows.shape
        (15, 15, 2)
    """
    what = "plane_flow"
    size = check_int(what, "size", size, 2, 1000, "points along an axis")
    check_limit(what, "margin", margin)
    if len(states.axes) < 2:
        raise ValueError(
            f"{what}: a plane has two axes, but the states have {len(states.axes)}: "
            f"call project_states with axes=2"
        )
    leaves, structure = jax.tree.flatten(states.like)
    held = [not jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    first = jax.tree.map(lambda a: a[None], states.like)
    step, params, x, _ = asked(
        what, cell, params, x, first, jax.tree.unflatten(structure, held), context
    )
    xy = states.coordinates[..., :2].reshape(-1, 2)
    low, high = xy.min(0), xy.max(0)
    reach = margin * (high - low)
    lines = np.linspace(low - reach, high + reach, size)
    places = np.stack(np.meshgrid(lines[:, 0], lines[:, 1]), -1).astype(xy.dtype)
    vectors = states.center + places @ states.axes[:2]
    moved = np.asarray(
        _moved(step, params, x, vectors.reshape(size**2, -1), states.like)
    )
    arrows = (moved.reshape(vectors.shape) - vectors) @ states.axes[:2].T
    return PlaneFlow(places, arrows)


@functools.partial(jax.jit, static_argnums=0)
def _moved(step: HeldStep, params: Params, x: Inputs, vectors: Any, like: Carry) -> Any:
    """Apply a step to vectors ``(S, n)``."""
    return jax.vmap(lambda v: step(params, x, v, like))(vectors)
