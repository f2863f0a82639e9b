"""captioning: a picture in, words out; glyphs and their Unicode names by default,
folders of pictures for the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import textwrap
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..core.cell import Params
from ..training import Budget, Experiment, InputError, Run
from ..training.curves import draw_curves, new_figure
from .config import cell_field, check_options, choice, option
from .data.augment import augmented
from .data.bucketing import Buckets, Rows, padded, powers_of_two
from .data.images import (
    Captioned,
    as_input,
    embedded,
    read_captioned,
    read_folder,
    read_picture,
)
from .metrics.text import sacrebleu, text_scores, word_f1
from .models.captioner import Batch, Captioner
from .models.cell_registry import make_cell
from .models.decoder import UNKNOWN
from .models.functional import Pure
from .supervised import PredictsLabels, digest, mean_loss, supervised

BUDGET = Budget(steps=15_000, report_every=200, evaluate_every=1000)
LOOKED_AT = 1000  # pictures of the validation part, at most
AT_ONCE = 64  # pictures that are captioned


@dataclasses.dataclass(frozen=True)
class Options:
    """What can be chosen; the field names are the command line's flags."""

    data: str = option(
        "glyphs",
        "glyphs of fonts, glyphs:N those with names of up to N words, or a folder of "
        "PNGs with captions.csv (file,caption)",
    )
    size: int = option(
        32, "side of the pictures, a multiple of 8; others are scaled", least=8
    )
    augment: float = option(
        0.8,
        "how much strokes and shapes of pictures are distorted in training; 0: not",
        least=0,
    )
    attention: str = choice(
        "dot",
        ("none", "additive", "dot"),
        "whether the decoder looks at the picture's cells, and how",
    )
    beam: int = option(4, "hypotheses of beam search; 1: greedy", least=1, below=1000)
    length_penalty: float = option(
        1.0, "beam search ranks by log probability / length ** this", least=0
    )
    cell: str = cell_field("lstm")
    hidden: int = option(256, "units of each recurrent layer", least=1)
    layers: int = option(1, "recurrent layers", least=1)
    channels: int = option(
        16,
        "of the first convolution; the next ones have up to eight times as many",
        least=1,
    )
    embed: int = option(64, "size of the words' embeddings", least=1)
    dropout: float = option(0.1, "after each recurrent layer", least=0, below=1)
    batch: int = option(32, "pictures of an update", least=1)
    learning_rate: float = option(2e-3, "peak learning rate of Adam", above=0)
    clip: float = option(1.0, "largest global norm of a gradient", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay", least=0)
    seed: int = option(0, "of everything random", least=0, below=2**31)

    QUICK: ClassVar[dict[str, Any]] = {
        "data": "glyphs:4",
        "augment": 0.0,
        "dropout": 0.0,
        "hidden": 64,
        "channels": 8,
        "learning_rate": 5e-3,
    }

    def __post_init__(self):
        check_options(self)
        if self.size % 8:
            raise InputError(
                f"--size must be a multiple of 8, but it is {self.size}: the network "
                f"halves the side three times"
            )


def build(options: Options, config: dict[str, Any]) -> tuple[Pure, Params]:
    """The model's functions and its first parameters; ``config["vocabulary"]`` holds
    the words it knows.
    """
    model = Captioner(
        len(config["vocabulary"]) + 2,
        make_cell(options.cell, options.hidden, config["longest"]),
        picture_size=options.size,
        channels=options.channels,
        features=options.hidden,
        embed=options.embed,
        layers=options.layers,
        dropout=options.dropout,
        attention=options.attention,
        size=options.hidden,
        rngs=nnx.Rngs(options.seed),
    )
    return Pure.of(model)


def prepare(options: Options) -> tuple[Experiment, dict[str, Any]]:
    """The experiment, and what the run's config must hold besides the options."""
    sacrebleu()
    split, notes = read_captioned(options.data, options.size)
    words = sorted({word for row in split.train for word in row.caption.split()})
    seen = [
        [(row.name, row.caption, int(row.picture.astype(int).sum())) for row in part]
        for part in split
    ]
    config = {
        "vocabulary": words,
        "text": digest(seen),
        "longest": 1 + max(len(row.caption.split()) for row in split.train),
    }
    pure, params = build(options, config)
    trained = functools.partial(Trained, pure, options=options, config=config)
    train = Numbered(split.train, words)
    looked_at = split.validation[:: -(-len(split.validation) // LOOKED_AT)]

    def loss(params: Params, batch: Batch, key: Any) -> tuple[Any, Any]:
        k_augment, k_dropout = jax.random.split(key)
        if options.augment:
            batch = batch._replace(
                pictures=augmented(k_augment, batch.pictures, options.augment)
            )
        return pure.training(params).loss(batch, nnx.Rngs(dropout=k_dropout))

    def sample(params: Params) -> str:
        return (
            f"{trained(params).write([looked_at[0].picture])[0]} "
            f"({looked_at[0].caption})"
        )

    experiment = supervised(
        options,
        params,
        loss=loss,
        buckets=Buckets(train.lengths, options.batch, options.seed),
        batch=train.batch,
        validate=lambda params: trained(params).scores(looked_at, width=1),
        test=lambda params: trained(params).scores(split.test),
        best_by=("word_f1", "max"),
        sample=sample,
        unit="words",
        notes=notes,
    )
    return experiment, config


class Numbered:
    """Captioned pictures as numbers: words from 1, 0 for what training did not show,
    the boundary symbol last.
    """

    def __init__(self, rows: list[Captioned], words: list[str]):
        number = {word: i for i, word in enumerate(words, start=1)}
        self.rows, self.boundary = rows, len(words) + 1
        self.captions = [
            [*(number.get(w, UNKNOWN) for w in row.caption.split()), self.boundary]
            for row in rows
        ]
        longest = max(map(len, self.captions), default=1)
        self.lengths = np.minimum(powers_of_two(map(len, self.captions), 8), longest)

    def batch(self, rows: Rows) -> Batch:
        """The pictures of ``rows``; where one is -1, a picture without a caption."""
        pictures = as_input([self.rows[max(row, 0)].picture for row in rows.rows])
        return Batch(
            *map(jnp.asarray, (pictures, *padded(self.captions, rows, self.boundary)))
        )


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _write(pure, params, pictures, width, length, penalty):
    found = pure.still(params).write(pictures, width, length, penalty)
    return found.tokens[..., 0], found.lengths[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def _loss(pure, params, batch):
    return pure.still(params).loss(batch)


@dataclasses.dataclass(frozen=True)
class Trained(PredictsLabels):
    """A trained model, for `predict` and `evaluate`."""

    functions: Pure = dataclasses.field(repr=False)
    params: Any = dataclasses.field(repr=False)
    options: Options
    config: dict[str, Any] = dataclasses.field(repr=False)
    task: ClassVar[str] = "captioning"

    def write(self, pictures: list[np.ndarray], width: int | None = None) -> list[str]:
        """The likeliest caption of each picture."""
        words, found = ["", *self.config["vocabulary"]], []
        at_once = AT_ONCE if len(pictures) > 1 else 1
        for begin in range(0, len(pictures), at_once):
            part = pictures[begin : begin + at_once]
            batch = as_input([*part, *[np.zeros_like(part[0])] * (at_once - len(part))])
            width, longest = width or self.options.beam, self.config["longest"] + 4
            tokens, lengths = map(
                np.asarray,
                _write(
                    self.functions,
                    self.params,
                    batch,
                    width,
                    longest,
                    self.options.length_penalty,
                ),
            )
            found += [
                " ".join(words[n] for n in tokens[: lengths[i], i])
                for i in range(len(part))
            ]
        return found

    def scores(
        self, rows: list[Captioned], width: int | None = None
    ) -> dict[str, float]:
        """Exact match, BLEU, chrF and word F1 of the captions, and the loss of the
        wanted ones (nats per word).
        """
        numbered = Numbered(rows, self.config["vocabulary"])
        batches = Buckets(numbered.lengths, AT_ONCE).in_order()
        loss = mean_loss(
            _loss(self.functions, self.params, numbered.batch(batch))
            for batch in batches
        )
        written, wanted = (
            self.write([row.picture for row in rows], width),
            [row.caption for row in rows],
        )
        return {
            **text_scores(written, wanted),
            "word_f1": word_f1(written, wanted),
            "loss": loss,
        }

    def predict(self, text: str) -> str:
        """The caption of the picture in a file."""
        return self.write(
            [read_picture(pathlib.Path(text.strip()), self.options.size)]
        )[0]

    def evaluate(self, path: str) -> dict[str, Any]:
        """Scores on all pictures of a folder with captions.csv, or on the test
        typeface of ``glyphs``.
        """
        size = self.options.size
        rows = (
            read_captioned(path, size)[0].test
            if embedded(path)
            else [row for row, _ in read_folder(path, size)]
        )
        known = set(self.config["vocabulary"])
        unknown = sum(word not in known for row in rows for word in row.caption.split())
        return {**self.scores(rows), "pictures": len(rows), "unknown_words": unknown}

    def report(self, run: Run) -> list[str]:
        """``curves.png``, and some test pictures with what was written under them as
        ``captions.png``.
        """
        test = read_captioned(self.options.data, self.options.size)[0].test
        some = test[:: -(-len(test) // 24)]
        drawn = draw_captions(run, some, self.write([row.picture for row in some]))
        pictures = [draw_curves(run, "loss", "cross-entropy (nats per word)"), drawn]
        return [f"picture: {path}" for path in pictures if path]


def draw_captions(
    run: Run, rows: list[Captioned], written: list[str]
) -> pathlib.Path | None:
    """``captions.png``: pictures, under each what was written, and where that is
    wrong what was wanted, in red.
    """
    across = 6
    down = -(-len(rows) // across)
    figure = new_figure(2.1 * across, 2.3 * down)
    if figure is None:
        return None
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    for axis, row, text in zip(axes, rows, written, strict=False):
        axis.imshow(row.picture, cmap="Greys", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("lightgray")
        right = text == row.caption
        shown = text if right else f"{text}\nwanted: {row.caption}"
        axis.set_title(
            _wrapped(shown),
            fontsize=6.5,
            color="black" if right else "tab:red",
            y=-0.09,
            va="top",
        )
    figure.tight_layout(h_pad=3)
    path = run.path / "captions.png"
    figure.savefig(path, dpi=110)
    return path


def _wrapped(text: str) -> str:
    return "\n".join(
        part for line in text.split("\n") for part in textwrap.wrap(line, 28)
    ).replace("$", r"\$")
