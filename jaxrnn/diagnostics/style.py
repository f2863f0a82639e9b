"""The one style of all pictures: colors, sizes, fonts, and lines labeled directly.

The colors are those of Okabe and Ito (2008), which people who see few colors can tell
apart; after them the lines are dashed. matplotlib is imported when something is drawn,
and the caller's settings are restored afterwards.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

BLUE, RED, GREEN = "#0072B2", "#D55E00", "#009E73"
COLORS = (BLUE, RED, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRAY = "#6b6b6b"
SHARES = "Blues"  # the map of values from 0 to 1
SIGNED = "RdBu_r"  # the map of values of either sign
MAGNITUDES = "magma"  # the map of logarithms
TIMES = "viridis"  # the map of steps
DPI = 130

# Fonts for what matplotlib's own does not have, taken where they are installed.
OTHER_FONTS = (
    "Noto Sans CJK KR",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Return a function that draws in the style of this module.

    Args:
        draw: a function that draws. Without matplotlib it is called as it is.
    """

    @functools.wraps(draw)
    def drawn(*args: P.args, **keywords: P.kwargs) -> R:
        try:
            import matplotlib
        except ImportError:
            return draw(*args, **keywords)
        with matplotlib.rc_context(_settings()):
            return draw(*args, **keywords)

    return drawn


@functools.cache
def _settings() -> Any:
    """Return the settings of matplotlib."""
    from cycler import cycler

    colors = cycler(color=COLORS)
    return {
        "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * colors,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "axes.labelsize": 10.5,
        "axes.grid": False,
        "grid.alpha": 0.3,
        "figure.titlesize": 11,
        "font.size": 10.5,
        "font.family": font_families(),
        "lines.linewidth": 1.8,
        "xtick.labelsize": 9.5,
        "ytick.labelsize": 9.5,
        "savefig.facecolor": "white",
    }


@functools.cache
def font_families() -> list[str]:
    """Return matplotlib's own font, and the others that are installed."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)]


@functools.cache
def known_characters() -> frozenset[int]:
    """Return the characters that the fonts of the pictures have."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    files = [font.fname for font in fontManager.ttflist if font.name in font_families()]
    return frozenset().union(*(FT2Font(file).get_charmap() for file in files))


def figure(width: float, height: float) -> Any:
    """Create an empty figure.

    Args:
        width, height: the size in inches.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ImportError: if matplotlib is not installed; the message names the extra.

    Example:
        >>> from jaxrnn.diagnostics import plots
        >>> fig = plots.figure(4.0, 3.0)
        >>> fig.get_size_inches().tolist(), fig.axes
        ([4.0, 3.0], [])
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install 'jaxrnn[plot]'") from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: str | os.PathLike | io.BytesIO) -> None:
    """Write a figure as PNG.

    Args:
        figure: a ``matplotlib.figure.Figure``.
        path: the file, or a stream of bytes.
    """
    figure.savefig(path, dpi=DPI, facecolor="white", format="png")


def dark(color: object) -> tuple[float, ...]:
    """Return a darker color, in which text is readable on white."""
    colors = importlib.import_module("matplotlib.colors")
    return tuple(0.75 * part for part in colors.to_rgb(color))


def label_lines(axis: Any, size: float = 9.5) -> None:
    """Write the labels of lines at their right ends, instead of a legend.

    Labels that would overlap are moved apart. Of lines that leave the axis at the
    bottom, the one that leaves it last has the highest label, as its line has. The
    limits of the axis must have been set.

    Args:
        axis: the axis, whose lines without a label stay without one.
        size: the size of the font.
    """
    ends, limits = [], axis.get_ylim()
    for line in axis.get_lines():
        ys = np.asarray(line.get_ydata(), np.float64)
        ys = ys[np.isfinite(ys)]
        if line.get_label().startswith("_") or not ys.size:
            continue
        display = axis.transData.transform((axis.get_xlim()[1], ys[-1]))
        place = axis.transAxes.inverted().transform(display)[1]
        inside = np.flatnonzero((ys >= min(limits)) & (ys <= max(limits)))
        last = inside[-1] / ys.size if inside.size else 0.0
        beyond = last if place < 0 else -last if place > 1 else 0.0
        ends.append((float(np.clip(np.nan_to_num(place), 0, 1)), beyond, line))
    ends.sort(key=lambda end: end[:2])
    height = 72 * axis.figure.get_figheight() * axis.get_position().height
    places = apart([place for place, *_ in ends], 1.3 * size / height)
    for place, (*_, line) in zip(places, ends, strict=True):
        axis.annotate(
            line.get_label(),
            xy=(1, place),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=dark(line.get_color()),
            fontsize=size,
            va="center",
            annotation_clip=False,
        )


def apart(places: list[float], gap: float) -> list[float]:
    """Move sorted places apart to a distance of at least ``gap``.

    They stay in [0, 1] if there is room for them.

    Example:
        >>> apart([0.5, 0.5], 0.25)
        [0.5, 0.75]
        >>> apart([1.0, 1.0], 0.25)
        [0.75, 1.0]
    """
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    limit = max(1.0, gap * (len(moved) - 1))
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - gap
    return moved


def title(what: str, of: str = "") -> str:
    """Return the title of a picture.

    Args:
        what: what is drawn, in words.
        of: of which model, on which data.
    """
    return f"{what}\n{plain(of)}" if of else what


def plain(text: str) -> str:
    """Return text without the dollar signs that matplotlib would interpret."""
    return text.replace("$", r"\$")
