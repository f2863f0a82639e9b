"""What a run directory holds, without importing the code of its cell."""

from __future__ import annotations

import math
import os
from typing import Any

from ..training import Checkpoints, Run
from .about import ABOUT, next_commands, resume_command
from .catalog import result_of, state_of, summary_of


def run_info(path: str | os.PathLike) -> dict[str, Any]:
    """Return what a run is, how far it came, what it scored, and what it holds.

    Args:
        path: the run directory.

    Returns:
        A JSON object: ``run``, ``task``, ``state`` (``finished``, ``running`` or
        ``unfinished``), ``step`` and ``steps``, ``options``, ``budget``,
        ``parameters`` (their number), ``shapes`` (by name), ``result``, the last
        ``training`` and ``evaluation`` records, ``files`` (bytes by name), ``notes``
        on damaged checkpoints, and ``next``, commands.

    Raises:
        InputError: if there is no run, or none of its checkpoints can be read.
    """
    run = Run.open(path)
    summary = summary_of(run)
    shapes, notes = shapes_of(run)
    return {
        "run": str(run.path),
        "task": summary.task,
        "state": summary.state,
        "step": summary.step,
        "steps": summary.steps,
        "options": run.config.get("options", {}),
        "budget": run.config.get("budget", {}),
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "result": result_of(run),
        **_last_records(run),
        "files": _files(run),
        "notes": notes,
        "next": _next(run),
    }


def shapes_of(run: Run) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return the shapes of the parameters, and notes on damaged checkpoints."""
    if not run.checkpoints.is_dir() or not any(run.checkpoints.iterdir()):
        return {}, []
    checkpoints = Checkpoints(run.checkpoints)
    try:
        return checkpoints.shapes("params")
    finally:
        checkpoints.close()


def _last_records(run: Run) -> dict[str, Any]:
    """Return the newest record of training and that of an evaluation."""
    found: dict[str, Any] = {"training": {}, "evaluation": {}}
    for record in run.records("metrics.jsonl"):
        if not record.get("final"):
            is_evaluation = any(name.startswith("held_out_") for name in record)
            found["evaluation" if is_evaluation else "training"] = record
    return found


def _files(run: Run) -> dict[str, int]:
    """Return the sizes of the files in bytes; those of a folder are added up."""
    return {
        entry.name + ("/" if entry.is_dir() else ""): sum(
            file.stat().st_size
            for file in ([entry] if entry.is_file() else entry.rglob("*"))
            if file.is_file()
        )
        for entry in sorted(run.path.iterdir())
    }


def _next(run: Run) -> list[str]:
    """Return commands for the run: to continue it, or to use it."""
    if run.config["task"] not in ABOUT:
        return []
    if state_of(run) == "finished":
        return [line for line in next_commands(run) if "jaxrnn info" not in line]
    return [resume_command(run)]
