"""tagging: the tag of each word, by a bidirectional RNN over words and characters."""

from __future__ import annotations

import dataclasses
import functools
import os
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
from .data.bucketing import Rows, padded
from .data.corpora import TREEBANK, treebank
from .data.encoded import EncodedSentences, Ragged
from .data.splits import Split, sizes, spread, unseen_labels
from .data.tables import Tagged, read_tagged, split_files
from .data.vocabulary import (
    Sentences,
    WordEncoder,
    WordVocabulary,
    sentence_buckets,
    words_in,
)
from .metrics.classification import (
    classification_scores,
    draw_confusion,
    draw_f1,
    f1_by_label,
    metrics,
    most_frequent_tag,
)
from .models.functional import Pure
from .models.own_cell import CellLike
from .models.readout import apply_linear
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

BUDGET = Budget(steps=1500, report_every=100, evaluate_every=200)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the task; the field names are the flags of the command line."""

    data: tuple[str, ...] = option(
        (TREEBANK,),
        f"a CoNLL file (FORM<TAB>TAG), a .conllu file, or {TREEBANK} (package); a "
        f"second file is held out",
    )
    cell: CellLike = cell_field("lstm")
    hidden: int = option(128, "number of units per direction and layer", least=1)
    layers: int = option(1, "number of recurrent layers", least=1)
    min_count: int = option(
        1, "number of occurrences in training below which a word is unknown", least=1
    )
    embed: int = option(64, "size of the word embedding", least=1)
    filters: int = option(
        128, "number of convolution filters over a word's characters", least=0
    )
    kernel: int = option(5, "number of characters that each filter covers", least=1)
    dropout: float = option(
        0.5,
        "dropout rate of word features, between layers and before the readout",
        least=0,
        below=1,
    )
    word_dropout: float = option(
        0.25,
        "share of the words that the unknown word replaces in training",
        least=0,
        below=1,
    )
    batch: int = option(32, "number of sentences per update", least=1)
    limit: int = option(0, "number of training sentences; 0: all", least=0)
    evaluate_examples: int = option(
        10_000,
        "number of validation sentences that an evaluation during training scores, "
        "spread over that part; 0: all",
        least=0,
        before=0,
    )
    learning_rate: float = option(4e-3, "peak learning rate", above=0)
    optimizer: str = optimizer_field()
    schedule: str = schedule_field()
    clip: float = option(1.0, "largest global norm of the gradient", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay", least=0)
    seed: int = option(0, "random seed", least=0, below=2**31)

    QUICK: ClassVar[dict[str, Any]] = {
        "limit": 800,
        "hidden": 32,
        "embed": 32,
        "filters": 32,
        "learning_rate": 1e-2,
        "dropout": 0.3,
        "word_dropout": 0.15,
    }

    def __post_init__(self):
        check_with_sources(self, "file")


class Tagger(nnx.Module):
    """The model ``softmax(readout(h_t))`` for each word t.

    h are the outputs of ``layer`` over the features of the words.
    """

    def __init__(
        self,
        encoder: WordEncoder,
        layer: Cell | Layer,
        tags: int,
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.encoder = encoder
        self.rnn = RNN(layer, encoder.output_size, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.readout = nnx.Linear(self.rnn.output_size, tags, rngs=rngs)

    def __call__(
        self, batch: Sentences, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B T K"]:
        """Return the logits of each word, ``(B, T, K)``."""
        ys = self.rnn(
            self.encoder(batch, rngs), mask=jnp.asarray(batch.mask), rngs=rngs
        )
        ys = self.dropout(ys, rngs=rngs)
        return apply_linear(self.readout, ys)


def build(options: Options, config: dict[str, Any]) -> tuple[Pure, Params]:
    """Build the model's functions and initial parameters.

    ``config["vocabulary"]`` holds words, characters and tags.
    """
    vocabulary, rngs = config["vocabulary"], nnx.Rngs(options.seed)
    encoder, layer = reading_layers(options, vocabulary, rngs)
    return Pure.of(
        Tagger(encoder, layer, len(vocabulary["tags"]), options.dropout, rngs=rngs)
    )


def read_data(options: Options) -> tuple[Split, tuple[str, ...]]:
    """Return the sentences of each part, and notes on how they were split."""
    notes: tuple[str, ...]
    if options.data == (TREEBANK,) and not os.path.exists(TREEBANK):
        split, notes = (
            treebank(),
            ("test part: every tenth sentence of each file of the treebank",),
        )
    else:
        split, notes = split_files(
            options.data, read_tagged, lambda sentence: " ".join(sentence.words)
        )
    if options.limit:
        split = split._replace(train=split.train[: options.limit])
    tags = {tag for sentence in split.train for tag in sentence.tags}
    if len(tags) < 2:
        raise InputError(
            f"{options.data[0]}: all training words are tagged {tags.pop()!r}; at "
            f"least 2 tags are needed"
        )
    return split, (*notes, *unseen_labels(split, lambda sentence: sentence.tags))


def prepare(options: Options) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and further entries of the run's config."""
    metrics()  # missing, it is said before the training and not behind it
    split, notes = read_data(options)
    encoded = EncodedSentences(
        (sentence.words for sentence in split.train), least=options.min_count
    )
    vocabulary = encoded.vocabulary
    tags = sorted({tag for sentence in split.train for tag in sentence.tags})
    config = {
        "vocabulary": {**dataclasses.asdict(vocabulary), "tags": tags},
        "text": digest_of_parts(split),
    }
    functions, params = build(options, config)
    number = {tag: i for i, tag in enumerate(tags)}
    targets = Ragged([number[tag] for tag in one.tags] for one in split.train)
    buckets = sentence_buckets(encoded.lengths, options.batch, options.seed)

    def batch(rows: Rows) -> tuple[Sentences, Int[np.ndarray, "B T"]]:
        inputs = encoded.padded(rows.rows, rows.width)
        return inputs, padded(targets, rows, 0)[0]

    validation = spread(split.validation, options.evaluate_examples)

    def loss(params: Params, batch: Any, key: Array) -> tuple[Array, Array]:
        inputs, targets = batch
        logits = functions.training(params)(inputs, nnx.Rngs(dropout=key))
        return summed_cross_entropy(logits, targets, inputs.mask)

    def trained(params: Params) -> Trained:
        return Trained(functions, params, options, config)

    def sample(params: Params) -> str:
        sentence = split.validation[0].words[:15]
        return trained(params).predict(" ".join(sentence))

    experiment = supervised(
        options,
        params,
        loss=loss,
        buckets=buckets,
        batch=batch,
        validate=lambda params: trained(params).scores(validation),
        test=lambda params: {
            **trained(params).scores(split.test, each=True),
            "most_frequent_tag_accuracy": most_frequent_tag(split.train, split.test),
        },
        best_by=("accuracy", "max"),
        sample=sample,
        notes=notes,
        data=f"{options.data[0]}: {sizes(split, 'sentences')}",
    )
    return experiment, config


