"""Metrics of classifiers by scikit-learn, plots of errors, and baselines."""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ...diagnostics.style import SHARES, plain, save, styled, title
from ...training import InputError, Run
from ...training.curves import new_figure
from ..data.tables import Tagged
from ..pictures import subject_of


def metrics() -> Any:
    """Import ``sklearn.metrics``, which is optional."""
    try:
        import sklearn.metrics
    except ImportError:
        raise InputError(
            "the scores need scikit-learn: pip install 'jaxrnn[cli]'"
        ) from None
    return sklearn.metrics


def classification_scores(
    truth: Sequence[str], predicted: Sequence[str]
) -> dict[str, float]:
    """Return accuracy and macro F1.

    The mean of F1 is over the labels in truth or predictions; a label without a hit
    counts as 0.
    """
    known = metrics()
    return {
        "accuracy": float(known.accuracy_score(truth, predicted)),
        "macro_f1": float(
            known.f1_score(truth, predicted, average="macro", zero_division=0)
        ),
    }


def known_label_loss(
    labels: Sequence[str], truth: Sequence[str], probabilities: Float[np.ndarray, "N C"]
) -> float:
    """Return the mean cross-entropy (nats) of the truth that is among the labels.

    Args:
        labels: the labels of the columns of ``probabilities``.
        truth: the true labels, of which some may be none of these.
        probabilities: of each label, for each example.

    Returns:
        The loss; NaN if none of the true labels is known.
    """
    known = [
        probabilities[i, labels.index(label)]
        for i, label in enumerate(truth)
        if label in labels
    ]
    return float(-np.log(np.maximum(known, 1e-30)).mean()) if known else float("nan")


def f1_by_label(truth: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Return F1 of each label that occurs in the truth."""
    labels = sorted(set(truth))
    values = metrics().f1_score(
        truth, predicted, labels=labels, average=None, zero_division=0
    )
    return {label: float(value) for label, value in zip(labels, values, strict=True)}


@styled
def draw_confusion(
    run: Run, truth: Sequence[str], predicted: Sequence[str]
) -> pathlib.Path | None:
    """Draw ``confusion.png``: the distribution of predictions for each true label."""
    labels = sorted({*truth, *predicted})
    side = 0.5 * max(len(labels), 5)
    figure = new_figure(3.2 + side, 2.2 + side)
    if figure is None:
        return None
    counts = metrics().confusion_matrix(truth, predicted, labels=labels)
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0, vmax=1, cmap=SHARES)
    for row, column in zip(*counts.nonzero(), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        axis.text(
            column,
            row,
            str(counts[row, column]),
            ha="center",
            va="center",
            color=color,
            fontsize=9,
        )
    names = [plain(label) for label in labels]
    axis.set_xticks(range(len(labels)), names, rotation=90)
    axis.set_yticks(range(len(labels)), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.spines[:].set_visible(False)
    figure.colorbar(image, label="share of the row", shrink=0.8)
    return _save(figure, run, "Predictions on the test part", "confusion.png")


@styled
def draw_f1(
    run: Run, by_label: dict[str, float], counts: dict[str, int]
) -> pathlib.Path | None:
    """Draw ``f1.png``: one bar per label, the most frequent first.

    The number of occurrences in the test part is part of the label.
    """
    figure = new_figure(7, 1.5 + 0.28 * len(by_label))
    if figure is None:
        return None
    labels = sorted(by_label, key=lambda label: -counts[label])
    axis = figure.subplots()
    axis.barh(range(len(labels)), [by_label[label] for label in labels])
    axis.set_yticks(
        range(len(labels)), [plain(f"{label} ({counts[label]})") for label in labels]
    )
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_xlabel("F1")
    axis.grid(axis="x")
    what = "F1 of each tag on the test part (number of words)"
    return _save(figure, run, what, "f1.png")


def _save(figure: Any, run: Run, what: str, name: str) -> pathlib.Path:
    """Save a figure in the run directory."""
    figure.suptitle(title(what, subject_of(run)), x=0.01, ha="left")
    save(figure, run.path / name)
    return run.path / name


def bag_of_words(
    train: Sequence[tuple[str, str]], test: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Return the scores of a baseline: logistic regression on word counts.

    Both arguments are lists of (text, label).
    """
    metrics()
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    texts, labels = zip(*train, strict=True)
    try:
        model.fit(texts, labels)
    except ValueError:  # the texts contain no countable words
        return {}
    texts, labels = zip(*test, strict=True)
    scores = classification_scores(labels, list(model.predict(texts)))
    return {f"bag_of_words_{name}": value for name, value in scores.items()}


def most_frequent_tag(train: Sequence[Tagged], test: Sequence[Tagged]) -> float:
    """Return the accuracy of a baseline: the most frequent tag of each word.

    A word that is not in the training part gets the most frequent tag of all.
    """
    pairs = Counter(pair for sentence in train for pair in zip(*sentence, strict=True))
    best: dict[str, str] = {}
    for (word, tag), _ in pairs.most_common():
        best.setdefault(word, tag)
    common = Counter(tag for sentence in train for tag in sentence.tags).most_common(1)[
        0
    ][0]
    return float(
        np.mean(
            [
                best.get(word, common) == tag
                for sentence in test
                for word, tag in zip(*sentence, strict=True)
            ]
        )
    )
