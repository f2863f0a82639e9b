"""Plots of the diagnostics, as matplotlib figures independent of any display.

matplotlib is in the extra ``plot`` (``pip install 'jaxrnn[plot]'``). Every function
returns a ``Figure``, which ``figure.savefig(path)`` writes; the caller's backend is
neither used nor changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

DECADES = np.log(10.0)


def figure(width: float, height: float) -> Any:
    """Create an empty figure.

    Args:
        width, height: the size in inches.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ImportError: if matplotlib is not installed; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'jaxrnn[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


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
        floor: the lower end of the axis; curves are clipped there.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    fig = figure(7.5, 4.5)
    axis = fig.subplots()
    colors: dict[str, Any] = {}
    for curve_set, style in ((curves, "-"), (after or {}, "--")):
        for name, log_v in curve_set.items():
            log_v = np.asarray(log_v, np.float64)
            label = name if style == "-" else None
            (line,) = axis.plot(
                (log_v - log_v[0]) / DECADES,
                style,
                color=colors.get(name),
                label=label,
                lw=1.8,
            )
            colors[name] = line.get_color()
    if after:
        axis.plot([], [], "--", color="gray", label="after training")
    bottom, top = np.log10(floor), max(1.0, axis.get_ylim()[1])
    axis.set_ylim(bottom, min(top, 6))
    _powers_of_ten(axis.yaxis)
    axis.set_xlabel("lag k (steps back from the loss)")
    axis.set_ylabel(r"$v_k / v_0$, gradient norm at the state")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, ncols=2)
    axis.set_title(title, fontsize=10)
    return fig


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
            cmap="magma",
            aspect="auto",
            interpolation="nearest",
            # Column 0, drawn at -1, is the carry before step 0.
            extent=(-1.5, T - 0.5, T - 0.5, -0.5),
        )
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("state after step k")
    axes[0].set_ylabel("loss of step t")
    if image is not None:
        bar = fig.colorbar(
            image, ax=list(axes), label=r"$|\partial l_t / \partial s_k|$, largest = 1"
        )
        _powers_of_ten(bar.ax.yaxis)
    fig.suptitle(title, fontsize=10)
    return fig


def spectra(exponents: Mapping[str, Any], *, title: str = "") -> Any:
    """Plot Lyapunov spectra, one line per name.

    Args:
        exponents: arrays of exponents by name, in nats per step. They are sorted and
            drawn against their rank divided by their number.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    fig = figure(6.5, 4)
    axis = fig.subplots()
    for name, values in exponents.items():
        values = np.sort(np.asarray(values, np.float64).reshape(-1))[::-1]
        axis.plot(
            (np.arange(values.size) + 0.5) / max(values.size, 1),
            values,
            label=name,
            lw=1.8,
        )
    axis.axhline(0, color="black", lw=0.8)
    axis.set_xlabel("rank / number of units in the carry")
    axis.set_ylabel("Lyapunov exponent (nats per step)")
    axis.set_ylim(max(axis.get_ylim()[0], -6), None)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.set_title(title, fontsize=10)
    return fig


def truncation_curves(biases: Mapping[str, Any], *, title: str = "") -> Any:
    """Plot the relative error of a truncated gradient against k2, one line per name.

    Args:
        biases: pairs of arrays ``(k2, relative_error)`` by name.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    fig = figure(6.5, 4)
    axis = fig.subplots()
    for name, (k2, error) in biases.items():
        style = "o-" if len(k2) <= 24 else "-"
        axis.plot(
            np.asarray(k2),
            np.maximum(np.asarray(error, np.float64), 1e-9),
            style,
            ms=4,
            label=name,
            lw=1.8,
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_ylim(1e-4, 3)
    axis.set_xlabel("k2: steps over which gradients flow")
    axis.set_ylabel("relative error of the gradient")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.set_title(title, fontsize=10)
    return fig


def training_curves(
    steps: Any, log_v: Any, *, floor: float = 1e-12, title: str = ""
) -> Any:
    """Plot decay curves during training, from dark (first) to bright (last).

    Args:
        steps: ``(N,)``, the number of updates made.
        log_v: ``(N, K + 1)``, log v_k after that many updates.
        floor: the lower end of the axis.
        title: the title of the figure.

    Returns:
        A ``matplotlib.figure.Figure``.
    """
    fig = figure(7, 4.2)
    from matplotlib import colormaps

    axis = fig.subplots()
    steps, log_v = np.asarray(steps), np.asarray(log_v, np.float64)
    for i, (step, curve) in enumerate(zip(steps, log_v, strict=True)):
        color = colormaps["viridis"](0.9 * i / max(len(steps) - 1, 1))
        labeled = i in (0, len(steps) - 1) or i == len(steps) // 2
        axis.plot(
            (curve - curve[0]) / DECADES,
            color=color,
            lw=1.5,
            label=f"after {step} updates" if labeled else None,
        )
    axis.set_ylim(np.log10(floor), max(1.0, min(axis.get_ylim()[1], 6)))
    _powers_of_ten(axis.yaxis)
    axis.set_xlabel("lag k (steps back from the loss)")
    axis.set_ylabel(r"$v_k / v_0$")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.set_title(title, fontsize=10)
    return fig


def _powers_of_ten(axis: Any) -> None:
    """Label an axis of exponents with whole powers of ten."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{round(value)}}}$"))
