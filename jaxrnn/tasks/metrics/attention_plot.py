"""Where attention looked, as heat maps."""

from __future__ import annotations

import importlib.util
import pathlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from ...training import Run
from ...training.curves import new_figure

Looked = tuple[
    list[str], list[str], np.ndarray
]  # source symbols, target symbols, weights (T, S), the end's row counted in


def draw_attention(run: Run, examples: Sequence[Looked]) -> pathlib.Path | None:
    """``attention.png``: a heat map an example, source symbols from left to right,
    written ones downwards, the last row for the end. None without matplotlib or
    examples.
    """
    across = 2 if len(examples) > 1 else 1
    wide, tall = (
        max((len(example[side]) for example in examples), default=0) for side in (0, 1)
    )
    figure = new_figure(
        across * (1.2 + 0.2 * min(wide, 60)),
        -(-len(examples) // across) * (1 + 0.2 * min(tall, 60)),
    )
    if figure is None or not examples:
        return None
    known = known_to_matplotlib()
    axes = figure.subplots(-(-len(examples) // across), across, squeeze=False).ravel()
    for axis in axes[len(examples) :]:
        axis.set_axis_off()
    for axis, (source, target, weights) in zip(axes, examples, strict=False):
        axis.imshow(weights, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axis.set_xticks(
            range(weights.shape[1]),
            [shown(s, known) for s in source[: weights.shape[1]]],
            fontsize=7,
        )
        rows = [*(shown(s, known) for s in target[: weights.shape[0] - 1]), "end"]
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        if max(map(len, source), default=0) > 1:
            axis.tick_params(axis="x", rotation=90)
    axes[0].set_ylabel("written")
    figure.suptitle("weights of attention over the source", fontsize=10)
    figure.tight_layout()
    path = run.path / "attention.png"
    figure.savefig(path, dpi=110)
    return path


def shown(symbol: str, known: frozenset[int]) -> str:
    """A symbol as matplotlib's own font can show it: what the font lacks by the last
    word of its Unicode name.
    """
    if symbol.isspace():
        return "\u2423"
    lacking = [c for c in symbol if ord(c) not in known]
    return (
        " ".join(unicodedata.name(c, f"U+{ord(c):04X}").split()[-1] for c in lacking)
        if lacking
        else symbol.replace("$", r"\$")
    )


def known_to_matplotlib() -> frozenset[int]:
    """The characters of the font that matplotlib brings along."""
    from matplotlib.ft2font import FT2Font

    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        return frozenset()
    fonts = pathlib.Path(package.origin).parent / "mpl-data" / "fonts" / "ttf"
    return frozenset(FT2Font(str(fonts / "DejaVuSans.ttf")).get_charmap())
