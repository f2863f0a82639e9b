"""What is trained, in a few lines, before the first step."""

from __future__ import annotations

from typing import Any

import jax

from ..core.types import Params
from ..training import Budget, Run, TrainState
from .about import about_of
from .models.own_cell import label_of


def introduction(
    run: Run, options: Any, budget: Budget, data: str, state: TrainState
) -> tuple[str, ...]:
    """Return what is trained, on what, for how long, and where it is written.

    Args:
        run: the run directory.
        options: the options of its task.
        budget: the length of the run.
        data: the sizes of the data, in words.
        state: the state before the first step.

    Returns:
        Lines of a name and its value.
    """
    values, task = vars(options), run.config["task"]
    layers, batch = values.get("layers", 1), values.get("batch", 1)
    size = f"{values['hidden']} units, {layers} layer{'s' if layers > 1 else ''}"
    rows = {
        task: about_of(run.config).sentence,
        "model": (
            f"{label_of(values['cell'])}, {size}, "
            f"{parameter_count(state.params):,} parameters"
        ),
        "data": data,
        "training": (
            f"{length_of(budget)}, batch {batch}, learning rate "
            f"{values['learning_rate']:g}{_another(values)}{_online(values)}, on "
            f"{devices(values.get('devices', 1))}"
        ),
        "run": str(run.path),
    }
    width = max(map(len, rows))
    return tuple(f"{name:<{width}}  {value}" for name, value in rows.items())


def _another(values: dict[str, Any]) -> str:
    """Return the optimizer, where it is not Adam."""
    name = values.get("optimizer", "adam")
    return "" if name == "adam" else f" of {name}"


def _online(values: dict[str, Any]) -> str:
    """Return how gradients are computed, where it is not backwards in time."""
    name = values.get("gradient_method", "tbptt")
    return "" if name == "tbptt" else f", gradients by {name}"


def parameter_count(params: Params) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def length_of(budget: Budget) -> str:
    """Return the length of a run in words."""
    parts = [f"{budget.steps:,} steps"] if budget.steps else []
    if budget.seconds:
        parts.append(f"{budget.seconds:g} seconds")
    return " or ".join(parts)


def devices(count: int) -> str:
    """Return the number and the kind of the devices."""
    kind = jax.devices()[0].device_kind
    return f"{count} {kind} device{'s' if count > 1 else ''}"
