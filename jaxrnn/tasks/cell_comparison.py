"""Cells side by side: scores of small tasks, gradient decay, and what they cost."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from .. import diagnostics
from ..core.cell import Cell
from ..core.layer import Layer
from ..diagnostics.style import save
from ..training import InputError
from .cell_costs import measure_costs
from .config import check_name, check_options, option
from .models.cell_registry import check_cell_name, make_cell
from .models.own_cell import CellLike, labelled
from .probe import as_json, lags_of
from .runner import SYNTHETIC

SYNTHETIC_TASKS = {task.name: task for task in SYNTHETIC}
COMPARED = ("copy", "adding", "parity")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The options of `compare_cells`; the names are the flags of the command line."""

    tasks: tuple[str, ...] = option(COMPARED, "synthetic tasks to train")
    steps: int = option(300, "number of updates of each training", least=1)
    hidden: int = option(
        32, "number of units, where a cell does not say it itself", least=1
    )
    length: int = option(
        100, "number of steps for gradient decay and for time and memory", least=6
    )
    batch: int = option(32, "number of sequences, likewise", least=1)
    rounds: int = option(7, "number of samples of the time", least=1)
    seed: int = option(0, "random seed", least=0, below=2**31)

    def __post_init__(self):
        check_options(self)
        for task in self.tasks:
            check_name("--tasks", task, [known.name for known in SYNTHETIC])


