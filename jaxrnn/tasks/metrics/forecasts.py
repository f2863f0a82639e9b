"""Scores of forecasts, and the simple forecasts beside them.

An *origin* is a sample after which a forecast begins. Truth and forecasts are arrays
``(N, H, K)`` for N origins, the next H samples, and K columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

MOST_ROWS = 20_000  # rows that the linear forecast is fitted on
LAGS = (1, 2, 4, 8, 16, 32)
RIDGE = 1e-3


class Origin(NamedTuple):
    """A place to forecast from: the number of a series, and of its last sample."""

    series: int
    step: int


def truth_after(
    series: Sequence[Float[np.ndarray, "_ K"]],
    origins: Sequence[Origin],
    horizon: int,
) -> Float[np.ndarray, "N H K"]:
    """Return the H samples after each origin."""
    return np.stack([series[i][t + 1 : t + 1 + horizon] for i, t in origins])


def naive(
    series: Sequence[Float[np.ndarray, "_ K"]],
    origins: Sequence[Origin],
    horizon: int,
    season: int = 0,
) -> Float[np.ndarray, "N H K"]:
    """Forecast the last value, or that of the same place in the last season::

        y[t + h] = y[t],    y[t + h] = y[t + h - m ceil(h / m)]  with a season of m

    Hyndman & Athanasopoulos (2021, Forecasting: Principles and Practice, 5.2). Where a
    series is shorter than that the last value stands.

    Args:
        series: the series, without missing values.
        origins: N places.
        horizon: H.
        season: m, or 0.
    """
    ahead = np.arange(1, horizon + 1)
    back = season * -(-ahead // season) - ahead if season else np.zeros_like(ahead)
    rows = []
    for i, t in origins:
        at = t - back
        rows.append(series[i][np.where(at >= 0, at, t)])
    return np.stack(rows)


def naive_errors(
    series: Sequence[Float[np.ndarray, "_ K"]], season: int = 0
) -> Float[np.ndarray, " K"]:
    """Return the mean absolute errors of the naive forecast in training parts.

    With a season the values a season apart are compared. Missing values are left out;
    the result is NaN for a column where nothing can be compared.
    """
    lag = max(season, 1)
    steps = [np.abs(one[lag:] - one[:-lag]) for one in series if len(one) > lag]
    if not steps:
        return np.full(series[0].shape[1], np.nan)
    errors = np.concatenate(steps)
    seen = np.isfinite(errors)
    count = seen.sum(0)
    total = np.where(seen, errors, 0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def forecast_scores(
    forecast: Float[np.ndarray, "N H K"],
    truth: Float[np.ndarray, "N H K"],
    scale: Float[np.ndarray, " K"],
) -> dict[str, float]:
    """Return MASE, MAE and RMSE, each the mean over the columns::

        MASE = mean |y - f| / (mean |y_t - y_(t-m)| in the training part)

    Hyndman & Koehler (2006, International Journal of Forecasting 22:679-688). MASE has
    no unit; the others are in those of the data. Missing truth does not count, and
    neither do columns without any, nor in MASE columns that are constant in training.

    Args:
        forecast, truth: the values.
        scale: the `naive_errors` of the training part, by column.
    """
    by_column = column_errors(forecast, truth)
    squares = np.square(forecast - truth)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = np.where(scale > 0, by_column / scale, np.nan)
    return {
        "mase": _mean(scaled),
        "mae": _mean(by_column),
        "rmse": _mean(np.sqrt(_by_column(squares))),
    }


def column_errors(
    forecast: Float[np.ndarray, "N H K"], truth: Float[np.ndarray, "N H K"]
) -> Float[np.ndarray, " K"]:
    """Return the mean absolute error of each column."""
    return _by_column(np.abs(forecast - truth))


def _by_column(errors: Float[np.ndarray, "N H K"]) -> Float[np.ndarray, " K"]:
    """Return the mean of each column, without what is missing."""
    seen = np.isfinite(errors)
    count = seen.sum((0, 1))
    total = np.where(seen, errors, 0).sum((0, 1))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: Float[np.ndarray, " K"]) -> float:
    """Return the mean of what is known."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


