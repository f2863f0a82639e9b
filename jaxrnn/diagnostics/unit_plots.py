"""Pictures of gates and states unit by unit, over the steps of a sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .style import SHARES, SIGNED, figure, styled


@styled
def units_over_time(
    values: Mapping[str, Any], *, sort: bool = True, title: str = ""
) -> Any:
    """Plot gates or states as heat maps: a row for each unit, a column for each step.

    Values between 0 and 1 are drawn from light to dark. Others are drawn in blue and
    red around zero, on the scale of the largest of them.

    Args:
        values: arrays ``(T, H)`` by name, of one sequence: gates, as `gate_values`
            returns them for inputs ``(T, D)``, states, or any other series. All have
            the same T.
        sort: whether to sort the units of each picture by the step at which they are
            largest, so that units that act at the same time stand together.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if ``values`` is empty, an array is not ``(T, H)``, or lengths
            differ.

    Example:
        >>> import jax, jaxrnn, jaxrnn.diagnostics
        >>> from jaxrnn.diagnostics import plots
        >>> cell = jaxrnn.GRU(6)
        >>> params = cell.init(jax.random.key(0), 3)
        >>> xs = jax.random.normal(jax.random.key(1), (20, 3))
        >>> gates = jaxrnn.diagnostics.gate_values(cell, params, xs)
        >>> fig = plots.units_over_time({"update gate": gates["z"]})
        >>> fig.axes[0].get_images()[0].get_array().shape
        (6, 20)
    """
    series = {name: np.asarray(each, np.float64) for name, each in values.items()}
    _check(series)
    fig = figure(7.0, 0.6 + 1.9 * len(series))
    axes = np.atleast_1d(fig.subplots(len(series), 1, sharex=True))
    for axis, (name, each) in zip(axes, series.items(), strict=True):
        order = np.argsort(each.argmax(0), kind="stable") if sort else slice(None)
        finite = each[np.isfinite(each)]
        is_share = bool(finite.size) and finite.min() >= 0 and finite.max() <= 1
        largest = float(np.abs(finite).max(initial=0.0)) or 1.0
        image = axis.imshow(
            each.T[order],
            cmap=SHARES if is_share else SIGNED,
            vmin=0 if is_share else -largest,
            vmax=1 if is_share else largest,
            aspect="auto",
            interpolation="nearest",
        )
        axis.set_title(name)
        axis.set_ylabel("unit, sorted" if sort else "unit")
        fig.colorbar(image, ax=axis)
    axes[-1].set_xlabel("step")
    fig.suptitle(title, x=0.01, ha="left")
    return fig


def _check(series: Mapping[str, Any]) -> None:
    """Check the arrays of `units_over_time`."""
    if not series:
        raise ValueError(
            "units_over_time: there is nothing to draw: give a dict of names and "
            "arrays (T, H)"
        )
    for name, each in series.items():
        if each.ndim != 2 or not each.size:
            raise ValueError(
                f"units_over_time: {name!r} must be (T, H) of one sequence, but it has "
                f"the shape {each.shape}; choose a sequence of a batch by [:, i]"
            )
    lengths = {name: len(each) for name, each in series.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"units_over_time: all arrays must have the same number of steps, but they "
            f"have {lengths}"
        )
