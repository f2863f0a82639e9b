"""What fixed points are: attractors, saddles, and points of a slow manifold."""

from __future__ import annotations

from collections import Counter

import numpy as np

from .linearization_report import is_unstable, time_constants

FEWEST = 8  # points that a manifold must have to be called one
NEIGHBORS = 2  # the points on both sides, on a line
ALONG = 0.9  # the share of the way to a neighbor that lies in the slow directions


def kinds_of_points(
    vectors: np.ndarray,
    moves: np.ndarray,
    eigenvalues: np.ndarray,
    right: np.ndarray,
    slow: float,
) -> tuple[str, ...]:
    """Return what each point is, in words.

    A point alone cannot show a manifold: an eigenvalue near one says only that the
    state moves slowly along its eigenvector. So points count as a manifold if at least
    `FEWEST` of them have as many slow modes, none that grows fast, and their nearest
    neighbors lie along their slow eigenvectors.

    Args:
        vectors: the points, ``(P, n)``.
        moves: whether each is no fixed point, ``(P,)``.
        eigenvalues, right: of their Jacobians.
        slow: the time constant from which a mode is slow, in steps.
    """
    is_slow = time_constants(eigenvalues) >= slow
    grows = is_unstable(eigenvalues)
    dimension = np.where((grows & ~is_slow).any(-1), 0, is_slow.sum(-1))
    on_manifold = np.zeros(len(vectors), bool)
    for count, size in Counter(dimension.tolist()).items():
        if count and size >= FEWEST:
            members = np.flatnonzero(dimension == count)
            on_manifold[members] = _lie_along(vectors, right, is_slow, members)
    for count in set(dimension[on_manifold].tolist()):
        members = on_manifold & (dimension == count)
        on_manifold &= ~members | (members.sum() >= FEWEST)
    kinds = []
    for i, index in enumerate(grows.sum(-1)):
        if on_manifold[i]:
            kind = (
                "line attractor"
                if dimension[i] == 1
                else f"slow manifold of dimension {dimension[i]}"
            )
        elif index == 0:
            kind = "attractor"
        else:
            whole = index == eigenvalues.shape[-1]
            kind = "repeller" if whole else f"saddle of index {index}"
        kinds.append(f"slow point, {kind}" if moves[i] else kind)
    return tuple(kinds)


def _lie_along(
    vectors: np.ndarray, right: np.ndarray, is_slow: np.ndarray, members: np.ndarray
) -> np.ndarray:
    """Return which points have their neighbors along their slow eigenvectors."""
    gaps = vectors[members, None] - vectors[members]
    distances = np.linalg.norm(gaps, axis=-1)
    np.fill_diagonal(distances, np.inf)
    found = []
    for i, point in enumerate(members):
        slow = right[point][:, is_slow[point]]
        # Real and imaginary parts of the slow modes span as many dimensions as there
        # are slow modes, because conjugates come in pairs.
        spanning = np.concatenate([slow.real, slow.imag], -1)
        basis = np.linalg.svd(spanning)[0][:, : slow.shape[1]]
        near = gaps[i, np.argsort(distances[i])[:NEIGHBORS]]
        shares = np.linalg.norm(near @ basis, axis=-1) / np.linalg.norm(near, axis=-1)
        found.append(shares.min() >= ALONG)
    return np.asarray(found)
