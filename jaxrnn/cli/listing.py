"""``jaxrnn list`` and ``jaxrnn info``: what there is, and what a run holds."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Callable
from typing import Any

from ..tasks.about import ABOUT
from ..tasks.catalog import DATA, RunSummary, runs_in
from ..tasks.models.cell_registry import KNOWN
from ..tasks.run_comparison import compare_runs, comparison_table, draw_comparison
from ..tasks.run_info import run_info
from ..tasks.score_table import score_table
from .menu import aligned, task_lines


def cell_lines() -> list[str]:
    """Return the cells with their variants."""
    width, name_width = columns(), max(map(len, KNOWN))
    lines = []
    for name, text in KNOWN.items():
        indent = " " * (name_width + 4)
        lines += textwrap.wrap(
            f"  {name:<{name_width}}  {text}",
            width,
            subsequent_indent=indent,
            break_long_words=False,
        )
    return [*lines, f"  {'module:Name':<{name_width}}  a cell of your own"]


def data_lines() -> list[str]:
    """Return the data sets that are installed, and how to install the others."""
    rows = [
        (
            f"{data.task:<12} {data.name}",
            data.what if data.is_installed else data.install,
        )
        for data in DATA
    ]
    own = [
        (f"{task:<12} FILE", about.data) for task, about in ABOUT.items() if about.data
    ]
    here = [row for data, row in zip(DATA, rows, strict=True) if data.is_installed]
    missing = [row for row in rows if row not in here]
    return [
        *aligned(here),
        *(["", "  not installed", *aligned(missing)] if missing else []),
        "",
        "  your own",
        *aligned(own),
    ]


def run_lines(folder: str) -> list[str]:
    """Return the runs in a folder, the newest first."""
    found = runs_in(folder)
    if not found:
        return [f"  none in {folder}"]
    rows = [("run", "task", "cell", "steps", "state", "score"), *map(_cells_of, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cells_of(run: RunSummary) -> tuple[str, ...]:
    """Return what a line says of a run."""
    score = f"{run.score[0]} {run.score[1]:.4g}" if run.score else ""
    steps = f"{run.step}" + (f"/{run.steps}" if run.steps else "")
    return (run.path, run.task, run.cell, steps, run.state, score)


def listed(arguments: argparse.Namespace) -> None:
    """Print what there is: tasks, cells, data and runs, or one of them."""
    sections: dict[str, Callable[[], list[str]]] = {
        "tasks": task_lines,
        "cells": cell_lines,
        "data": data_lines,
        "runs": lambda: run_lines(arguments.runs),
    }
    if arguments.what:
        print("\n".join(sections[arguments.what]()))
        return
    blocks = ["\n".join([name, *lines()]) for name, lines in sections.items()]
    print("\n\n".join(blocks))


def columns() -> int:
    """Return the width of the terminal; 80 where there is none."""
    return shutil.get_terminal_size().columns


def info(arguments: argparse.Namespace) -> None:
    """Print what a run holds."""
    found = run_info(arguments.run)
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print("\n".join(info_lines(found)))


def compare(arguments: argparse.Namespace) -> None:
    """Print how runs differ, and draw their learning curves if a file is named."""
    found = compare_runs(arguments.runs)
    picture = draw_comparison(arguments.runs, arguments.out) if arguments.out else None
    if arguments.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    print("\n".join(comparison_table(found, columns())))
    if picture:
        print(f"picture: {picture}")


def info_lines(found: dict[str, Any]) -> list[str]:
    """Return what `run_info` has found, as lines."""
    steps = f" of {found['steps']:,}" if found["steps"] else ""
    lines = [
        f"{found['run']}: {found['task']}, {found['state']}, "
        f"step {found['step']:,}{steps}",
        *(f"note: {note}" for note in found["notes"]),
    ]
    if found["result"] and found["task"] in ABOUT:
        lines += ["", *score_table(found["task"], found["result"], columns())]
    else:
        for name in ("training", "evaluation"):
            if found[name]:
                lines += ["", f"newest {name}", *_rows(_numbers(found[name]))]
    lines += ["", "options", *_rows({**found["options"], **found["budget"]})]
    lines += ["", f"parameters: {found['parameters']:,}", *_rows(found["shapes"])]
    lines += ["", "files", *_rows({k: _size(v) for k, v in found["files"].items()})]
    if found["next"]:
        lines += ["", "next", *(f"  {line}" for line in found["next"])]
    return lines


def _rows(values: dict[str, Any]) -> list[str]:
    """Return names and values as aligned lines."""
    return aligned(
        [(name, _said(value)) for name, value in values.items() if value is not None]
    )


def _said(value: object) -> str:
    """Return a value as words."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return " x ".join(map(str, value)) or "1"
    return json.dumps(value) if isinstance(value, (dict, bool)) else str(value)


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """Return the names and values of a record, without the prefix of evaluations."""
    return {
        name.removeprefix("held_out_"): value
        for name, value in record.items()
        if isinstance(value, (int, float))
    }


def _size(count: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count = count / 1000
    return f"{count:.3g} GB"
