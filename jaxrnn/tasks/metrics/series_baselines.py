"""Simple classifiers of series, beside which the scores of a network stand."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from .classification import classification_scores, metrics

SAMPLES = 100  # the most samples that a series is resampled to


def resampled(
    series: Sequence[Float[np.ndarray, "_ D"]], samples: int
) -> Float[np.ndarray, "N S"]:
    """Return series of one length, ``samples``, by linear interpolation, as vectors."""
    at = np.linspace(0, 1, samples)
    rows = []
    for one in series:
        places = np.linspace(0, 1, len(one)) if len(one) > 1 else np.zeros(1)
        rows.append(
            np.stack([np.interp(at, places, column) for column in one.T]).ravel()
        )
    return np.stack(rows)


def nearest_neighbor(
    train: Float[np.ndarray, "N S"],
    labels: Sequence[str],
    test: Float[np.ndarray, "M S"],
) -> list[str]:
    """Return the label of the training series at the smallest Euclidean distance."""
    nearest = []
    for begin in range(0, len(test), 256):
        part = test[begin : begin + 256]
        squares = np.square(train).sum(1)[None, :] - 2 * part @ train.T
        nearest += squares.argmin(1).tolist()
    return [labels[i] for i in nearest]


def label_baselines(
    train: Sequence[Float[np.ndarray, "_ D"]],
    labels: Sequence[str],
    test: Sequence[Float[np.ndarray, "_ D"]],
    truth: Sequence[str],
) -> dict[str, float]:
    """Return the scores of three simple classifiers of scaled series.

    They are the most frequent label, the nearest neighbor, and a logistic regression;
    the last two see series that are resampled to the length of the longest training
    series, at most 100.
    """
    samples = min(max(map(len, train)), SAMPLES)
    seen, asked = resampled(train, samples), resampled(test, samples)
    common = Counter(labels).most_common(1)[0][0]
    said = {
        "majority": [common] * len(truth),
        "nearest_neighbor": nearest_neighbor(seen, labels, asked),
        "logistic_regression": _logistic_regression(seen, labels, asked),
    }
    return {
        f"{method}_{name}": value
        for method, predicted in said.items()
        for name, value in classification_scores(truth, predicted).items()
    }


def _logistic_regression(
    train: Float[np.ndarray, "N S"],
    labels: Sequence[str],
    test: Float[np.ndarray, "M S"],
) -> list[str]:
    """Return the labels that a logistic regression on all samples predicts."""
    metrics()
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # of iterations that have not converged
        warnings.simplefilter("ignore")
        model = LogisticRegression(max_iter=300).fit(train, list(labels))
        return [str(label) for label in model.predict(test)]
