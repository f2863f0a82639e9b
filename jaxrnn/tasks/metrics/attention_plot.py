"""Attention weights as heat maps."""

from __future__ import annotations

import importlib.util
import pathlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from ...training import Run
from ...training.curves import new_figure

# Source tokens, target tokens, and weights (T, S), including the row of the end token.
AttentionExample = tuple[list[str], list[str], np.ndarray]


def draw_attention(
    run: Run, examples: Sequence[AttentionExample]
) -> pathlib.Path | None:
    """Draw ``attention.png``, one heat map per example.

    Source tokens run from left to right and target tokens downwards, with the end token
    in the last row. None without matplotlib or examples.
    """
    columns = 2 if len(examples) > 1 else 1
    wide, tall = (
        max((len(example[side]) for example in examples), default=0) for side in (0, 1)
    )
    figure = new_figure(
        columns * (1.2 + 0.2 * min(wide, 60)),
        -(-len(examples) // columns) * (1 + 0.2 * min(tall, 60)),
    )
    if figure is None or not examples:
        return None
    font_characters = known_to_matplotlib()
    axes = figure.subplots(-(-len(examples) // columns), columns, squeeze=False).ravel()
    for axis in axes[len(examples) :]:
        axis.set_axis_off()
    for axis, (source, target, weights) in zip(axes, examples, strict=False):
        axis.imshow(weights, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axis.set_xticks(
            range(weights.shape[1]),
            [shown(s, font_characters) for s in source[: weights.shape[1]]],
            fontsize=7,
        )
        rows = [
            *(shown(s, font_characters) for s in target[: weights.shape[0] - 1]),
            "end",
        ]
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
    """Return a label that matplotlib's own font can show.

    Characters that the font lacks are replaced by the last word of their Unicode name.
    """
    if symbol.isspace():
        return "\u2423"
    missing = [c for c in symbol if ord(c) not in known]
    return (
        " ".join(unicodedata.name(c, f"U+{ord(c):04X}").split()[-1] for c in missing)
        if missing
        else symbol.replace("$", r"\$")
    )


def known_to_matplotlib() -> frozenset[int]:
    """Return the characters of matplotlib's default font."""
    from matplotlib.ft2font import FT2Font

    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        return frozenset()
    fonts = pathlib.Path(package.origin).parent / "mpl-data" / "fonts" / "ttf"
    return frozenset(FT2Font(str(fonts / "DejaVuSans.ttf")).get_charmap())
