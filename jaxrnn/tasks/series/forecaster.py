"""A trained forecaster: forecasts, scores and files of forecasts."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ...core.types import Params
from ...training import InputError, Run
from ..data.bucketing import Buckets
from ..data.series import Cuts, Filled, Scaler, Series, SeriesTable, filled
from ..data.series_tables import read_series
from ..data.windows import as_floats, of_series
from ..metrics.forecast_plot import Drawn, draw_forecast
from ..metrics.forecasts import (
    Origin,
    best_linear,
    column_errors,
    forecast_scores,
    naive,
    truth_after,
)
from ..models.series_model import Forecaster, last_forecast, rolled_out
from ..pictures import draw_run_curves
from ..supervised import PredictsLabels
from .forecast_data import Parts, described, features_of
from .options import Options, check_table, read_data

AT_ONCE = 256  # windows that are forecast from in a batch


@dataclasses.dataclass(frozen=True)
class TrainedForecaster(PredictsLabels):
    """A trained model, for `predict` and `evaluate`."""

    functions: Forecaster = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    options: Options
    config: dict[str, Any]
    task = "series"

    @functools.cached_property
    def scaler(self) -> Scaler:
        """Return the scales of the training part."""
        return Scaler.stored(self.config["series"])

    @property
    def targets(self) -> list[int]:
        """Return the numbers of the columns that are forecast."""
        return self.config["series"]["targets"]

    def unscaled(self, values: Float[np.ndarray, "*N K"]) -> Float[np.ndarray, "*N K"]:
        """Return forecasts in the units of the data."""
        mean, scale = np.array(self.scaler.mean), np.array(self.scaler.scale)
        return np.asarray(values, float) * scale[self.targets] + mean[self.targets]

    def inputs_of(self, series: Filled) -> Float[np.ndarray, "T F"]:
        """Return what the network reads of a series."""
        return features_of(self.options, self.config).of(series)

    def forecasts(
        self, series: Sequence[Series], origins: Sequence[Origin]
    ) -> Float[np.ndarray, "N H K"]:
        """Return the forecasts of the next H samples after each origin.

        Each is made from the last ``length`` samples alone.
        """
        inputs = {
            i: self.inputs_of(filled(series[i], self.scaler))
            for i in {origin.series for origin in origins}
        }
        begins = [max(t + 1 - self.options.length, 0) for _, t in origins]
        windows = [
            inputs[i][begin : t + 1]
            for (i, t), begin in zip(origins, begins, strict=True)
        ]
        lengths = np.array([len(window) for window in windows])
        said = of_series(
            functools.partial(last_forecast, self.functions, self.params),
            windows,
            Buckets(lengths, AT_ONCE, coarse=True),
            (self.options.horizon, len(self.targets)),
        )
        return self.unscaled(said)

    def scores(
        self, series: Sequence[Series], origins: Sequence[Origin]
    ) -> dict[str, Any]:
        """Return MASE, MAE and RMSE of the forecasts from these origins."""
        return self._scored(self.forecasts(series, origins), series, origins)

    def _scored(
        self, forecast: np.ndarray, series: Sequence[Series], origins: Sequence[Origin]
    ) -> dict[str, Any]:
        """Return the scores of forecasts by any method."""
        errors = self.config["series"]["naive_errors"]
        scale = np.array([np.nan if x is None else x for x in errors])
        raw = [one.values[:, self.targets] for one in series]
        truth = truth_after(raw, origins, self.options.horizon)
        return forecast_scores(forecast, truth, scale)

    def held(self, series: Sequence[Series]) -> list[np.ndarray]:
        """Return the series in their units, the last value where one is missing."""
        return [
            self.unscaled(filled(one, self.scaler).values[:, self.targets])
            for one in series
        ]

    def naive_forecasts(
        self, series: Sequence[Series], origins: Sequence[Origin]
    ) -> dict[str, Float[np.ndarray, "N H K"]]:
        """Return the forecasts that need no training, by their names."""
        season, horizon = self.config["series"]["season"], self.options.horizon
        held = self.held(series)
        found = {"naive": naive(held, origins, horizon)}
        if season:
            found["seasonal_naive"] = naive(held, origins, horizon, season)
        return found

    def linear_forecast(
        self, parts: Parts, validation: Sequence[Origin], origins: Sequence[Origin]
    ) -> Float[np.ndarray, "N H K"]:
        """Return the forecasts of an autoregression, fitted on the training part."""
        scaled = [filled(one, self.scaler) for one in parts.series]
        inputs = [one.values for one in scaled]
        targets = [
            np.where(one.seen, one.values, np.nan)[:, self.targets] for one in scaled
        ]
        ends = [cuts.validation for cuts in parts.cuts]
        model = best_linear(inputs, targets, ends, validation, self.options.horizon)
        return self.unscaled(model(inputs, origins))

    def baselines(
        self, parts: Parts, validation: Sequence[Origin], test: Sequence[Origin]
    ) -> dict[str, float]:
        """Return the scores of simple forecasts, by method and score."""
        said = {
            **self.naive_forecasts(parts.series, test),
            "linear": self.linear_forecast(parts, validation, test),
        }
        return {
            f"{method}_{name}": value
            for method, forecast in said.items()
            for name, value in self._scored(forecast, parts.series, test).items()
        }

    def read(self, path: str) -> SeriesTable:
        """Read a file with the columns of training; labels may be missing."""
        table = read_series(path, self.options.roles)
        columns = tuple(self.config["series"]["columns"])
        check_table(table, path, columns, self.options)
        return table

    def evaluate(self, path: str) -> dict[str, Any]:
        """Return the scores on a file, from all places with enough samples before.

        The error of each column, and the scores of the naive forecasts, stand beside.
        """
        table = self.read(path)
        parts = Parts(table.series, [Cuts(0, 0) for _ in table.series])
        origins = parts.origins("test", self.options.horizon, self.options.length)
        if not origins:
            raise InputError(
                f"{path}: no series is longer than --horizon {self.options.horizon}, "
                f"so there is nothing to compare a forecast with"
            )
        forecast = self.forecasts(table.series, origins)
        raw = [one.values[:, self.targets] for one in table.series]
        truth = truth_after(raw, origins, self.options.horizon)
        names = [table.columns[i] for i in self.targets]
        found: dict[str, Any] = self._scored(forecast, table.series, origins)
        for method, said in self.naive_forecasts(table.series, origins).items():
            scores = self._scored(said, table.series, origins)
            found |= {f"{method}_{name}": value for name, value in scores.items()}
        errors = column_errors(forecast, truth)
        found["mae_by_column"] = dict(zip(names, errors.tolist(), strict=True))
        found = {name: None if x != x else x for name, x in found.items()}
        return {**found, "series": len(table.series), "forecasts": len(origins)}

    def predict(self, text: str) -> str:
        """Return the forecasts of the next H samples of each series of a file, as CSV.

        The result is empty for an empty path.
        """
        return self.forecast(text.strip(), self.options.horizon) if text.strip() else ""

    def forecast(self, path: str, steps: int) -> str:
        """Return forecasts as CSV: a row for each series and future sample.

        Beyond the horizon the model reads its own forecasts.

        Args:
            path: a file as for training; what comes after its last samples is forecast.
            steps: the number of future samples.

        Raises:
            InputError: if the file cannot be read, or more samples than the horizon
                are asked of a model that does not forecast all that it reads.
        """
        table = self.read(path)
        columns = [table.columns[i] for i in self.targets]
        if steps > self.options.horizon and columns != list(table.columns):
            raise InputError(
                f"--steps {steps}: this model reads {', '.join(table.columns)} and "
                f"forecasts {', '.join(columns)}, so it sees no further than "
                f"--horizon {self.options.horizon}: train one with a longer "
                f"--horizon, or without --target"
            )
        times = ["time"] if table.series[0].times is not None else []
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["series", "step", *times, *columns])
        for one in table.series:
            values = self._future(one, steps)
            for step, row in enumerate(values, 1):
                at = [self._time(one, step, table.dated)] if times else []
                writer.writerow([one.name, step, *at, *(f"{x:.6g}" for x in row)])
        return out.getvalue().rstrip("\n")

    def _future(self, series: Series, steps: int) -> Float[np.ndarray, "N K"]:
        """Return what comes after a series."""
        horizon = self.options.horizon
        if steps <= horizon:
            return self.forecasts([series], [Origin(0, len(series) - 1)])[0, :steps]
        inputs = self.inputs_of(filled(series, self.scaler))[-self.options.length :]
        features = features_of(self.options, self.config)
        rest = np.concatenate(
            [
                np.ones(features.values if features.flags else 0),
                np.zeros(features.ahead),
                np.ones(int(features.elapsed)),
            ]
        )
        said = rolled_out(
            self.functions,
            self.params,
            as_floats(inputs),
            as_floats(rest),
            steps - horizon,
        )
        return self.unscaled(np.asarray(said))

    def _time(self, series: Series, step: int, dated: bool) -> str:
        """Return when a future sample is due, the usual gaps after the last one."""
        last = series.times[-1] if series.times is not None else 0.0
        at = float(last + step * self.scaler.gap)
        if not dated:
            return f"{at:.10g}"
        date = datetime.datetime.fromtimestamp(at, datetime.UTC)
        whole_day = date.time() == datetime.time(0)
        return date.strftime("%Y-%m-%d" if whole_day else "%Y-%m-%d %H:%M:%S")

    def report(self, run: Run) -> list[str]:
        """Draw the curves and the forecasts, and return lines to print."""
        options = self.options
        data = read_data(options)
        parts, _, config = described(options, data)
        curves = draw_run_curves(run)
        test = parts.origins("test", options.horizon, options.length)
        number = test[-1].series
        chosen = [origin for origin in test if origin.series == number][
            :: -options.horizon
        ]
        chosen = chosen[: max(100 // options.horizon, 3)][::-1]
        validation = parts.origins("validation", options.horizon, options.length)
        methods = {
            "model": self.forecasts(parts.series, chosen),
            **self.naive_forecasts(parts.series, chosen),
            "linear": self.linear_forecast(parts, validation, chosen),
        }
        shown = methods.pop("seasonal_naive", None)
        if shown is not None:
            methods["seasonal naive"] = shown
            methods.pop("naive")
        columns = config["series"]["columns"]
        begins = [t + 1 for _, t in chosen]
        history = max(2 * options.horizon, options.length, len(begins) // 2)
        picture = draw_forecast(
            run,
            Drawn(
                parts.series[number].name if len(parts.series) > 1 else "",
                tuple(columns[i] for i in self.targets),
                max(begins[0] - history, 0),
                parts.series[number].values[:, self.targets],
                begins,
                methods,
            ),
            "sample",
        )
        return [f"picture: {path}" for path in (curves, picture) if path]