class LinearForecast(NamedTuple):
    """An autoregression with a forecast of its own for each of the next H samples.

    ``f = W [1; z_t; z_(t-1); ...; z_(t-p+1)]`` from the scaled values of all columns.

    Attributes:
        weights: W, ``(1 + p D, H K)``.
        lags: p.
        horizon: H.
    """

    weights: Float[np.ndarray, "F O"]
    lags: int
    horizon: int

    @classmethod
    def fit(
        cls,
        series: Sequence[Float[np.ndarray, "_ D"]],
        targets: Sequence[Float[np.ndarray, "_ K"]],
        lags: int,
        horizon: int,
    ) -> LinearForecast:
        """Fit by ridge regression on training parts.

        The penalty is 0.001 for each row, and the constant has none.

        Args:
            series: the scaled values without gaps.
            targets: the scaled values that are forecast, NaN where one is missing.
            lags: p.
            horizon: H.
        """
        origins = [
            Origin(i, t)
            for i, one in enumerate(series)
            for t in range(min(lags, len(one)) - 1, len(one) - horizon)
        ]
        origins = origins[:: -(-len(origins) // MOST_ROWS)] if origins else []
        width = series[0].shape[1] * lags + 1
        if not origins:
            shape = (width, horizon * targets[0].shape[1])
            return cls(np.zeros(shape), lags, horizon)
        inputs = lagged(series, origins, lags)
        truth = truth_after(targets, origins, horizon).reshape(len(origins), -1)
        whole = np.isfinite(truth).all(1)
        inputs, truth = inputs[whole], truth[whole]
        penalty = RIDGE * len(inputs) * np.eye(width)
        penalty[0, 0] = 1e-12
        weights = np.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ truth)
        return cls(weights, lags, horizon)

    def __call__(
        self, series: Sequence[Float[np.ndarray, "_ D"]], origins: Sequence[Origin]
    ) -> Float[np.ndarray, "N H K"]:
        """Return scaled forecasts."""
        flat = lagged(series, origins, self.lags) @ self.weights
        return flat.reshape(len(origins), self.horizon, -1)


def lagged(
    series: Sequence[Float[np.ndarray, "_ D"]], origins: Sequence[Origin], lags: int
) -> Float[np.ndarray, "N F"]:
    """Return 1 and the last ``lags`` samples of each origin, the newest first.

    Before its beginning a series has its first value.
    """
    back = np.arange(lags)
    rows = [series[i][np.maximum(t - back, 0)].ravel() for i, t in origins]
    return np.concatenate([np.ones((len(rows), 1)), np.stack(rows)], axis=1)


def best_linear(
    series: Sequence[Float[np.ndarray, "_ D"]],
    targets: Sequence[Float[np.ndarray, "_ K"]],
    ends: Sequence[int],
    validation: Sequence[Origin],
    horizon: int,
) -> LinearForecast:
    """Return the linear forecast whose number of lags is best in the validation part.

    Args:
        series, targets: the whole series, as for `LinearForecast.fit`.
        ends: where the training part of each ends.
        validation: origins, of which at most 1,000 are looked at.
        horizon: H.
    """
    parts: Any = [
        [one[:end] for one, end in zip(arrays, ends, strict=True)]
        for arrays in (series, targets)
    ]
    looked_at = list(validation)[:: -(-len(validation) // 1000)]
    truth = truth_after(targets, looked_at, horizon)
    longest = max(map(len, parts[0]))
    models = [
        LinearForecast.fit(parts[0], parts[1], lags, horizon)
        for lags in LAGS
        if lags == LAGS[0] or lags <= longest // 4
    ]
    errors = [_mean(column_errors(model(series, looked_at), truth)) for model in models]
    return models[int(np.argmin(errors))]
