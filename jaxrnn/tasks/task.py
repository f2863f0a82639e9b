"""What a task is to the programs: options, a budget, a model, an experiment, a use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ..core.types import Params
from ..training import Budget, Experiment
from .probe import Probe

Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A task as the runner, the command line and the studies of gradients use it.

    A module of `jaxrnn.tasks` ends with its ``TASK``, and `jaxrnn.tasks.runner.TASKS`
    lists them. CONTRIBUTING.md says what else a new task needs.

    Args:
        name: the name on the command line and in ``config.json``.
        Options: a frozen dataclass of options, whose ``QUICK`` holds those of a small
            run.
        BUDGET: how long to train by default.
        build: from options and a run's config to the functions of the model and its
            initial parameters.
        prepare: from options to the experiment, and further entries of the run's
            config.
        Trained: from functions, parameters, options and config to an object with
            ``predict``, ``evaluate``, ``sample`` and ``report``.
        probe: from options, config, a length and a batch size to a function from
            parameters to a `Probe`, by which ``jaxrnn gradients`` measures a model.
            None if the task cannot be measured.

    Example:
        >>> from jaxrnn.tasks.runner import TASKS
        >>> task = TASKS["hello"]
        >>> functions, params = task.build(task.Options(), {})
        >>> task.BUDGET.steps
        200
    """

    name: str
    Options: Any
    BUDGET: Budget
    build: Callable[[Any, Config], tuple[Any, Params]]
    prepare: Callable[[Any], tuple[Experiment, Config]]
    Trained: Callable[..., Any]
    probe: Callable[[Any, Config, int, int], Callable[[Params], Probe]] | None = None
