"""Where the two ways out of a saddle of index 1 lead, for `jaxrnn.tasks.dynamics`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.real_vectors import features, from_features
from ..core.types import Inputs, Params
from ..diagnostics import FixedPoints, Linearization
from .dynamics_starts import is_real_or_complex, settled

AWAY = 1e-3  # how far from the saddle both ways begin
LONG = 5000  # steps: a saddle may be left, and an attractor reached, slowly
ARRIVED = 1e-2  # the largest distance from an attractor at which a way ends there

Ends = tuple[int | None, int | None]


def ends_of_saddles(
    layer: Cell | Layer,
    params: Params,
    x: Inputs,
    points: FixedPoints,
    linear: Linearization,
) -> dict[int, Ends]:
    """Return at which attractors the ways out of the saddles of index 1 end.

    From each of these saddles the network runs under the held input, beginning on
    either side along the direction in which it is left.

    Args:
        layer, params: the recurrent layer.
        x: the held input.
        points: the fixed points, and ``linear`` the linear maps around them.

    Returns:
        For the number of each saddle, the numbers of the two attractors; None for a
        way that ends at no attractor that was found.
    """
    saddles = [i for i, kind in enumerate(linear.kinds) if kind == "saddle of index 1"]
    attractors = [i for i, kind in enumerate(linear.kinds) if kind == "attractor"]
    if not saddles or not attractors:
        return dict.fromkeys(saddles, (None, None))
    # The one mode that grows is real and comes first.
    out = linear.right[saddles, :, 0].real
    out = AWAY * out / np.linalg.norm(out, axis=-1, keepdims=True)
    vectors = linear.vectors[saddles]
    starts = _carries(
        np.concatenate([vectors - out, vectors + out]),
        jax.tree.map(lambda a: np.concatenate([a[saddles]] * 2), points.states),
    )
    ends = settled(layer, params, x, starts, 2 * len(saddles), LONG)
    where = np.asarray(features(_free(ends), 1))
    gaps = np.linalg.norm(where[:, None] - linear.vectors[attractors], axis=-1)
    near = [
        attractors[i] if row[i] <= ARRIVED * (1 + np.linalg.norm(end)) else None
        for row, end, i in zip(gaps, where, gaps.argmin(-1), strict=True)
    ]
    count = len(saddles)
    return {saddle: (near[k], near[count + k]) for k, saddle in enumerate(saddles)}


def ends_in_words(ends: dict[int, Ends]) -> str:
    """Return how many saddles of index 1 lie between two attractors, and which."""
    pairs = {frozenset(pair) for pair in ends.values() if None not in pair}
    joined = sum(len(set(pair)) == 2 and None not in pair for pair in ends.values())
    count = sum(len(pair) == 2 for pair in pairs)
    return (
        f"{joined} of {len(ends)} saddles of index 1 lie between two attractors, "
        f"{count} pairs of them"
    )


def _carries(vectors: np.ndarray, like: Any) -> Any:
    """Return carries whose parts with derivatives come out of vectors."""
    parts = iter(from_features(jnp.asarray(vectors), _free(like), 1))
    return jax.tree.map(
        lambda a: next(parts) if is_real_or_complex(a) else jnp.asarray(a), like
    )


def _free(carries: Any) -> list[Any]:
    """Return the parts of carries that have derivatives."""
    return [jnp.asarray(a) for a in jax.tree.leaves(carries) if is_real_or_complex(a)]
