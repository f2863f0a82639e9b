"""The titles of the pictures of a run, and its learning curves."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from ..training import Run
from ..training.curves import draw_curves
from .about import about_of
from .models.own_cell import label_of
from .score_table import score_rows


def cell_of(config: Mapping[str, Any]) -> str:
    """Return the name of the cell of a run, which is not imported."""
    stored = config.get("options", {}).get("cell", "")
    if isinstance(stored, str):
        return label_of(stored)
    return str(stored.get("class", "a cell of one's own")).rpartition(":")[2]


def model_of(config: Mapping[str, Any]) -> str:
    """Return the cell of a run and its sizes, in words.

    Example:
        >>> model_of({"options": {"cell": "lstm", "hidden": 64, "layers": 2}})
        'lstm, 64 units, 2 layers'
    """
    options = config.get("options", {})
    layers = options.get("layers", 1)
    parts = [cell_of(config) or "a model"]
    if "hidden" in options:
        parts.append(f"{options['hidden']} units")
    if layers != 1:
        parts.append(f"{layers} layers")
    return ", ".join(parts)


def data_of(config: Mapping[str, Any]) -> str:
    """Return where the data of a run come from: names of files without folders."""
    options = config.get("options", {})
    if "word" in options:
        return f"the word {options['word']}"
    data = options.get("data", "")
    sources = [data] if isinstance(data, str) else list(data)
    return ", ".join(pathlib.PurePath(str(source)).name for source in sources)


def subject_of(run: Run) -> str:
    """Return what a picture of a run is of: task, data and model.

    Example:
        >>> options = {"cell": "gru", "hidden": 8, "data": ["texts/book.txt"]}
        >>> config = {"task": "charlm", "options": options}
        >>> subject_of(Run(pathlib.Path("runs/lm"), config))
        'charlm on book.txt, by gru, 8 units'
    """
    data = data_of(run.config)
    on = f" on {data}" if data else ""
    return f"{run.config['task']}{on}, by {model_of(run.config)}"


def draw_run_curves(run: Run) -> pathlib.Path | None:
    """Draw the learning curves of a run with its baselines as ``curves.png``.

    Args:
        run: the run. Without a final score there are no baselines yet.

    Returns:
        The path of the file; None without matplotlib, or for a task without a curve.
    """
    task = run.config["task"]
    about = about_of(run.config)
    if not about.curve:
        return None
    metric, label = about.curve
    records = run.records("metrics.jsonl")
    final = records[-1] if records and records[-1].get("final") else {}
    baselines: dict[str, float] = {}
    for row in score_rows(task, final):
        if row.name == metric.replace("_", " "):
            baselines = row.baselines
    scored = about.scored_on
    parts = ("validation", scored) if about.labeled else (scored, scored)
    return draw_curves(run, metric, label, baselines, parts=parts, of=subject_of(run))
