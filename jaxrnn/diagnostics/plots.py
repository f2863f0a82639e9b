"""Plots of the diagnostics, as matplotlib figures independent of any display.

matplotlib is in the extra ``plot`` (``pip install 'jaxrnn[plot]'``). Every function
returns a ``Figure``, which ``figure.savefig(path)`` writes; the caller's backend is
neither used nor changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .state_plots import eigenvalues as eigenvalues
from .state_plots import state_plane as state_plane
from .style import MAGNITUDES, TIMES, label_lines, styled
from .style import figure as figure
from .unit_plots import units_over_time as units_over_time

DECADES = np.log(10.0)


@styled
def decay_curves(
    curves: Mapping[str, Any],
    after: Mapping[str, Any] | None = None,
    *,
    floor: float = 1e-12,
    title: str = "",
) -> Any:
    """Plot v_k / v_0 against the lag k on a log scale, one line per name.

    Args:
        curves: log v_k ``(K + 1,)`` by name, as ``GradientLags.log_v``.
        after: curves after training by the same names, dashed in the same colors.
        floor: the lowest possible end of the axis; curves are clipped there.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.diagnostics import plots
        >>> log_v = np.log(0.5) * np.arange(9)  # as GradientLags.log_v
        >>> fig = plots.decay_curves({"halves": log_v}, title="A decay")
        >>> line = fig.axes[0].get_lines()[0]
        >>> f"10^{line.get_ydata()[-1]:.2f}"  # v_8 / v_0 is 1 / 256
        '10^-2.41'
    """
    fig = figure(5.6, 3.8)
    axis = fig.subplots()
    colors: dict[str, Any] = {}
    for name, log_v in curves.items():
        log_v = np.asarray(log_v, np.float64)
        label = f"{name}, before training" if name in (after or {}) else name
        (line,) = axis.plot((log_v - log_v[0]) / DECADES, label=label)
        colors[name] = line.get_color()
    for name, log_v in (after or {}).items():
        log_v = np.asarray(log_v, np.float64)
        axis.plot(
            (log_v - log_v[0]) / DECADES,
            "--",
            color=colors.get(name),
            label=f"{name}, after training",
        )
    _lags(axis, floor, title)
    return fig


def _lags(axis: Any, floor: float, title: str) -> None:
    """Finish an axis of log10 of v_k / v_0 against k, whose limits are the data's."""
    drawn = [np.asarray(line.get_ydata(), np.float64) for line in axis.get_lines()]
    values = np.concatenate([y[np.isfinite(y)] for y in drawn] or [np.zeros(1)])
    lowest = values.min() if values.size else 0.0
    highest = values.max() if values.size else 0.0
    axis.set_ylim(
        max(np.log10(floor), np.floor(min(lowest, -0.5))), min(max(highest, 0) + 0.3, 6)
    )
    _powers_of_ten(axis.yaxis)
    axis.set_xlabel("lag k (steps back from the loss)")
    axis.set_ylabel(r"$v_k / v_0$, gradient norm at the state")
    axis.grid()
    axis.set_title(title)
    axis.margins(x=0)
    label_lines(axis)


@styled
def gradient_maps(
    maps: Mapping[str, Any], *, floor: float = 1e-6, title: str = ""
) -> Any:
    """Plot heat maps of ||dl_t/ds_k||, one per name.

    The step t of the loss runs downwards, the step k of the state to the right.

    Args:
        maps: logarithms ``(T, T + 1)`` by name, as `gradient_map` returns them for one
            sequence.
        floor: the value drawn in black, relative to the largest entry of each map.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: if ``maps`` is empty.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.diagnostics import plots
        >>> lag = np.arange(4)[:, None] - np.arange(-1, 4)
        >>> log_map = np.where(lag < 0, np.nan, np.log(0.5) * lag)
        >>> fig = plots.gradient_maps({"halves": log_map})
        >>> fig.axes[0].get_images()[0].get_array().shape
        (4, 5)
    """
    if not maps:
        raise ValueError(
            "gradient_maps: there is no map to draw: give a dict of names and (T, T + "
            "1) logarithms"
        )
    fig = figure(3.4 * len(maps) + 1, 3.6)
    axes = np.atleast_1d(fig.subplots(1, len(maps), sharey=True))
    image = None
    for axis, (name, logs) in zip(axes, maps.items(), strict=True):
        logs = np.asarray(logs, np.float64) / DECADES
        finite = logs[np.isfinite(logs)]
        relative = np.where(np.isneginf(logs), -1e9, logs) - (
            finite.max() if finite.size else 0.0
        )
        T = len(logs)
        image = axis.imshow(
            relative,
            vmin=np.log10(floor),
            vmax=0,
            cmap=MAGNITUDES,
            aspect="auto",
            interpolation="nearest",
            # Column 0, drawn at -1, is the carry before step 0.
            extent=(-1.5, T - 0.5, T - 0.5, -0.5),
        )
        axis.set_title(name)
        axis.set_xlabel("state after step k (-1: before the first)")
    axes[0].set_ylabel("loss of step t")
    if image is not None:
        bar = fig.colorbar(
            image, ax=list(axes), label=r"$|\partial l_t / \partial s_k|$, largest = 1"
        )
        _powers_of_ten(bar.ax.yaxis)
    fig.suptitle(title, x=0.01, ha="left")
    return fig


