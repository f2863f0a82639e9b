"""Pictures of what the instruments measure, as matplotlib figures that touch no back
end and no screen of the caller's.

matplotlib is the extra ``plot`` (``pip install 'jaxrnn[plot]'``). Every function
returns a ``Figure``; ``figure.savefig(path)`` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

DECADES = np.log(10.0)


def figure(width: float, height: float) -> Any:
    """An empty figure.

    Raises:
        ImportError: without matplotlib, naming the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "pictures need matplotlib: pip install 'jaxrnn[plot]'"
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def decay_curves(
    curves: Mapping[str, Any],
    after: Mapping[str, Any] | None = None,
    *,
    floor: float = 1e-12,
    title: str = "",
) -> Any:
    """log v_k / v_0 against the lag k, a line a name; ``after`` holds curves after
    training, dashed in the same colours.

    Args:
        curves, after: log v_k ``(K + 1,)`` by name, as ``GradientLags.log_v``.
        floor: the bottom of the picture; curves are drawn as they fall through it.
    """
    drawing = figure(7.5, 4.5)
    axis = drawing.subplots()
    colours: dict[str, Any] = {}
    for curve_set, style in ((curves, "-"), (after or {}, "--")):
        for name, log_v in curve_set.items():
            log_v = np.asarray(log_v, np.float64)
            label = name if style == "-" else None
            (line,) = axis.plot(
                (log_v - log_v[0]) / DECADES,
                style,
                color=colours.get(name),
                label=label,
                lw=1.8,
            )
            colours[name] = line.get_color()
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
    return drawing


def gradient_maps(
    maps: Mapping[str, Any], *, floor: float = 1e-6, title: str = ""
) -> Any:
    """Heat maps of ||dl_t/ds_k||, one a name: the loss's step t downwards, the state's
    step k to the right.

    Args:
        maps: ``(T, T + 1)`` logarithms by name, as `gradient_map` gives them for one
            sequence.
        floor: what is drawn black, relative to the largest entry of each map.
    """
    if not maps:
        raise ValueError(
            "gradient_maps: there is no map to draw: give a dict of names and (T, T + "
            "1) logarithms"
        )
    drawing = figure(3.4 * len(maps) + 1, 3.6)
    axes = np.atleast_1d(drawing.subplots(1, len(maps), sharey=True))
    image = None
    for axis, (name, logs) in zip(axes, maps.items(), strict=True):
        logs = np.asarray(logs, np.float64) / DECADES
        finite = logs[np.isfinite(logs)]
        shown = np.where(np.isneginf(logs), -1e9, logs) - (
            finite.max() if finite.size else 0.0
        )
        T = len(logs)
        image = axis.imshow(
            shown,
            vmin=np.log10(floor),
            vmax=0,
            cmap="magma",
            aspect="auto",
            interpolation="nearest",
            extent=(
                -1.5,
                T - 0.5,
                T - 0.5,
                -0.5,
            ),  # column 0, at -1, is the carry before step 0
        )
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("state after step k")
    axes[0].set_ylabel("loss of step t")
    if image is not None:
        bar = drawing.colorbar(
            image, ax=list(axes), label=r"$|\partial l_t / \partial s_k|$, largest = 1"
        )
        _powers_of_ten(bar.ax.yaxis)
    drawing.suptitle(title, fontsize=10)
    return drawing


def spectra(exponents: Mapping[str, Any], *, title: str = "") -> Any:
    """Lyapunov spectra, a line a name: exponents in nats per step, sorted, against
    their rank as a share of all.
    """
    drawing = figure(6.5, 4)
    axis = drawing.subplots()
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
    return drawing


def truncation_curves(biases: Mapping[str, Any], *, title: str = "") -> Any:
    """The relative error of a truncated gradient against k2, a line a name: ``(k2,
    relative_error)`` pairs of arrays.
    """
    drawing = figure(6.5, 4)
    axis = drawing.subplots()
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
    return drawing


def training_curves(
    steps: Any, log_v: Any, *, floor: float = 1e-12, title: str = ""
) -> Any:
    """Decay curves as training goes on, coloured from the first (dark) to the last
    (bright).

    Args:
        steps: ``(N,)`` updates made.
        log_v: ``(N, K + 1)`` log v_k at each.
    """
    drawing = figure(7, 4.2)
    from matplotlib import colormaps

    axis = drawing.subplots()
    steps, log_v = np.asarray(steps), np.asarray(log_v, np.float64)
    for i, (step, curve) in enumerate(zip(steps, log_v, strict=True)):
        colour = colormaps["viridis"](0.9 * i / max(len(steps) - 1, 1))
        shown = i in (0, len(steps) - 1) or i == len(steps) // 2
        axis.plot(
            (curve - curve[0]) / DECADES,
            color=colour,
            lw=1.5,
            label=f"after {step} updates" if shown else None,
        )
    axis.set_ylim(np.log10(floor), max(1.0, min(axis.get_ylim()[1], 6)))
    _powers_of_ten(axis.yaxis)
    axis.set_xlabel("lag k (steps back from the loss)")
    axis.set_ylabel(r"$v_k / v_0$")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.set_title(title, fontsize=10)
    return drawing


def _powers_of_ten(axis: Any) -> None:
    """Whole powers of ten as labels of an axis that holds their exponents."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{round(value)}}}$"))
