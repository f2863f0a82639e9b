"""Training of forecasts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...core.types import Params
from ...training import Experiment
from ..data.bucketing import Buckets
from ..data.series import Scaler, filled
from ..data.windows import training_windows, window_batch
from ..models.series_model import Forecaster, series_layer
from ..supervised import supervised
from .forecast_data import described, features_of
from .forecaster import TrainedForecaster
from .options import Data, Options

LOOKED_AT = 1000  # the most origins of a validation


def build(options: Options, config: dict[str, Any]) -> tuple[Forecaster, Params]:
    """Build the model and its initial parameters."""
    features = features_of(options, config)
    layer = series_layer(
        options.cell,
        options.hidden,
        options.layers,
        options.dropout,
        options.length,
        features.elapsed,
    )
    model = Forecaster(
        layer, features.size, options.horizon, tuple(config["series"]["targets"])
    )
    return model, model.init(jax.random.key(options.seed))


def prepare(options: Options, data: Data) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and further entries of the run's config."""
    parts, note, config = described(options, data)
    model, params = build(options, config)
    scaler = Scaler.stored(config["series"])
    windows = training_windows(
        [filled(one, scaler) for one in parts.series],
        [cuts.validation for cuts in parts.cuts],
        features_of(options, config),
        config["series"]["targets"],
        length=options.length,
        horizon=options.horizon,
    )
    buckets = Buckets(windows.lengths, options.batch, options.seed, coarse=True)
    validation = parts.origins("validation", options.horizon, options.length)
    looked_at = validation[:: -(-len(validation) // LOOKED_AT)]
    test = parts.origins("test", options.horizon, options.length)

    def loss(params: Params, batch: Any, key: Array) -> tuple[Array, Array]:
        said = model(params, batch.inputs, batch.mask, key)
        errors = jnp.abs(said - batch.targets)
        if options.loss == "squared":
            errors = jnp.square(errors)
        total = jnp.where(batch.counts, errors, jnp.zeros_like(errors)).sum()
        return total, batch.counts.sum()

    def trained(params: Params) -> TrainedForecaster:
        return TrainedForecaster(model, params, options, config)

    experiment = supervised(
        options,
        params,
        loss=loss,
        axis=1,
        buckets=buckets,
        batch=lambda rows: window_batch(windows, rows),
        validate=lambda params: trained(params).scores(parts.series, looked_at),
        test=lambda params: {
            **trained(params).scores(parts.series, test),
            **trained(params).baselines(parts, validation, test),
        },
        best_by=("mase", "min"),
        unit="values",
        notes=(note,),
        data=(
            f"{options.data[0]}: {len(parts.series)} series, "
            f"{len(windows.starts):,} windows to train on, {len(validation):,} places "
            f"to forecast from for validation, {len(test):,} for the test"
        ),
    )
    return experiment, config
