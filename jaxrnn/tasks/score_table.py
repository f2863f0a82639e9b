"""The scores of a run with their baselines beside them."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from .about import ABOUT

NOT_SCORES = {"task", "steps", "seconds", "device", "devices", "cores", "jax", "python"}


class Row(NamedTuple):
    """A score, and those of simpler methods.

    Attributes:
        name: the name of the score.
        value: the score of the model.
        baselines: the scores of other methods by their names.
    """

    name: str
    value: float
    baselines: dict[str, float]


def score_rows(task: str, result: Mapping[str, Any]) -> list[Row]:
    """Return the scores of a result, each with its baselines.

    Args:
        task: the task of the run.
        result: what ``result.json`` holds.

    Returns:
        One row a score; ``accuracy_40`` is the accuracy at another length, which has
        the baselines of the accuracy.

    Example:
        >>> score_rows("parity", {"accuracy": 1.0, "baseline": 0.5, "steps": 20})
        [Row(name='accuracy', value=1.0, baselines={'chance': 0.5})]
    """
    known = ABOUT[task].baselines
    rows = []
    for name, value in result.items():
        if (
            name in NOT_SCORES
            or name in known
            or name.endswith("_per_second")
            or isinstance(value, bool)
            or not isinstance(value, (int, float))
        ):
            continue
        at_length = re.fullmatch(r"(.+)_(\d+)", name)
        score = at_length[1] if at_length and at_length[1] in result else name
        baselines = {
            baseline.name: result[key]
            for key, baseline in known.items()
            if baseline.score == score and key in result
        }
        shown = name if score == name else f"{score} at length {name[len(score) + 1 :]}"
        rows.append(Row(shown.replace("_", " "), value, baselines))
    return rows


def score_table(task: str, result: Mapping[str, Any], width: int = 80) -> list[str]:
    """Return the scores and their baselines as the lines of a table.

    Args:
        task: the task of the run.
        result: what ``result.json`` holds.
        width: the largest number of characters of a line.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("score", no_wrap=True)
    table.add_column(ABOUT[task].scored_on, justify="right", no_wrap=True)
    rows = score_rows(task, result)
    if any(row.baselines for row in rows):
        table.add_column("baseline")
    for row in rows:
        others = ", ".join(f"{name} {x:.4g}" for name, x in row.baselines.items())
        table.add_row(row.name, f"{row.value:.4g}", *([others] if others else []))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as shown:
        console.print(table)
    return [line.rstrip() for line in shown.get().splitlines()]
