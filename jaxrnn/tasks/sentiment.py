"""sentiment: the label of a text, many to one, by a bidirectional RNN over its words
and masked pooling over the states.
"""

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
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from ..core.cell import Cell, Layer, Params
from ..nnx import RNN
from ..training import Budget, Experiment, InputError, Run
from ..training.curves import draw_curves
from .config import cell_field, check_with_sources, option
from .data.bucketing import Rows
from .data.corpora import REVIEWS, reviews
from .data.splits import Split, unseen_labels
from .data.tables import Example, read_table, split_files
from .data.vocabulary import (
    Sentences,
    WordEncoder,
    WordVocabulary,
    max_over,
    mean_over,
    pad,
    sentence_buckets,
)
from .metrics.classification import bag_of_words, classification_scores, draw_confusion
from .models.functional import Pure
from .models.word_encoder import probabilities as probabilities
from .models.word_encoder import probabilities_of, reading_layers
from .supervised import PredictsLabels, digest, supervised

BUDGET = Budget(steps=900, report_every=100, evaluate_every=200)


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen; the field names are the command line's flags."""

    data: tuple[str, ...] = option(
        (REVIEWS,),
        f"a CSV or TSV file with columns text,label (maybe split), or {REVIEWS} "
        f"(package); a second one is held out",
    )
    cell: str = cell_field("lstm")
    hidden: int = option(64, "units of each direction of each layer", least=1)
    layers: int = option(1, "recurrent layers", least=1)
    min_count: int = option(
        2, "times that training must show a word, or it is the unknown one", least=1
    )
    embed: int = option(64, "size of the word embedding", least=1)
    filters: int = option(
        64, "features of a word's characters, by a convolution; 0: none", least=0
    )
    kernel: int = option(3, "characters that the convolution sees at once", least=1)
    dropout: float = option(
        0.5, "of word features, between layers and before the readout", least=0, below=1
    )
    word_dropout: float = option(
        0.3, "words taken for the unknown one, in training", least=0, below=1
    )
    batch: int = option(64, "texts of an update", least=1)
    limit: int = option(0, "texts to train on; 0: all", least=0)
    learning_rate: float = option(2e-3, "peak learning rate of Adam", above=0)
    clip: float = option(1.0, "largest global norm of a gradient", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay", least=0)
    seed: int = option(0, "of everything random", least=0, below=2**31)

    QUICK: ClassVar[dict[str, Any]] = {
        "limit": 3000,
        "hidden": 32,
        "embed": 32,
        "filters": 0,
        "word_dropout": 0.1,
    }

    def __post_init__(self):
        check_with_sources(self, "file")


class Classifier(nnx.Module):
    """``softmax(readout([mean over t of h_t ; max over t of h_t]))``, h the outputs
    of ``layer`` over the words' features.
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
        mask = jnp.asarray(batch.mask)
        ys = self.rnn(self.encoder(batch, rngs), mask=mask, rngs=rngs)
        pooled = jnp.concatenate([mean_over(ys, mask), max_over(ys, mask)], axis=-1)
        return self.readout(self.dropout(pooled, rngs=rngs))


def tokens(text: str) -> list[str]:
    """Words, with what stands after an apostrophe, and every other sign that is no
    space: ``it's good!``, 3 tokens.
    """
    return re.findall(r"\w+(?:['\u2019]\w+)*|[^\w\s]", text)


def build(options: Options, config: dict[str, Any]) -> tuple[Pure, Params]:
    """The model's functions and its first parameters; ``config["vocabulary"]`` holds
    words, characters and labels.
    """
    vocabulary, rngs = config["vocabulary"], nnx.Rngs(options.seed)
    encoder, layer = reading_layers(options, vocabulary, rngs)
    return Pure.of(
        Classifier(
            encoder, layer, len(vocabulary["labels"]), options.dropout, rngs=rngs
        )
    )


def read_data(options: Options) -> tuple[Split, tuple[str, ...]]:
    """The examples of each part, and a note on how they were split."""
    notes: tuple[str, ...]
    if options.data == (REVIEWS,) and not os.path.exists(REVIEWS):
        split, notes = (
            reviews(),
            ("held out: the reviews of 15 % of the films, by a hash of their names",),
        )
    else:
        split, notes = split_files(
            options.data, read_table, lambda example: example.text
        )
    if options.limit:
        split = split._replace(train=split.train[: options.limit])
    labels = {example.label for example in split.train}
    if len(labels) < 2:
        raise InputError(
            f"{options.data[0]}: all {len(split.train)} texts to train on are labelled "
            f"{labels.pop()!r}; give 2 or more"
        )
    return split, (*notes, *unseen_labels(split, lambda example: [example.label]))


def prepare(options: Options) -> tuple[Experiment, dict[str, Any]]:
    """The experiment, and what the run's config must hold besides the options."""
    split, notes = read_data(options)
    sentences = [tokens(example.text) for example in split.train]
    vocabulary = WordVocabulary.of(sentences, options.min_count)
    labels = sorted({example.label for example in split.train})
    config = {
        "vocabulary": {**dataclasses.asdict(vocabulary), "labels": labels},
        "text": digest(split),
    }
    functions, params = build(options, config)
    encoded = [vocabulary.encode(sentence) for sentence in sentences]
    targets = np.array(
        [labels.index(example.label) for example in split.train], np.int32
    )
    buckets = sentence_buckets(map(len, sentences), options.batch, options.seed)

    def batch(rows: Rows) -> tuple[Sentences, Int[np.ndarray, " B"], Any]:
        return (
            pad([None if i < 0 else encoded[i] for i in rows.rows], rows.width),
            targets[rows.rows],
            rows.rows >= 0,
        )

    def loss(params: Params, batch: Any, key: Array) -> tuple[Array, Array]:
        inputs, targets, counts = batch
        logits = functions.training(params)(inputs, nnx.Rngs(dropout=key))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.where(counts, losses, jnp.zeros_like(losses)).sum(), counts.sum()

    def trained(params: Params) -> Trained:
        return Trained(functions, params, options, config)

    def test(params: Params) -> dict[str, Any]:
        common = Counter(example.label for example in split.train).most_common(1)[0][0]
        return {
            **trained(params).scores(split.test),
            "majority_accuracy": float(
                np.mean([example.label == common for example in split.test])
            ),
            **bag_of_words(
                [example[:2] for example in split.train],
                [example[:2] for example in split.test],
            ),
        }

    def sample(params: Params) -> str:
        example = split.validation[0]
        return (
            f"{trained(params).predict(example.text)} ({example.label}): "
            f"{example.text[:80]!r}"
        )

    experiment = supervised(
        options,
        params,
        loss=loss,
        buckets=buckets,
        batch=batch,
        validate=lambda params: trained(params).scores(split.validation),
        test=test,
        best_by=("accuracy", "max"),
        sample=sample,
        unit="texts",
        notes=notes,
    )
    return experiment, config


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
        return WordVocabulary.stored(self.config["vocabulary"])

    def probabilities(self, texts: Sequence[str]) -> Float[np.ndarray, "N K"]:
        """Of each of ``config["vocabulary"]["labels"]``, for each text."""
        encoded = [self.vocabulary.encode(tokens(text)) for text in texts]
        return np.stack(
            probabilities_of(self.functions, self.params, encoded, self.options.batch)
        )

    def predict(self, text: str) -> str:
        """The likeliest label, a tab and its probability; an empty line for a text
        without words.
        """
        if not tokens(text):
            return ""
        row = self.probabilities([text])[0]
        return f"{self.config['vocabulary']['labels'][row.argmax()]}\t{row.max():.4f}"

    def scores(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Mean cross-entropy (nats) over labels that training knew, accuracy and
        macro F1 over all.
        """
        labels, found = (
            self.config["vocabulary"]["labels"],
            self.probabilities([example.text for example in examples]),
        )
        chosen = [
            found[i, labels.index(each.label)]
            for i, each in enumerate(examples)
            if each.label in labels
        ]
        scores = classification_scores(
            [each.label for each in examples], [labels[i] for i in found.argmax(1)]
        )
        return {
            "loss": float(-np.log(np.maximum(chosen, 1e-30)).mean())
            if chosen
            else float("nan"),
            **scores,
        }

    def evaluate(self, path: str) -> dict[str, Any]:
        """Scores on a file. A label that training never showed is always a mistake,
        and is named under ``unknown_labels``.
        """
        examples = read_table(path)
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
        """The score beside the baselines, ``curves.png`` and ``confusion.png``."""
        result = run.records("metrics.jsonl")[-1]
        test = read_data(self.options)[0].test
        labels, found = (
            self.config["vocabulary"]["labels"],
            self.probabilities([example.text for example in test]),
        )
        confusion = draw_confusion(
            run,
            [example.label for example in test],
            [labels[i] for i in found.argmax(1)],
        )
        pictures = [
            draw_curves(
                run, "accuracy", "accuracy", ("majority", result["majority_accuracy"])
            ),
            confusion,
        ]
        lines = [
            f"accuracy {result['accuracy']:.4f}, macro F1 {result['macro_f1']:.4f} "
            f"(majority {result['majority_accuracy']:.4f})"
        ]
        if "bag_of_words_accuracy" in result:
            lines.append(
                f"logistic regression on a bag of words: accuracy "
                f"{result['bag_of_words_accuracy']:.4f}, "
                f"macro F1 {result['bag_of_words_macro_f1']:.4f}"
            )
        return lines + [f"picture: {path}" for path in pictures if path]
