"""The label of each series: training, and use of a trained model."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from ...core.types import Params
from ...training import Experiment, InputError, Run
from ..data.bucketing import Buckets, Rows
from ..data.series import Scaler, Series, SeriesTable, filled
from ..data.series_tables import read_series
from ..data.splits import Split, sizes, unseen_labels
from ..data.tables import split_files
from ..data.windows import Features, of_series, padded_series
from ..metrics.classification import (
    classification_scores,
    draw_confusion,
    known_label_loss,
    metrics,
)
from ..metrics.series_baselines import label_baselines
from ..models.series_model import SeriesClassifier, series_layer, takes_elapsed_time
from ..pictures import draw_run_curves
from ..supervised import PredictsLabels, digest, summed_cross_entropy, supervised
from .options import Data, Options, check_table, read_data

MOST_STEPS = 2**15  # the most steps of a batch


def split_series(data: Data) -> tuple[Split, tuple[str, ...]]:
    """Return the series of each part, and notes on the split.

    Raises:
        InputError: if there are fewer than two labels, or a part is empty.
    """
    tables = dict(zip(data.names, data.tables, strict=True))
    split, notes = split_files(
        data.names, lambda name: tables[name].series, lambda one: one.key
    )
    names = {one.label for one in split.train}
    if len(names) < 2:
        raise InputError(
            f"{data.names[0]}: all {len(split.train)} training series are labeled "
            f"{names.pop()!r}; at least 2 labels are needed"
        )
    return split, (*notes, *unseen_labels(split, lambda one: [one.label]))


def build(options: Options, config: dict[str, Any]) -> tuple[SeriesClassifier, Params]:
    """Build the model and its initial parameters."""
    features = features_of(options, config)
    layer = series_layer(
        options.cell,
        options.hidden,
        options.layers,
        options.dropout,
        config["series"]["steps"],
        features.elapsed,
    )
    model = SeriesClassifier(layer, features.size, len(config["series"]["labels"]))
    return model, model.init(jax.random.key(options.seed))


def features_of(options: Options, config: dict[str, Any]) -> Features:
    """Return what the network reads of a sample."""
    irregular = config["series"]["irregular"]
    return Features(
        len(config["series"]["columns"]),
        options.missing == "mask",
        since=irregular,
        elapsed=irregular and takes_elapsed_time(options.cell, options.hidden),
    )


def described(split: Split, columns: tuple[str, ...]) -> dict[str, Any]:
    """Return what config.json holds of the data."""
    return {
        "text": digest([[one.key, one.label] for part in split for one in part]),
        "series": {
            "goal": "label",
            "columns": list(columns),
            "labels": sorted({one.label for one in split.train}),
            "steps": int(np.median([len(one) for one in split.train])),
            **Scaler.of(split.train).stored_values(),
        },
    }


def prepare(options: Options, data: Data) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and further entries of the run's config."""
    metrics()  # missing, it is said before the training and not behind it
    split, notes = split_series(data)
    config = described(split, data.tables[0].columns)
    model, params = build(options, config)
    names = config["series"]["labels"]
    inputs = TrainedLabeler(model, params, options, config).inputs_of(split.train)
    targets = np.array([names.index(one.label) for one in split.train], np.int32)
    buckets = _buckets(inputs, options.batch, options.seed)

    def batch(rows: Rows) -> tuple[Any, ...]:
        return *padded_series(inputs, rows), targets[rows.rows], rows.rows >= 0

    def loss(params: Params, batch: Any, key: Array) -> tuple[Array, Array]:
        given, mask, targets, counts = batch
        logits = model(params, given, mask, key)
        return summed_cross_entropy(logits, targets, counts)

    def trained(params: Params) -> TrainedLabeler:
        return TrainedLabeler(model, params, options, config)

    def test(params: Params) -> dict[str, Any]:
        model = trained(params)
        return {
            **model.scores(split.test),
            **label_baselines(
                model.scaled(split.train),
                [one.label for one in split.train],
                model.scaled(split.test),
                [one.label for one in split.test],
            ),
        }

    experiment = supervised(
        options,
        params,
        loss=loss,
        axis=1,
        buckets=buckets,
        batch=batch,
        validate=lambda params: trained(params).scores(split.validation),
        test=test,
        best_by=("loss", "min"),
        unit="series",
        notes=notes,
        data=f"{options.data[0]}: {sizes(split, 'series')}",
    )
    return experiment, config


