"""The picture of gradient decay: how much arrives, and what is then learned.

Cells of one family have one color, and their lines differ in dashes, so that the names
beside the lines are enough. The bars on the right stand in the order in which the lines
end on the left.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import numpy as np

from jaxrnn.diagnostics.style import BLUE, COLORS, GRAY, GREEN, RED, dark, label_lines

FLOOR = -26.0  # powers of ten; a line that falls below it is named where it leaves
FAMILIES = {"tanh": RED, "LSTM": BLUE, "GRU": GREEN, "IRNN": COLORS[4]}
DASHES = ("-", "--", "-.", ":")
TASKS = {
    "temporal-order": "the order of two symbols",
    "adding": "the sum of two numbers",
}


def draw(result: dict, where: str, figure: Any) -> None:
    """Draw decay curves, and beside them the updates until each task was solved.

    Args:
        result: what `benchmarks.gradients.gradient_decay` has written.
        where: the machine, in words.
        figure: an empty figure.
    """
    shape = result["shape"]
    groups = _longest(result["trained"])
    axes = figure.subplots(
        1, 1 + len(groups), squeeze=False, width_ratios=[2.6] + [1] * len(groups)
    )[0]
    looks = _looks([row["name"] for row in result["initial"]])
    _draw_lines(axes[0], result["initial"], looks)
    last = {row["name"]: row["mean_log_v"][-1] for row in result["initial"]}
    order = sorted(last, key=lambda n: -math.inf if last[n] is None else last[n])
    for i, (axis, group) in enumerate(zip(axes[1:], groups, strict=True)):
        _draw_bars(axis, result, group, order, looks)
        axis.set_yticks(range(len(order)), order if i == 0 else [""] * len(order))
    figure.suptitle(
        "How much of the gradient arrives"
        f"{', and what is then learned' * bool(groups)}\n"
        f"{shape['H']} units, {shape['T']} steps; lines are means of {shape['seeds']} "
        f"seeds{', bars medians of three' * bool(groups)}; {where}",
        x=0.01,
        ha="left",
    )


def _looks(names: list[str]) -> dict[str, tuple[str, str]]:
    """Return a color and a dash for each cell."""
    used: dict[str, int] = {}
    looks = {}
    for i, name in enumerate(names):
        family = next((f for f in FAMILIES if name.startswith(f)), name)
        color = FAMILIES.get(family, COLORS[i % len(COLORS)])
        looks[name] = color, DASHES[used.get(family, 0) % len(DASHES)]
        used[family] = used.get(family, 0) + 1
    return looks


def _draw_lines(axis: Any, rows: list[dict], looks: dict) -> None:
    """Draw a line for each cell."""
    lowest = 0.0
    for row in rows:
        color, dashes = looks[row["name"]]
        curve = np.array([np.nan if v is None else v for v in row["mean_log_v"]])
        curve = curve / np.log(10)
        below = np.flatnonzero(~(curve > FLOOR))
        label = f"{row['name']}: {row['beta']:.3f}"
        if below.size:
            axis.annotate(
                label,
                (below[0], FLOOR),
                (6, 4),
                textcoords="offset points",
                color=dark(color),
                fontsize=9.5,
            )
            curve[below[0] + 1 :] = np.nan
            label = "_"
        axis.plot(curve, color=color, linestyle=dashes, lw=2, label=label)
        lowest = min(lowest, np.nanmin(curve))
    axis.set_ylim(max(FLOOR, lowest * 1.05), 1)
    axis.set_xlim(0, len(rows[0]["mean_log_v"]) - 1)
    axis.yaxis.set_major_formatter(lambda power, _: f"$10^{{{power:.0f}}}$")
    axis.set_xlabel("steps back from the loss")
    axis.set_ylabel("gradient at the state, relative to that at the loss")
    axis.set_title("At initialization; the number is the factor of one step")
    axis.grid(alpha=0.3)
    label_lines(axis)


def _longest(trained: list[dict]) -> list[tuple[str, int]]:
    """Return each task with its longest sequences."""
    tasks = dict.fromkeys(row["task"] for row in trained)
    return [
        (task, max(row["length"] for row in trained if row["task"] == task))
        for task in tasks
    ]


def _draw_bars(axis: Any, result: dict, group: tuple, order: list, looks: dict) -> None:
    """Draw after how many updates each cell had solved a task; words, where not."""
    task, length = group
    for place, name in enumerate(order):
        rows = [
            row
            for row in result["trained"]
            if (row["name"], row["task"], row["length"]) == (name, task, length)
        ]
        solved = [row["solved_after"] for row in rows if row["solved_after"]]
        updates = statistics.median_low(solved) if solved else 0
        color, _ = looks[name]
        axis.barh(place, updates, 0.7, color=color)
        few = "" if len(solved) == len(rows) else f", {len(solved)} of {len(rows)}"
        words = f"{updates:,}{few}" if solved else _failure(rows)
        axis.annotate(
            words,
            (updates, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="black" if solved else GRAY,
        )
    axis.set_xlim(0, 1.25 * result["updates"])
    axis.set_ylim(-0.6, len(order) - 0.4)
    axis.set_xticks([0, result["updates"]], ["0", f"{result['updates']:,}"])
    axis.tick_params(axis="y", length=0)
    axis.set_xlabel("updates until solved")
    axis.set_title(f"{TASKS.get(task, task)}\nover {length} steps", fontsize=9.5)


def _failure(rows: list[dict]) -> str:
    """Return how a cell failed that no seed has learned with."""
    if any(row["diverged"] for row in rows) or not all(
        row["final"] is not None and row["final"] < 100 for row in rows
    ):
        return "diverges"
    return "not learned"
