"""series: the next values of series of numbers, or the label of each.

Forecasts are many to many, labels many to one. The data says which is learned: a table
with a column of labels, or a ``.ts`` file with labels, is for the second.
"""

from __future__ import annotations

from typing import Any

from ...core.types import Params
from ...training import Budget, Experiment
from ..task import Task
from . import forecasting, labels
from .forecaster import TrainedForecaster
from .labels import TrainedLabeler
from .options import Options as Options
from .options import forecasts, read_data

BUDGET = Budget(steps=300, report_every=50, evaluate_every=50)


def build(options: Options, config: dict[str, Any]) -> tuple[Any, Params]:
    """Build the model and its initial parameters."""
    module: Any = forecasting if _forecasts(config) else labels
    return module.build(options, config)


def prepare(options: Options) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and further entries of the run's config."""
    data = read_data(options)
    module: Any = forecasting if forecasts(options, data) else labels
    return module.prepare(options, data)


def Trained(
    functions: Any, params: Params, options: Options, config: dict[str, Any]
) -> TrainedForecaster | TrainedLabeler:
    """Return the trained model, for `predict` and `evaluate`."""
    kind = TrainedForecaster if _forecasts(config) else TrainedLabeler
    return kind(functions, params, options, config)


def _forecasts(config: dict[str, Any]) -> bool:
    """Return whether a run forecasts."""
    return config["series"]["goal"] == "forecast"


TASK = Task("series", Options, BUDGET, build, prepare, Trained)
