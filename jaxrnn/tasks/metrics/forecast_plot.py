"""Forecasts drawn with their history."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ...diagnostics.style import BLUE, GRAY, RED, label_lines, plain, save, styled
from ...diagnostics.style import title as title_of
from ...training import Run
from ...training.curves import new_figure
from ..pictures import subject_of

MOST_COLUMNS = 4
LOOKS = {"model": (RED, "-", 1.8), "linear": (BLUE, ":", 1.4)}


class Drawn(NamedTuple):
    """What is drawn of one series.

    Attributes:
        name: the name of the series; empty if it is the only one.
        columns: the names of the K columns.
        first: the number of the first sample that is drawn.
        values: what was measured, NaN where it is missing, ``(T, K)``.
        begins: the samples at which the forecasts begin, ``(N,)``.
        forecasts: by method, ``(N, H, K)``.
    """

    name: str
    columns: tuple[str, ...]
    first: int
    values: Float[np.ndarray, "T K"]
    begins: list[int]
    forecasts: dict[str, Float[np.ndarray, "N H K"]]


@styled
def draw_forecast(run: Run, drawn: Drawn, unit: str) -> pathlib.Path | None:
    """Draw ``forecast.png``: history and forecasts of the test part, by column.

    Args:
        run: the run, where the file is written.
        drawn: one series; its last forecasts stand one after the other.
        unit: the label of the axis of time.

    Returns:
        The path of the file; None without matplotlib.
    """
    count = min(len(drawn.columns), MOST_COLUMNS)
    figure = new_figure(8, 1.4 + 1.9 * count)
    if figure is None:
        return None
    axes = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    steps = np.arange(drawn.first, len(drawn.values))
    for column, axis in enumerate(axes):
        axis.plot(
            steps,
            drawn.values[drawn.first :, column],
            "-",
            color="black",
            lw=1,
            label="measured",
        )
        for method, values in drawn.forecasts.items():
            color, style, width = LOOKS.get(method, (GRAY, "--", 1.0))
            at, said = _joined(drawn.begins, values[..., column])
            axis.plot(at, said, color=color, ls=style, lw=width, label=method)
        axis.axvspan(drawn.begins[0] - 0.5, steps[-1] + 0.5, color="0.94", zorder=0)
        axis.set_ylabel(plain(drawn.columns[column]))
        axis.set_xlim(steps[0], steps[-1] + 0.5)
        axis.set_ylim(axis.get_ylim())
    label_lines(axes[0])
    axes[-1].set_xlabel(unit)
    which = f" of series {drawn.name}" if drawn.name else ""
    what = f"Forecasts of the test part (shaded){which}"
    figure.suptitle(title_of(what, subject_of(run)), x=0.01, ha="left")
    path = run.path / "forecast.png"
    save(figure, path)
    return path


def _joined(
    begins: list[int], values: Float[np.ndarray, "N H"]
) -> tuple[np.ndarray, np.ndarray]:
    """Put forecasts one after the other, with a break between those that are longer."""
    horizon = values.shape[1]
    if horizon == 1:
        return np.array(begins), values[:, 0]
    at = np.array(begins)[:, None] + np.arange(horizon + 1.0)
    with_breaks = np.concatenate([values, np.full((len(values), 1), np.nan)], axis=1)
    return at.ravel(), with_breaks.ravel()
