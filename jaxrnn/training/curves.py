"""Learning curves of a run as an image."""

from __future__ import annotations

import pathlib

from .run import Run


def new_figure(width: float, height: float):
    """Create a matplotlib figure without a display; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height))


def draw_curves(
    run: Run,
    metric: str,
    label: str,
    baseline: tuple[str, float] | None = None,
    *,
    parts: tuple[str, str] = ("held out", "held out"),
) -> pathlib.Path | None:
    """Draw ``curves.png``: a training and held-out metric against steps and minutes.

    Args:
        run: the run, where the file is written.
        metric: the name of the metric in ``metrics.jsonl``.
        label: the label of the axis.
        baseline: a name and a value, drawn as a dashed line.
        parts: the parts of the data that are scored during training, and at the end.

    Returns:
        The path of the file; None without matplotlib.
    """
    figure = new_figure(10, 4)
    if figure is None:
        return None
    records = run.records("metrics.jsonl")
    minutes = {r["step"]: r["seconds"] / 60 for r in run.records("timing.jsonl")}
    train = [
        (r["step"], r[metric]) for r in records if metric in r and not r.get("final")
    ]
    held_out = [
        (r["step"], r[f"held_out_{metric}"])
        for r in records
        if f"held_out_{metric}" in r
    ]
    final = [(r["step"], r[metric]) for r in records if r.get("final")]
    axes = figure.subplots(1, 2, sharey=True)
    for axis, of_step, axis_name in (
        (axes[0], lambda step: step, "steps"),
        (axes[1], lambda step: minutes.get(step), "minutes"),
    ):
        for points, style, series in (
            (train, {"alpha": 0.6}, "training"),
            (held_out, {"marker": "o", "ms": 4}, parts[0]),
        ):
            known_points = [
                (of_step(s), v) for s, v in points if of_step(s) is not None
            ]
            if known_points:
                axis.plot(*zip(*known_points, strict=True), label=series, **style)
        for step, value in final:
            position = of_step(step) or max(minutes.values(), default=0)
            axis.plot(
                [position],
                [value],
                "*",
                ms=12,
                color="black",
                label=f"final, {parts[1]}: {value:.3f}",
            )
        if baseline:
            axis.axhline(
                baseline[1],
                ls="--",
                color="gray",
                label=f"{baseline[0]}: {baseline[1]:.4g}",
            )
        axis.set_xlabel(axis_name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(label)
    axes[0].legend()
    figure.suptitle(f"{run.path.name}: {label}")
    figure.tight_layout()
    path = run.path / "curves.png"
    figure.savefig(path, dpi=110)
    return path
