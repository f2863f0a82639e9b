"""Pictures of states on a plane, with fixed points and the flow; of eigenvalues."""

from __future__ import annotations

from typing import Any

import numpy as np

from .linearization_report import Linearization
from .projection import PlaneFlow, ProjectedStates
from .style import BLUE, GRAY, GREEN, RED, figure, styled

MOST_LINES = 40  # trajectories that are drawn


def kind_group(kind: str) -> str:
    """Return the group of a kind of point, which a picture draws alike."""
    if kind.startswith("slow point"):
        return "slow point"
    for name in ("saddle", "slow manifold"):
        if kind.startswith(name):
            return name
    return kind


MARKS = {
    "attractor": ("o", BLUE),
    "line attractor": ("o", GREEN),
    "slow manifold": ("s", GREEN),
    "saddle": ("X", RED),
    "repeller": ("^", "#E69F00"),
    "slow point": (".", GRAY),
}


@styled
def state_plane(
    states: ProjectedStates,
    points: Linearization | None = None,
    flow: PlaneFlow | None = None,
    *,
    title: str = "",
) -> Any:
    """Plot trajectories on the plane of the first two principal axes.

    Lines are trajectories, thin arrows the flow under the held input, and marks the
    fixed points. From a saddle of index 1 the direction in which it is left is drawn,
    from a point of a line attractor that of the line.

    Args:
        states: what `project_states` returns.
        points: what `linearize` returns, for the marks.
        flow: what `plane_flow` returns, for the arrows.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    fig = figure(6.4, 4.8)
    axis = fig.subplots()
    xy = states.coordinates[..., :2]
    lines = xy.reshape(len(xy), -1, 2)[:, :MOST_LINES]
    axis.plot(lines[..., 0], lines[..., 1], "-", color=GRAY, lw=0.5, alpha=0.35)
    if flow is not None:
        _draw_flow(axis, flow)
    if points is not None:
        _draw_points(axis, states, points)
    first, second = (f"({share:.0%} of the variance)" for share in states.shares[:2])
    axis.set_xlabel(f"first principal component {first}")
    axis.set_ylabel(f"second principal component {second}")
    axis.set_title(title)
    return fig


def _draw_flow(axis: Any, flow: PlaneFlow) -> None:
    """Draw arrows of equal length, the paler the slower."""
    speed = np.linalg.norm(flow.arrows, axis=-1, keepdims=True)
    unit = flow.arrows / np.maximum(speed, np.finfo(speed.dtype).tiny)
    axis.quiver(
        *np.moveaxis(flow.places, -1, 0),
        *np.moveaxis(unit, -1, 0),
        color=BLUE,
        alpha=0.3,
        width=0.002,
        scale=32,
        pivot="mid",
    )


def _draw_points(axis: Any, states: ProjectedStates, points: Linearization) -> None:
    """Draw the fixed points, a legend of their kinds, and directions."""
    places = states.project(points.vectors)[:, :2]
    groups = np.asarray([kind_group(kind) for kind in points.kinds])
    span = np.ptp(states.coordinates[..., :2].reshape(-1, 2), axis=0).max()
    for name, (marker, color) in MARKS.items():
        chosen = groups == name
        if not chosen.any():
            continue
        axis.scatter(
            *places[chosen].T,
            s=36,
            marker=marker,
            color=color,
            edgecolors="white",
            linewidths=0.6,
            zorder=4,
            label=f"{name} ({chosen.sum()})",
        )
        if name in ("saddle", "line attractor"):
            for i in np.flatnonzero(chosen):
                d = states.axes[:2] @ points.right[i, :, 0].real
                ends = places[i] + 0.05 * span * np.outer([-1, 1], d)
                axis.plot(*ends.T, "-", color=color, lw=1.2, zorder=3)
    if len(points):
        axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))


@styled
def eigenvalues(points: Linearization, *, title: str = "") -> Any:
    """Plot the eigenvalues of the linear maps on the complex plane.

    Args:
        points: what `linearize` returns.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    fig = figure(5.2, 4.4)
    axis = fig.subplots()
    turn = np.linspace(0, 2 * np.pi, 200)
    axis.plot(np.cos(turn), np.sin(turn), "-", color=GRAY, lw=0.8)
    groups = np.asarray([kind_group(kind) for kind in points.kinds])
    for name, (marker, color) in MARKS.items():
        values = points.eigenvalues[groups == name].reshape(-1)
        if values.size:
            axis.scatter(
                values.real, values.imag, s=14, marker=marker, color=color, label=name
            )
    axis.set_aspect("equal")
    axis.set_xlabel("real part of an eigenvalue")
    axis.set_ylabel("imaginary part")
    axis.set_title(title)
    if len(points):
        axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return fig
