"""Attention weights as heat maps."""

from __future__ import annotations

import pathlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from ...diagnostics.style import (
    SHARES,
    known_characters,
    plain,
    save,
    styled,
    title,
)
from ...training import Run
from ...training.curves import new_figure
from ..pictures import subject_of

# Source tokens, target tokens, and weights (T, S), including the row of the end token.
AttentionExample = tuple[list[str], list[str], np.ndarray]


@styled
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
        columns * (1.2 + 0.2 * min(wide, 60)) + 1,
        -(-len(examples) // columns) * (1.2 + 0.2 * min(tall, 60)) + 0.5,
    )
    if figure is None or not examples:
        return None
    font_characters = known_characters()
    axes = figure.subplots(-(-len(examples) // columns), columns, squeeze=False).ravel()
    for axis in axes[len(examples) :]:
        axis.set_axis_off()
    for axis, (source, target, weights) in zip(axes, examples, strict=False):
        image = axis.imshow(weights, vmin=0, vmax=1, cmap=SHARES, aspect="auto")
        axis.spines[:].set_visible(False)
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
        axis.set_xlabel("source")
        axis.set_ylabel("written")
    figure.colorbar(image, ax=list(axes), label="weight", shrink=0.6)
    what = "Weights of attention over the source"
    symbols = (s for example in examples for side in example[:2] for s in side)
    if any(_missing(s, font_characters) for s in symbols):
        what += "; words in capitals name characters that no font here has"
    figure.suptitle(title(what, subject_of(run)), x=0.01, ha="left")
    path = run.path / "attention.png"
    save(figure, path)
    return path


def shown(symbol: str, known: frozenset[int]) -> str:
    """Return a label that the fonts of the pictures can show.

    Characters that they lack are replaced by the last word of their Unicode name.
    """
    if symbol.isspace():
        return "\u2423"
    missing = _missing(symbol, known)
    return (
        " ".join(unicodedata.name(c, f"U+{ord(c):04X}").split()[-1] for c in missing)
        if missing
        else plain(symbol)
    )


def _missing(symbol: str, known: frozenset[int]) -> list[str]:
    """Return the characters of a symbol that the fonts lack, spaces apart."""
    return [c for c in symbol if ord(c) not in known and not c.isspace()]
