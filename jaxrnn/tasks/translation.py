"""translation: sequence to sequence with attention.

The default data are dates in two languages; other data are TSV files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..core.types import Params
from ..training import Budget, Experiment, Run
from .config import cell_field, check_with_sources, choice, option
from .data.bucketing import Buckets, Rows, padded, powers_of_two
from .data.encoded import Ragged
from .data.sentence_pairs import Pair, read_pairs, read_tsv
from .data.splits import Split, sizes
from .data.tokenizers import Characters, Subwords, symbols_of
from .metrics.attention_plot import draw_attention
from .metrics.text import sacrebleu, text_scores
from .models.cell_registry import make_cell
from .models.functional import Pure
from .models.own_cell import CellLike
from .models.seq2seq import Batch, Translator
from .optimizers import optimizer_field, schedule_field
from .pictures import draw_run_curves
from .supervised import PredictsLabels, digest_of_parts, mean_loss, supervised
from .task import Task

BUDGET = Budget(steps=800, report_every=50, evaluate_every=200)
LOOKED_AT = 1000  # largest number of pairs for validation


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the task; the field names are the flags of the command line."""

    data: tuple[str, ...] = option(
        ("dates:en:ko",),
        "dates:SOURCE:TARGET (language codes), or a TSV file; a second file is held "
        "out",
    )
    attention: str = choice(
        "additive",
        ("additive", "dot", "none"),
        "attention of the decoder over the source",
    )
    scheduled_sampling: float = option(
        0.0,
        "share of the decoder's inputs in training that the model draws itself",
        least=0,
        below=1,
    )
    beam: int = option(
        4, "number of hypotheses of beam search; 1 is greedy", least=1, below=1000
    )
    length_penalty: float = option(
        1.0,
        "exponent p of beam search, which ranks by log probability / length ** p",
        least=0,
    )
    subwords: int = option(
        0, "number of sentencepiece subwords; 0 uses characters", least=0
    )
    cell: CellLike = cell_field("lstm")
    hidden: int = option(
        128,
        "number of units of each layer, and of each direction of the encoder",
        least=1,
    )
    layers: int = option(1, "number of recurrent layers", least=1)
    embed: int = option(32, "size of the token embedding", least=1)
    dropout: float = option(
        0.0, "dropout rate after each recurrent layer", least=0, below=1
    )
    batch: int = option(64, "number of pairs per update", least=1)
    learning_rate: float = option(5e-3, "peak learning rate", above=0)
    optimizer: str = optimizer_field()
    schedule: str = schedule_field()
    clip: float = option(1.0, "largest global norm of the gradient", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay", least=0)
    seed: int = option(0, "random seed", least=0, below=2**31)

    QUICK: ClassVar[dict[str, Any]] = {"hidden": 64, "batch": 32, "learning_rate": 1e-2}

    def __post_init__(self):
        check_with_sources(self, "source")


def build(options: Options, config: dict[str, Any]) -> tuple[Pure, Params]:
    """Build the model's functions and initial parameters.

    ``config["vocabulary"]`` holds the known tokens.
    """
    symbols = tuple(
        symbols_of(config, side).boundary + 1 for side in ("source", "target")
    )
    model = Translator(
        (symbols[0], symbols[1]),
        make_cell(options.cell, options.hidden, config["longest"]),
        embed=options.embed,
        layers=options.layers,
        dropout=options.dropout,
        attention=options.attention,
        size=options.hidden,
        rngs=nnx.Rngs(options.seed),
    )
    return Pure.of(model)


def prepare(options: Options) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and further entries of the run's config."""
    sacrebleu()
    split, notes = read_pairs(options.data)
    if options.subwords:
        texts = [text for pair in split.train for text in pair]
        vocabulary = {"sentencepiece": Subwords.of(texts, options.subwords).model}
    else:
        vocabulary = {
            side: Characters.of(pair[i] for pair in split.train).known
            for i, side in enumerate(Pair._fields)
        }
    config = {"vocabulary": vocabulary, "text": digest_of_parts(split), "longest": 0}
    train = Numbered.of(config, split.train)
    config["longest"] = int(train.target.lengths.max())
    pure, params = build(options, config)
    trained = functools.partial(Trained, pure, options=options, config=config)
    validation = split.validation[:: -(-len(split.validation) // LOOKED_AT)]

    def sample(params: Params) -> str:
        return (
            f"{validation[0].source} \u2192 "
            f"{trained(params).predict(validation[0].source)} ({validation[0].target})"
        )

    experiment = supervised(
        options,
        params,
        loss=lambda params, batch, key: pure.training(params).loss(
            batch, key, options.scheduled_sampling
        ),
        buckets=Buckets(train.lengths, options.batch, options.seed),
        batch=train.batch,
        validate=lambda params: trained(params).scores(validation, width=1),
        test=lambda params: {
            **trained(params).scores(split.test),
            **copying(split.test),
        },
        best_by=("chrf", "max"),
        sample=sample,
        unit="symbols",
        notes=notes,
        data=f"{options.data[0]}: {sizes(split, 'pairs')}",
    )
    return experiment, config


def copying(pairs: Sequence[Pair]) -> dict[str, float]:
    """Return the scores of leaving every source as it is, as a baseline."""
    scores = text_scores(
        [pair.source for pair in pairs], [pair.target for pair in pairs]
    )
    return {f"copying_{name}": scores[name] for name in ("exact_match", "chrf")}


@dataclasses.dataclass(frozen=True, eq=False)
class Numbered:
    """Pairs as token sequences.

    ``lengths`` are rounded up to 16, 32, 64, ..., so that few shapes are compiled.
    """

    source: Ragged
    target: Ragged
    boundary: int

    @classmethod
    def of(cls, config: dict[str, Any], pairs: Sequence[Pair]) -> Numbered:
        """Encode pairs; the target ends with the boundary token."""
        source, target = symbols_of(config, "source"), symbols_of(config, "target")
        ended = Ragged(
            [*target.encode(pair.target).tolist(), target.boundary] for pair in pairs
        )
        return cls(
            Ragged(source.encode(pair.source).tolist() for pair in pairs),
            ended,
            target.boundary,
        )

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Return the rounded length of each pair."""
        longer = np.maximum(self.source.lengths, self.target.lengths)
        return powers_of_two(longer.tolist(), 16)

    def batch(self, rows: Rows) -> Batch:
        """Return the pairs of ``rows``, padded; a row of -1 is an empty pair."""
        parts = (
            *padded(self.source, rows, 0),
            *padded(self.target, rows, self.boundary),
        )
        return Batch(*map(jnp.asarray, parts))


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _translate(pure, params, source, lengths, width, length, penalty):
    """Return the tokens and lengths of the most probable translations."""
    found = pure.still(params).translate(source, lengths, width, length, penalty)
    return found.tokens[..., 0], found.lengths[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def _loss(pure, params, batch):
    """Return the summed loss without randomness, and the number of tokens."""
    return pure.still(params).loss(batch, jax.random.key(0))  # the key is not used


@functools.partial(jax.jit, static_argnums=0)
def _weights(pure, params, batch):
    """Return the attention weights."""
    return pure.still(params)(batch)[1]


@dataclasses.dataclass(frozen=True)
class Trained(PredictsLabels):
    """A trained model, for `predict` and `evaluate`."""

    functions: Pure = dataclasses.field(repr=False)
    params: Any = dataclasses.field(repr=False)
    options: Options
    config: dict[str, Any] = dataclasses.field(repr=False)
    task: ClassVar[str] = "translation"

    def translate(self, sources: list[str], width: int | None = None) -> list[str]:
        """Return the most probable translation of each text.

        Its length is limited to a little more than the longest in training.
        """
        symbols = symbols_of(self.config, "target")
        numbered = Numbered.of(self.config, [Pair(source, "") for source in sources])
        buckets = Buckets(
            numbered.lengths,
            min(self.options.batch, int(powers_of_two([len(sources)], 1)[0])),
        )
        translations = [""] * len(sources)
        for rows in buckets.in_order():
            batch, longest = (
                numbered.batch(rows),
                min(self.config["longest"] + 8, 2 * rows.width + 16),
            )
            width = width or self.options.beam
            tokens, lengths = _translate(
                self.functions,
                self.params,
                batch.source,
                batch.source_lengths,
                width,
                longest,
                self.options.length_penalty,
            )
            for i, row in enumerate(rows.rows):
                if row >= 0:
                    translations[row] = symbols.decode(
                        np.asarray(tokens)[: int(lengths[i]), i]
                    )
        return translations

    def scores(
        self, pairs: Sequence[Pair], width: int | None = None
    ) -> dict[str, float]:
        """Return exact match, BLEU and chrF of the translations, and the loss.

        The loss is that of the reference translations, in nats per token.
        """
        numbered = Numbered.of(self.config, pairs)
        batches = Buckets(numbered.lengths, self.options.batch).in_order()
        loss = mean_loss(
            _loss(self.functions, self.params, numbered.batch(rows)) for rows in batches
        )
        written = self.translate([pair.source for pair in pairs], width)
        return {**text_scores(written, [pair.target for pair in pairs]), "loss": loss}

    def predict(self, text: str) -> str:
        """Return the translation of a line."""
        return self.translate([text.strip()])[0].replace("\n", " ")

    def evaluate(self, path: str) -> dict[str, Any]:
        """Return the scores on all pairs of a TSV file, or on the test dates."""
        pairs = (
            read_pairs((path,))[0].test
            if path.startswith("dates:")
            else [pair for pair, _ in read_tsv(path)]
        )
        source = symbols_of(self.config, "source")
        unknown = sum(int((source.encode(pair.source) == 0).sum()) for pair in pairs)
        return {**self.scores(pairs), "pairs": len(pairs), "unknown_symbols": unknown}

    def weights(self, source: str, target: str) -> np.ndarray | None:
        """Return the attention weights ``(T, S)`` of ``target`` and its end token.

        None without attention.
        """
        numbered = Numbered.of(self.config, [Pair(source, target)])
        batch = numbered.batch(Rows(np.zeros(1, int), int(numbered.lengths[0])))
        weights = _weights(self.functions, self.params, batch)
        return (
            None
            if weights is None
            else np.asarray(
                weights[0, : batch.target_lengths[0], : batch.source_lengths[0]]
            )
        )

    def report(self, run: Run) -> list[str]:
        """Draw ``curves.png`` and ``attention.png``, the weights of some test pairs."""
        split: Split = read_pairs(self.options.data)[0]
        examples = []
        for pair in sorted(
            split.test[:50], key=lambda pair: -min(len(pair.source), 60)
        )[:4]:
            written = self.predict(pair.source)
            weights = self.weights(pair.source, written)
            if weights is not None:
                source, target = (
                    symbols_of(self.config, side) for side in Pair._fields
                )
                examples.append(
                    (source.pieces(pair.source), target.pieces(written), weights)
                )
        pictures = [
            draw_run_curves(run),
            draw_attention(run, examples),
        ]
        return [f"picture: {path}" for path in pictures if path]


TASK = Task("translation", Options, BUDGET, build, prepare, Trained)