def compare_cells(
    cells: Mapping[str, CellLike] | Iterable[CellLike],
    options: dict[str, Any] | None = None,
    *,
    out: str | os.PathLike | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Compare cells: what they learn, how far gradients reach, and what they cost.

    Every cell is trained on the same sequences by as many updates, with the quick
    options of each task. The gradient decay is that at initialization, for the loss of
    the adding task. Time and memory are those of an unroll and its gradient, with as
    many input features as ``hidden``; the cells take turns.

    Args:
        cells: cells, layers, their names as for ``--cell``, or import paths of one's
            own; by label, or one after another.
        options: fields of `Comparison` that differ from its defaults.
        out: a directory for ``cells.json`` and ``decay.png``; by default nothing is
            written.

    Returns:
        The results by label, and a table as lines of text.

    Raises:
        InputError: for an unknown cell, task or option.

    Example:
        >>> import jaxrnn
        >>> from jaxrnn.tasks import compare_cells
        >>> small = {"tasks": [], "length": 6, "batch": 2, "rounds": 1}
        >>> results, lines = compare_cells({"mine": jaxrnn.Elman(4)}, small)
        >>> results["cells"]["mine"]["parameters"]
        148
    """
    if isinstance(cells, (str, Cell, Layer)) or not isinstance(
        options, (Mapping, type(None))
    ):
        raise InputError(
            "cells: compare_cells takes one dict or list of cells, and then the "
            'options: compare_cells({"mine": cell, "lstm": "lstm"}, {"steps": 100})'
        )
    for name in options or {}:
        known = [field.name for field in dataclasses.fields(Comparison)]
        check_name("cells", name, known)
    given: dict[str, Any] = {
        n: tuple(v) if isinstance(v, list) else v for n, v in (options or {}).items()
    }
    asked = Comparison(**given)
    named = dict(cells) if isinstance(cells, Mapping) else labelled(cells)
    if not named:
        raise InputError(
            "cells: name at least one, such as --cell lstm --cell mine:Mine"
        )
    for label, cell in named.items():
        check_cell_name(
            f"--cell {label}" if isinstance(cells, Mapping) else "--cell", cell
        )
    made = {n: make_cell(c, asked.hidden, asked.length) for n, c in named.items()}
    costs = measure_costs(
        made,
        steps=asked.length,
        batch=asked.batch,
        input_size=asked.hidden,
        rounds=asked.rounds,
    )
    decays = {label: _decay(cell, asked) for label, cell in named.items()}
    results = {
        **dataclasses.asdict(asked),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cells": {
            label: {
                "cell": _written(cell),
                **costs[label]._asdict(),
                "scores": {task: _score(task, cell, asked) for task in asked.tasks},
                "gradients": decays[label],
            }
            for label, cell in named.items()
        },
    }
    lines = _table(results)
    return results, lines if out is None else [*lines, *_write(out, results)]


def _written(cell: CellLike) -> Any:
    """Return a cell for JSON: its name, its configuration, or how it prints."""
    if isinstance(cell, str):
        return cell
    try:
        return cell.to_config()
    except TypeError:
        return repr(cell)


def _options(task: str, cell: CellLike, asked: Comparison, **more: Any) -> Any:
    """Return the quick options of a task."""
    kind = SYNTHETIC_TASKS[task].Options
    own = {"cell": cell, "hidden": asked.hidden, "seed": asked.seed}
    return kind(**{**kind.QUICK, **own, **more})


def _score(task: str, cell: CellLike, asked: Comparison) -> dict[str, Any]:
    """Train one cell on one task, and return its held-out scores."""
    options = _options(task, cell, asked)
    experiment, _ = SYNTHETIC_TASKS[task].prepare(options)
    state = experiment.start()
    for update in range(asked.steps):
        state = experiment.advance(state, np.float32((update + 1) / asked.steps))
    scores = {
        name: as_json(value) for name, value in experiment.evaluate(state).items()
    }
    return {"score": SYNTHETIC_TASKS[task].problem(options).score, **scores}


def _decay(cell: CellLike, asked: Comparison) -> dict[str, Any]:
    """Return the gradient decay of one cell on the adding task, at initialization."""
    adding = SYNTHETIC_TASKS["adding"]
    options = _options("adding", cell, asked, length=asked.length)
    params = adding.build(options, {})[1]
    probe = adding.probe(options, {}, asked.length, asked.batch)
    first = min(20, asked.length // 3)
    try:
        lags = jax.jit(lambda p: lags_of(probe(p)))(params)
        fit = diagnostics.fit_decay(
            lags, (first, asked.length - 1), key=jax.random.key(asked.seed)
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        # Such as a layer that reads later inputs.
        return {"error": str(error).splitlines()[0]}
    beta = float(fit.beta)
    return {
        "beta": as_json(beta),
        "tau": as_json(-1 / np.log(beta) if 0 < beta < 1 else np.nan),
        "log_v_over_v0": as_json(lags.log_v - lags.log_v[0]),
        "memory_horizon": as_json(diagnostics.memory_horizon(lags.log_v)),
    }


def _table(results: dict[str, Any]) -> list[str]:
    """Return the table and a legend of its columns, as lines."""
    first = next(iter(results["cells"].values()))
    scores = [f"{task} {s['score']}" for task, s in first["scores"].items()]
    head = ["cell", "parameters", *scores, "beta", "tau", "ms", "MB"]
    rows = [head, *(_row(name, cell) for name, cell in results["cells"].items())]
    if scores:
        baselines = [_shown(s["baseline"]) for s in first["scores"].values()]
        rows.insert(1, ["(no memory)", "", *baselines, "", "", "", ""])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [
        *lines,
        f"scores after {results['steps']} updates on the same sequences; beta, tau: at "
        "initialization the gradient shrinks by beta a step, to 1/e in tau steps",
        f"ms, MB: forward and backward, T {results['length']}, B {results['batch']}, "
        f"{results['hidden']} inputs; MB are temporaries",
    ]


def _row(name: str, cell: dict[str, Any]) -> list[str]:
    """Return one row of the table."""
    decay, memory = cell["gradients"], cell["temporary_bytes"]
    return [
        name,
        str(cell["parameters"]),
        *(_shown(scores[scores["score"]]) for scores in cell["scores"].values()),
        _shown(decay.get("beta")),
        _shown(decay.get("tau")),
        f"{cell['milliseconds']:.3g}",
        "-" if memory is None else f"{memory / 1e6:.3g}",
    ]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _write(out: str | os.PathLike, results: dict[str, Any]) -> list[str]:
    """Write the results and the picture, and return one line for each file."""
    folder = pathlib.Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cells.json").write_text(
            json.dumps(results, indent=1) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error.strerror}; choose another --out"
        ) from None
    lines = [f"written: {folder / 'cells.json'}"]
    curves = {
        name: np.array(cell["gradients"]["log_v_over_v0"], float)
        for name, cell in results["cells"].items()
        if "log_v_over_v0" in cell["gradients"]
    }
    if not curves:
        return lines
    title = (
        f"Gradient at the state k steps before the loss\nadding, "
        f"{results['length']} steps, {results['hidden']} units, at initialization"
    )
    try:
        picture = diagnostics.plots.decay_curves(curves, title=title)
    except ImportError as error:
        return [*lines, f"no picture: {error}"]
    save(picture, folder / "decay.png")
    return [*lines, f"picture: {folder / 'decay.png'}"]
