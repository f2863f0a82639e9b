"""``jaxrnn compare``: runs side by side, read from their directories."""

from __future__ import annotations

import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ..diagnostics.style import label_lines, save, styled, title
from ..training import InputError, Run
from ..training.curves import curves_of, new_figure
from .about import about_of
from .report import facts_of

NO_FLAGS = ("task", "learns")  # rows of a comparison that are no flags


def compare_runs(paths: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """Return runs side by side; their cells are not imported.

    Args:
        paths: run directories, two or more.

    Returns:
        A JSON object: ``differs``, the names of the options that are not the same in
        all runs, and ``runs``, a list of ``run``, ``task``, ``state``, ``options``
        (those that differ), ``parameters``, ``scores`` (by name; the final ones, or
        those of the newest evaluation), ``part`` (of the data that is scored),
        ``steps`` and ``seconds``.

    Raises:
        InputError: for fewer than two runs, or a directory that is no run.
    """
    if len(paths) < 2:
        raise InputError("compare needs two runs or more: jaxrnn compare RUN RUN")
    facts = [facts_of(Run.open(path)) for path in paths]
    options = [
        {
            "task": each.run.config["task"],
            **_goal(each.run),
            **each.run.config.get("options", {}),
            **each.run.config.get("budget", {}),
        }
        for each in facts
    ]
    names = dict.fromkeys(name for given in options for name in given)
    differs = [
        name
        for name in names
        if any(given.get(name) != options[0].get(name) for given in options)
    ]
    runs = [
        {
            "run": str(each.run.path),
            "task": each.run.config["task"],
            "state": each.state,
            "options": {name: given.get(name) for name in differs},
            "parameters": each.parameters,
            "scores": {row.name: row.value for row in each.rows},
            "part": each.part,
            "steps": each.step,
            "seconds": _seconds(each.run, each.result),
        }
        for each, given in zip(facts, options, strict=True)
    ]
    return {"differs": differs, "runs": runs}


def _goal(run: Run) -> dict[str, str]:
    """Return what a run on series learns, where the data has decided it."""
    goal = run.config.get("series", {}).get("goal")
    return {"learns": goal} if goal else {}


def _seconds(run: Run, result: dict[str, Any]) -> float | None:
    """Return how long a run has taken so far."""
    if "seconds" in result:
        return result["seconds"]
    return max((r["seconds"] for r in run.records("timing.jsonl")), default=None)


def comparison_table(found: dict[str, Any], width: int = 80) -> list[str]:
    """Return what `compare_runs` found as the lines of a table, a run in each column.

    Args:
        found: the comparison.
        width: the largest number of characters of a line.
    """
    runs = found["runs"]
    rows = {
        name if name in NO_FLAGS else f"--{name.replace('_', '-')}": [
            run["options"][name] for run in runs
        ]
        for name in found["differs"]
    }
    scores = dict.fromkeys(name for run in runs for name in run["scores"])
    rows |= {name: [run["scores"].get(name) for run in runs] for name in scores}
    rows |= {name: [run[name] for run in runs] for name in ("parameters", "steps")}
    rows["seconds"] = [run["seconds"] for run in runs]
    if len({(run["state"], run["part"]) for run in runs}) > 1:
        rows["scored on"] = [f"{run['part']} ({run['state']})" for run in runs]
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("", no_wrap=True)
    for run in runs:
        table.add_column(run["run"], justify="right", overflow="fold")
    for name, values in rows.items():
        table.add_row(name, *map(_shown, values))
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system=None,
        markup=False,
        highlight=False,
    )
    with console.capture() as shown:
        console.print(table)
    return [line.rstrip() for line in shown.get().splitlines()]


def _shown(value: object) -> str:
    """Return a value of the table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


@styled
def draw_comparison(
    paths: Sequence[str | os.PathLike], out: str | os.PathLike
) -> pathlib.Path:
    """Draw the learning curves of runs of one task into one picture.

    Args:
        paths: run directories.
        out: the PNG file.

    Returns:
        The path of the file.

    Raises:
        InputError: if the runs are of several tasks or without curves, the file is no
            PNG or cannot be written, or matplotlib is not installed.
    """
    runs, out = [Run.open(path) for path in paths], pathlib.Path(out)
    tasks = sorted({run.config["task"] for run in runs})
    about = about_of(runs[0].config)
    if len(tasks) > 1 or not about.curve:
        raise InputError(
            f"--out draws the learning curves of runs of one task, but these are of "
            f"{', '.join(tasks)}: leave out --out, or name runs of one task"
        )
    if len({about_of(run.config).curve for run in runs}) > 1:
        raise InputError(
            "--out draws one score of all runs, but some of these forecast and some "
            "learn labels: leave out --out, or name runs with one goal"
        )
    if out.suffix != ".png":
        raise InputError(f"--out must end in .png, but it is {out}")
    figure = new_figure(5.6, 3.8)
    if figure is None:
        raise InputError("--out needs matplotlib: pip install 'jaxrnn[plot]'")
    metric, label = about.curve
    axis = figure.subplots()
    for run in runs:
        curves = curves_of(run, metric)
        points = [*curves.evaluated, *curves.final[-1:]] or curves.train
        if points:
            axis.plot(
                *zip(*sorted(points), strict=True),
                marker="o",
                ms=4,
                label=run.path.name,
            )
    axis.set_xlabel("steps")
    axis.set_ylabel(label)
    axis.grid()
    what = f"{label[:1].upper()}{label[1:]}"
    axis.set_title(title(what, f"{tasks[0]}, {about.scored_on}, {len(runs)} runs"))
    label_lines(axis)
    try:
        save(figure, out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror}") from None
    return out
