"""sentiment: the label of a text, by a bidirectional RNN and masked pooling."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ..core.cell import Cell
from ..core.layer import Layer
from ..core.types import Params
from ..nnx import RNN
from ..training import Budget, Experiment, InputError, Run
from .config import cell_field, check_with_sources, option
from .data.bucketing import Rows
from .data.corpora import REVIEWS, reviews
from .data.encoded import EncodedSentences
from .data.splits import Split, sizes, spread, unseen_labels
from .data.tables import COLUMNS, Example, column_names, read_table, split_files
from .data.vocabulary import (
    Sentences,
    WordEncoder,
    WordVocabulary,
    max_over,
    mean_over,
    sentence_buckets,
)
from .metrics.classification import (
    bag_of_words,
    classification_scores,
    draw_confusion,
    known_label_loss,
    metrics,
)
from .models.functional import Pure
from .models.own_cell import CellLike
from .models.word_encoder import probabilities as probabilities
from .models.word_encoder import probabilities_of, reading_layers
from .optimizers import optimizer_field, schedule_field
from .pictures import draw_run_curves
from .supervised import (
    PredictsLabels,
    digest_of_parts,
    summed_cross_entropy,
    supervised,
)
from .task import Task

BAGGED = 100_000  # the number of texts that the bag of words learns from, at most
BUDGET = Budget(steps=900, report_every=100, evaluate_every=200)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the task; the field names are the flags of the command line."""

    data: tuple[str, ...] = option(
        (REVIEWS,),
        f"a CSV or TSV file with columns text,label (and optionally split), or "
        f"{REVIEWS} (package); a second file is the test part",
    )
    columns: str = option(
        COLUMNS,
        "names of the columns of the text and of the label, such as title,topic",
    )
    cell: CellLike = cell_field("lstm")
    hidden: int = option(64, "number of units per direction and layer", least=1)
    layers: int = option(1, "number of recurrent layers", least=1)
    min_count: int = option(
        2, "number of occurrences in training below which a word is unknown", least=1
    )
    embed: int = option(64, "size of the word embedding", least=1)
    filters: int = option(
        64, "number of convolution filters over a word's characters", least=0
    )
    kernel: int = option(3, "number of characters that each filter covers", least=1)
    dropout: float = option(
        0.5,
        "dropout rate of word features, between layers and before the readout",
        least=0,
        below=1,
    )
    word_dropout: float = option(
        0.3,
        "share of the words that the unknown word replaces in training",
        least=0,
        below=1,
    )
    batch: int = option(64, "number of texts per update", least=1)
    limit: int = option(0, "number of training texts; 0: all", least=0)
    evaluate_examples: int = option(
        10_000,
        "number of validation texts that an evaluation during training scores, "
        "spread over that part; 0: all",
        least=0,
        before=0,
    )
    learning_rate: float = option(2e-3, "peak learning rate", above=0)
    optimizer: str = optimizer_field()
    schedule: str = schedule_field()
    clip: float = option(1.0, "largest global norm of the gradient", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay", least=0)
    seed: int = option(0, "random seed", least=0, below=2**31)

    QUICK: ClassVar[dict[str, Any]] = {
        "limit": 3000,
        "hidden": 32,
        "embed": 32,
        "filters": 0,
        "word_dropout": 0.1,
    }

    def __post_init__(self):
        check_with_sources(self, "file")
        column_names(self.columns)


class Classifier(nnx.Module):
    """A classifier of sentences, where h are the outputs of ``layer`` over the words::

    softmax(readout([mean over t of h_t ; max over t of h_t]))
    """

    def __init__(
        self,
        encoder: WordEncoder,
        layer: Cell | Layer,
        classes: int,
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = encoder
        self.rnn = RNN(layer, encoder.output_size, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.readout = nnx.Linear(2 * self.rnn.output_size, classes, rngs=rngs)

    def __call__(
        self, batch: Sentences, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B K"]:
        """Return the logits of each sentence, ``(B, K)``."""
        mask = jnp.asarray(batch.mask)
        ys = self.rnn(self.encoder(batch, rngs), mask=mask, rngs=rngs)
        pooled = jnp.concatenate([mean_over(ys, mask), max_over(ys, mask)], axis=-1)
        return self.readout(self.dropout(pooled, rngs=rngs))


def tokens(text: str) -> list[str]:
    """Split a text into words and punctuation marks: ``it's good!`` has 3 tokens.

    A word includes what follows an apostrophe.
    """
    return re.findall(r"\w+(?:['\u2019]\w+)*|[^\w\s]", text)


def build(options: Options, config: dict[str, Any]) -> tuple[Pure, Params]:
    """Build the model's functions and initial parameters.

    ``config["vocabulary"]`` holds words, characters and labels.
    """
    vocabulary, rngs = config["vocabulary"], nnx.Rngs(options.seed)
    encoder, layer = reading_layers(options, vocabulary, rngs)
    return Pure.of(
        Classifier(
            encoder, layer, len(vocabulary["labels"]), options.dropout, rngs=rngs
        )
    )


def read_data(options: Options) -> tuple[Split, tuple[str, ...]]:
    """Return the examples of each part, and notes on how they were split."""
    notes: tuple[str, ...]
    if options.data == (REVIEWS,) and not os.path.exists(REVIEWS):
        split, notes = (
            reviews(),
            ("test part: the reviews of 15 % of the films, by a hash of their names",),
        )
    else:
        split, notes = split_files(
            options.data,
            functools.partial(read_table, columns=options.columns),
            lambda example: example.text,
        )
    if options.limit:
        split = split._replace(train=split.train[: options.limit])
    labels = {example.label for example in split.train}
    if len(labels) < 2:
        raise InputError(
            f"{options.data[0]}: all {len(split.train)} training texts are labeled "
            f"{labels.pop()!r}; at least 2 labels are needed"
        )
    return split, (*notes, *unseen_labels(split, lambda example: [example.label]))


def prepare(options: Options) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and further entries of the run's config."""
    metrics()  # missing, it is said before the training and not behind it
    split, notes = read_data(options)
    encoded = EncodedSentences(
        (tokens(example.text) for example in split.train), least=options.min_count
    )
    vocabulary = encoded.vocabulary
    labels = sorted({example.label for example in split.train})
    config = {
        "vocabulary": {**dataclasses.asdict(vocabulary), "labels": labels},
        "text": digest_of_parts(split),
    }
    functions, params = build(options, config)
    number = {label: i for i, label in enumerate(labels)}
    targets = np.array([number[example.label] for example in split.train], np.int32)
    buckets = sentence_buckets(encoded.lengths, options.batch, options.seed)

    def batch(rows: Rows) -> tuple[Sentences, Int[np.ndarray, " B"], Any]:
        return (
            encoded.padded(rows.rows, rows.width),
            targets[rows.rows],
            rows.rows >= 0,
        )

    validation = spread(split.validation, options.evaluate_examples)

    def loss(params: Params, batch: Any, key: Array) -> tuple[Array, Array]:
        inputs, targets, counts = batch
        logits = functions.training(params)(inputs, nnx.Rngs(dropout=key))
        return summed_cross_entropy(logits, targets, counts)

    def trained(params: Params) -> Trained:
        return Trained(functions, params, options, config)

    def test(params: Params) -> dict[str, Any]:
        return {**trained(params).scores(split.test), **_baselines(split)}

    def sample(params: Params) -> str:
        example = split.validation[0]
        predicted = trained(params).predict(example.text).replace("\t", " ")
        return f"predicted {predicted}, labeled {example.label}: {example.text[:80]!r}"

    experiment = supervised(
        options,
        params,
        loss=loss,
        buckets=buckets,
        batch=batch,
        validate=lambda params: trained(params).scores(validation),
        test=test,
        best_by=("accuracy", "max"),
        sample=sample,
        unit="texts",
        notes=notes,
        data=f"{options.data[0]}: {sizes(split, 'texts')}",
    )
    return experiment, config


def _baselines(split: Split) -> dict[str, Any]:
    """Score the most frequent label, and a bag of words, on the test part."""
    common = Counter(example.label for example in split.train).most_common(1)[0][0]
    is_common = [example.label == common for example in split.test]
    return {
        "majority_accuracy": float(np.mean(is_common)),
        **bag_of_words(
            [example[:2] for example in spread(split.train, BAGGED)],
            [example[:2] for example in split.test],
        ),
    }


@dataclasses.dataclass(frozen=True)
class Trained(PredictsLabels):
    """A trained model, for `predict` and `evaluate`."""

    functions: Pure = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    options: Options
    config: dict[str, Any]
    task = "sentiment"

    @functools.cached_property
    def vocabulary(self) -> WordVocabulary:
        """Return the vocabulary of the run."""
        return WordVocabulary.stored(self.config["vocabulary"])

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, "N K"]:
        """Return the probability of each label for each text.

        The labels are those of ``config["vocabulary"]["labels"]``.
        """
        encoded = EncodedSentences(map(tokens, texts), self.vocabulary)
        labels = len(self.config["vocabulary"]["labels"])
        found = np.zeros((len(texts), labels), jnp.result_type(float))
        for rows, some in probabilities_of(
            self.functions, self.params, encoded, self.options.batch
        ):
            found[rows] = some
        return found

    def predict(self, text: str) -> str:
        """Return the most probable label, a tab and its probability.

        The result is empty for a text without words.
        """
        if not tokens(text):
            return ""
        row = self.probabilities([text])[0]
        return f"{self.config['vocabulary']['labels'][row.argmax()]}\t{row.max():.4f}"

    def scores(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Return accuracy and macro F1 over all labels, and the loss (nats).

        The loss is the mean cross-entropy over labels of the training part.
        """
        labels, probabilities = (
            self.config["vocabulary"]["labels"],
            self.probabilities([example.text for example in examples]),
        )
        truth = [example.label for example in examples]
        return {
            "loss": known_label_loss(labels, truth, probabilities),
            **classification_scores(
                truth, [labels[i] for i in probabilities.argmax(1)]
            ),
        }

    def evaluate(self, path: str) -> dict[str, Any]:
        """Return the scores on a file.

        A label that is not in the training part is always an error; such labels are
        listed under ``unknown_labels``.
        """
        examples = read_table(path, self.options.columns)
        known = self.config["vocabulary"]["labels"]
        unknown = Counter(
            example.label for example in examples if example.label not in known
        )
        if len(examples) == sum(unknown.values()):
            raise InputError(
                f"{path}: none of its labels was in training ({', '.join(known)}), but "
                f"{', '.join(sorted(unknown)[:5])}"
            )
        scores = {
            **self.scores(examples),
            "texts": len(examples),
            "unknown_labels": dict(sorted(unknown.items())),
        }
        return {
            name: None if value != value else value for name, value in scores.items()
        }

    def report(self, run: Run) -> list[str]:
        """Draw the curves and the confusion, and return lines to print."""
        test = read_data(self.options)[0].test
        labels, probabilities = (
            self.config["vocabulary"]["labels"],
            self.probabilities([example.text for example in test]),
        )
        confusion = draw_confusion(
            run,
            [example.label for example in test],
            [labels[i] for i in probabilities.argmax(1)],
        )
        pictures = [
            draw_run_curves(run),
            confusion,
        ]
        return [f"picture: {path}" for path in pictures if path]


TASK = Task("sentiment", Options, BUDGET, build, prepare, Trained)