@styled
def spectra(exponents: Mapping[str, Any], *, title: str = "") -> Any:
    """Plot Lyapunov spectra, one line per name.

    Args:
        exponents: arrays of exponents by name, in nats per step. They are sorted and
            drawn against their rank divided by their number.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.diagnostics import plots
        >>> fig = plots.spectra({"GRU": np.array([-0.5, -0.1, -2.0])})
        >>> fig.axes[0].get_lines()[0].get_ydata().tolist()
        [-0.1, -0.5, -2.0]
    """
    fig = figure(5.6, 3.8)
    axis = fig.subplots()
    for name, values in exponents.items():
        values = np.sort(np.asarray(values, np.float64).reshape(-1))[::-1]
        axis.plot(
            (np.arange(values.size) + 0.5) / max(values.size, 1),
            values,
            label=name,
        )
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xlabel("rank / number of units in the carry")
    axis.set_ylabel("Lyapunov exponent (nats per step)")
    axis.set_ylim(max(axis.get_ylim()[0], -6), None)
    axis.grid()
    axis.set_title(title)
    label_lines(axis)
    return fig


@styled
def truncation_curves(biases: Mapping[str, Any], *, title: str = "") -> Any:
    """Plot the relative error of a truncated gradient against k2, one line per name.

    Args:
        biases: pairs of arrays ``(k2, relative_error)`` by name.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.

    Example:
        >>> from jaxrnn.diagnostics import plots
        >>> fig = plots.truncation_curves({"LSTM": ([1, 2, 4], [0.4, 0.1, 0.0])})
        >>> fig.axes[0].get_lines()[0].get_ydata().tolist()  # zero has no logarithm
        [0.4, 0.1, 1e-09]
    """
    fig = figure(5.6, 3.8)
    axis = fig.subplots()
    for name, (k2, error) in biases.items():
        axis.plot(
            np.asarray(k2),
            np.maximum(np.asarray(error, np.float64), 1e-9),
            marker="o" if len(k2) <= 24 else "",
            ms=4,
            label=name,
        )
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_yscale("log")
    axis.set_ylim(1e-4, 3)
    axis.set_xlabel("k2: steps over which gradients flow")
    axis.set_ylabel("relative error of the gradient")
    axis.grid()
    axis.set_title(title)
    label_lines(axis)
    return fig


@styled
def training_curves(
    steps: Any, log_v: Any, *, floor: float = 1e-12, title: str = ""
) -> Any:
    """Plot decay curves during training, from dark (first) to bright (last).

    Args:
        steps: ``(N,)``, the number of updates made.
        log_v: ``(N, K + 1)``, log v_k after that many updates.
        floor: the lowest possible end of the axis.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.

    Example:
        >>> import numpy as np
        >>> from jaxrnn.diagnostics import plots
        >>> log_v = np.log([[0.5], [0.9]]) * np.arange(9)  # before and after training
        >>> fig = plots.training_curves([0, 100], log_v)
        >>> [line.get_label() for line in fig.axes[0].get_lines()]
        ['after 0 updates', 'after 100 updates']
    """
    fig = figure(5.6, 3.8)
    from matplotlib import colormaps

    axis = fig.subplots()
    steps, log_v = np.asarray(steps), np.asarray(log_v, np.float64)
    for i, (step, curve) in enumerate(zip(steps, log_v, strict=True)):
        labeled = i in (0, len(steps) - 1) or i == len(steps) // 2
        axis.plot(
            (curve - curve[0]) / DECADES,
            color=colormaps[TIMES](0.9 * i / max(len(steps) - 1, 1)),
            linestyle="-",
            label=f"after {step} updates" if labeled else None,
        )
    _lags(axis, floor, title)
    return fig


def _powers_of_ten(axis: Any) -> None:
    """Label an axis of exponents with whole powers of ten."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{round(value)}}}$"))