@dataclasses.dataclass(frozen=True)
class Trained(PredictsLabels):
    """A trained model, for `predict` and `evaluate`."""

    functions: Pure = dataclasses.field(repr=False)
    params: Params = dataclasses.field(repr=False)
    options: Options
    config: dict[str, Any]
    task = "tagging"

    @functools.cached_property
    def vocabulary(self) -> WordVocabulary:
        """Return the vocabulary of the run."""
        return WordVocabulary.stored(self.config["vocabulary"])

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the most probable tag of each word of each sentence."""
        tags = self.config["vocabulary"]["tags"]
        encoded = EncodedSentences(sentences, self.vocabulary)
        tagged: list[list[str]] = [[]] * len(sentences)
        for rows, some in probabilities_of(
            self.functions, self.params, encoded, self.options.batch
        ):
            for i, best in zip(rows.tolist(), some.argmax(-1).tolist(), strict=True):
                tagged[i] = [tags[k] for k in best[: len(sentences[i])]]
        return tagged

    def predict(self, text: str) -> str:
        """Return ``word/TAG`` for each word of a line."""
        words = words_in(text, self.vocabulary)
        return (
            " ".join(
                f"{word}/{tag}"
                for word, tag in zip(words, self.tag([words])[0], strict=True)
            )
            if words
            else ""
        )

    def scores(self, sentences: Sequence[Tagged], each: bool = False) -> dict[str, Any]:
        """Return the accuracy over words and macro F1 over tags.

        Also return F1 of nouns, if there are any, and with ``each`` that of each tag.
        """
        truth = [tag for sentence in sentences for tag in sentence.tags]
        predicted = [
            tag
            for tags in self.tag([sentence.words for sentence in sentences])
            for tag in tags
        ]
        by_tag = f1_by_label(truth, predicted)
        noun = {"noun_f1": by_tag["NOUN"]} if "NOUN" in by_tag else {}
        return (
            classification_scores(truth, predicted)
            | noun
            | ({"f1_by_tag": by_tag} if each else {})
        )

    def evaluate(self, path: str) -> dict[str, Any]:
        """Return the scores on a file.

        A tag that is not in the training part is always an error; such tags are listed
        under ``unknown_labels``.
        """
        sentences = read_tagged(path)
        known = self.config["vocabulary"]["tags"]
        unknown = Counter(
            tag for sentence in sentences for tag in sentence.tags if tag not in known
        )
        tokens = sum(len(sentence.words) for sentence in sentences)
        if tokens == sum(unknown.values()):
            raise InputError(
                f"{path}: none of its tags was in training ({', '.join(known)}), but "
                f"{', '.join(sorted(unknown)[:5])}"
            )
        counts = {
            "sentences": len(sentences),
            "tokens": tokens,
            "unknown_labels": dict(sorted(unknown.items())),
        }
        return {**self.scores(sentences, each=True), **counts}

    def report(self, run: Run) -> list[str]:
        """Draw the curves and the errors, and return lines to print."""
        result, test = run.records("metrics.jsonl")[-1], read_data(self.options)[0].test
        truth = [tag for sentence in test for tag in sentence.tags]
        predicted = [
            tag
            for tags in self.tag([sentence.words for sentence in test])
            for tag in tags
        ]
        pictures = [
            draw_run_curves(run),
            draw_confusion(run, truth, predicted),
            draw_f1(run, result["f1_by_tag"], Counter(truth)),
        ]
        return [f"picture: {path}" for path in pictures if path]


TASK = Task("tagging", Options, BUDGET, build, prepare, Trained)
