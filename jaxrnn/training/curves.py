"""Learning curves of runs as images."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..diagnostics.style import BLUE, GRAY, RED, label_lines, save, styled, title
from .run import Run

FIRST = 0.05  # the share of the steps that does not set the limits of the axis


def new_figure(width: float, height: float):
    """Create a matplotlib figure without a display; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")


class Curves(NamedTuple):
    """The values of one metric in a run, as pairs of a step and a value.

    Attributes:
        train: on training data, means since the report before.
        evaluated: the scores of evaluations.
        final: the last score, if there is one.
    """

    train: list[tuple[int, float]]
    evaluated: list[tuple[int, float]]
    final: list[tuple[int, float]]


def curves_of(run: Run, metric: str) -> Curves:
    """Return the curves of a metric.

    Args:
        run: the run.
        metric: the name of the metric in ``metrics.jsonl``.
    """
    train: list[tuple[int, float]] = []
    evaluated: list[tuple[int, float]] = []
    final: list[tuple[int, float]] = []
    for record in run.records("metrics.jsonl"):
        value, held_out = record.get(metric), record.get(f"held_out_{metric}")
        if value is not None:
            (final if record.get("final") else train).append((record["step"], value))
        if held_out is not None:
            evaluated.append((record["step"], held_out))
    return Curves(train, evaluated, final)


@styled
def draw_curves(
    run: Run,
    metric: str,
    label: str,
    baselines: Mapping[str, float] | None = None,
    *,
    parts: tuple[str, str] = ("held out", "held out"),
    of: str = "",
) -> pathlib.Path | None:
    """Draw ``curves.png``: a metric in training and on held-out data against steps.

    The first twentieth of the run does not set the limits of the axis.

    Args:
        run: the run, where the file is written.
        metric: the name of the metric in ``metrics.jsonl``.
        label: the label of the axis.
        baselines: the scores of other methods by name, drawn as dashed lines.
        parts: the parts of the data that are scored during training, and at the end.
        of: of which model, on which data, for the title.

    Returns:
        The path of the file; None without matplotlib.
    """
    figure = new_figure(5.6, 3.8)
    if figure is None:
        return None
    train, evaluated, final = curves_of(run, metric)
    axis = figure.subplots()
    for points, name, look in (
        (train, "training", {"color": BLUE, "alpha": 0.7}),
        (evaluated, parts[0], {"color": RED, "marker": "o", "ms": 4}),
    ):
        if points:
            axis.plot(*zip(*points, strict=True), "-", label=name, **look)
    for step, value in final:
        axis.plot(
            [step],
            [value],
            "*",
            ms=12,
            color="black",
            label=f"{parts[1]}, final: {value:.4g}",
        )
    for name, value in (baselines or {}).items():
        axis.axhline(value, ls="--", lw=1.2, color=GRAY, label=f"{name}: {value:.4g}")
    _limit(axis, [*train, *evaluated], [*final], [*(baselines or {}).values()])
    minutes = max((r["seconds"] for r in run.records("timing.jsonl")), default=0) / 60
    axis.set_xlabel(f"steps ({minutes:.1f} minutes)" if minutes else "steps")
    axis.set_ylabel(label)
    axis.grid()
    axis.set_title(title(f"{label[:1].upper()}{label[1:]}", of or run.path.name))
    label_lines(axis)
    path = run.path / "curves.png"
    save(figure, path)
    return path


def _limit(axis: Any, curves: list, final: list, baselines: list[float]) -> None:
    """Set the limits of an axis by what is drawn after the beginning of a run."""
    last = max((step for step, _ in [*curves, *final]), default=0)
    values = [v for step, v in curves if step >= FIRST * last] or [v for _, v in curves]
    values += [value for _, value in final] + baselines
    finite = [value for value in values if abs(value) < float("inf")]
    if finite:
        low, high = min(finite), max(finite)
        room = 0.06 * (high - low) or 0.1 * (abs(high) or 1.0)
        axis.set_ylim(low - room, high + room)
    axis.set_xlim(0, 1.02 * last or 1)