def _buckets(inputs: Sequence[np.ndarray], batch: int, seed: int = 0) -> Buckets:
    """Return batches of series of similar length."""
    lengths = np.array([len(one) for one in inputs])
    return Buckets(lengths, batch, seed, MOST_STEPS, coarse=True)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(
    model: SeriesClassifier, params: Params, inputs: Array, mask: Array
) -> Float[Array, "B C"]:
    """Return the probability of each label for each row."""
    return jax.nn.softmax(model(params, inputs, mask))


@dataclasses.dataclass(frozen=True)
class TrainedLabeler(PredictsLabels):
    """A trained model, for `predict` and `evaluate`."""

    functions: SeriesClassifier = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    options: Options
    config: dict[str, Any]
    task = "series"

    @property
    def labels(self) -> list[str]:
        """Return the labels of the training part."""
        return self.config["series"]["labels"]

    def scaled(self, series: Sequence[Series]) -> list[Float[np.ndarray, "_ D"]]:
        """Return the scaled values of series, the last one where one is missing."""
        scaler = Scaler.stored(self.config["series"])
        return [filled(one, scaler).values for one in series]

    def inputs_of(self, series: Sequence[Series]) -> list[Float[np.ndarray, "_ F"]]:
        """Return what the network reads of series."""
        scaler = Scaler.stored(self.config["series"])
        features = features_of(self.options, self.config)
        return [features.of(filled(one, scaler)) for one in series]

    def probabilities(self, series: Sequence[Series]) -> Float[np.ndarray, "N C"]:
        """Return the probability of each label for each series."""
        inputs = self.inputs_of(series)
        return of_series(
            functools.partial(_probabilities, self.functions, self.params),
            inputs,
            _buckets(inputs, self.options.batch),
            (len(self.labels),),
        )

    def scores(self, series: Sequence[Series]) -> dict[str, Any]:
        """Return accuracy, macro F1 over all labels, and the loss (nats).

        The loss is the mean over series whose label is one of the training part.
        """
        said = self.probabilities(series)
        truth = [one.label for one in series]
        scores = classification_scores(truth, [self.labels[i] for i in said.argmax(1)])
        return {**scores, "loss": known_label_loss(self.labels, truth, said)}

    def read(self, path: str) -> SeriesTable:
        """Read a file with the columns of training."""
        table = read_series(path, self.options.roles)
        columns = tuple(self.config["series"]["columns"])
        check_table(table, path, columns, self.options)
        return table

    def evaluate(self, path: str) -> dict[str, Any]:
        """Return the scores on a file.

        A label that is not in the training part is always an error; such labels are
        listed under ``unknown_labels``.
        """
        series = self.read(path).series
        unknown = Counter(one.label for one in series if one.label not in self.labels)
        if len(series) == sum(unknown.values()):
            raise InputError(
                f"{path}: none of its labels was in training "
                f"({', '.join(self.labels)}), but {', '.join(sorted(unknown)[:5])!r}"
            )
        scores = self.scores(series)
        return {
            **{name: None if x != x else x for name, x in scores.items()},
            "series": len(series),
            "unknown_labels": dict(sorted(unknown.items())),
        }

    def predict(self, text: str) -> str:
        """Return label and probability of each series of a file, as CSV.

        The result is empty for an empty path.
        """
        if not text.strip():
            return ""
        series = self.read(text.strip()).series
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["series", "label", "probability"])
        for one, row in zip(series, self.probabilities(series), strict=True):
            label = self.labels[row.argmax()]
            writer.writerow([one.name, label, f"{row.max():.4f}"])
        return out.getvalue().rstrip("\n")

    def forecast(self, path: str, steps: int) -> str:
        """Refuse: the run learned labels."""
        raise InputError(
            "--steps asks for a forecast, but this run learned the labels of series: "
            "leave it out, or train with --goal forecast"
        )

    def report(self, run: Run) -> list[str]:
        """Draw the curves and the confusion, and return lines to print."""
        test = split_series(read_data(self.options))[0].test
        said = self.probabilities(test).argmax(1)
        pictures = [
            draw_run_curves(run),
            draw_confusion(
                run, [one.label for one in test], [self.labels[i] for i in said]
            ),
        ]
        return [f"picture: {path}" for path in pictures if path]
