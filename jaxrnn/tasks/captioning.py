"""captioning: from an image to words.

The default data are glyphs of fonts with their Unicode names; other data come from
folders of images.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..core.types import Params
from ..diagnostics.style import RED, dark, plain, save, styled, title
from ..training import Budget, Experiment, InputError, Run
from ..training.curves import new_figure
from .config import cell_field, check_options, choice, option
from .data.augment import augmented, half_warped
from .data.bucketing import Buckets, Rows, padded, powers_of_two
from .data.images import (
    Captioned,
    as_input,
    embedded,
    nearest,
    read_captioned,
    read_folder,
    read_picture,
)
from .data.splits import Split, sizes
from .metrics.text import sacrebleu, text_scores, word_f1
from .models.captioner import Batch, Captioner
from .models.cell_registry import make_cell
from .models.decoder import UNKNOWN
from .models.functional import Pure
from .models.own_cell import CellLike
from .optimizers import optimizer_field, schedule_field
from .pictures import draw_run_curves, subject_of
from .supervised import PredictsLabels, digest_of_parts, mean_loss, supervised
from .task import Task

BUDGET = Budget(steps=15_000, report_every=200, evaluate_every=1000)
LOOKED_AT = 1000  # largest number of images for validation
AT_ONCE = 64  # batch size of captioning and evaluation


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the task; the field names are the flags of the command line."""

    data: str = option(
        "glyphs",
        "glyphs (of fonts), glyphs:N (those with names of up to N words), or a folder "
        "of PNG files with captions.csv (file,caption)",
    )
    size: int = option(
        32,
        "side of the images in pixels, a multiple of 8; other images are scaled",
        least=8,
    )
    augment: float = option(
        0.8,
        "strength of the distortion of images in training; 0 disables it",
        least=0,
    )
    distort: str = choice(
        "auto",
        ("auto", "typeface", "shape"),
        "distortion of strokes, serifs and shape, as by another typeface, or of the "
        "shape of half of the images, slightly; auto is the first for glyphs alone",
        before="typeface",
    )
    attention: str = choice(
        "dot",
        ("none", "additive", "dot"),
        "attention of the decoder over positions of the image",
    )
    beam: int = option(
        4, "number of hypotheses of beam search; 1 is greedy", least=1, below=1000
    )
    length_penalty: float = option(
        0.0,
        "exponent p of beam search, which ranks by log probability / length ** p",
        least=0,
    )
    cell: CellLike = cell_field("lstm")
    hidden: int = option(256, "number of units of each recurrent layer", least=1)
    layers: int = option(1, "number of recurrent layers", least=1)
    encoder: str = choice(
        "full",
        ("full", "strided"),
        "convolutions at full resolution, or a first one with a stride of 2, which "
        "takes less than half the time and learns less",
    )
    channels: int = option(
        16,
        "width of the encoder, whose convolutions have two to eight times as many",
        least=1,
    )
    embed: int = option(64, "size of the word embedding", least=1)
    dropout: float = option(
        0.3, "dropout rate after each recurrent layer", least=0, below=1
    )
    batch: int = option(32, "number of images per update", least=1)
    learning_rate: float = option(2e-3, "peak learning rate", above=0)
    optimizer: str = optimizer_field()
    schedule: str = schedule_field()
    clip: float = option(1.0, "largest global norm of the gradient", above=0)
    weight_decay: float = option(0.0, "decoupled weight decay", least=0)
    seed: int = option(0, "random seed", least=0, below=2**31)

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
    """Build the model's functions and initial parameters.

    ``config["vocabulary"]`` holds the known words.
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
        encoder=options.encoder,
        rngs=nnx.Rngs(options.seed),
    )
    return Pure.of(model)


def prepare(options: Options) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment, and further entries of the run's config."""
    sacrebleu()
    split, notes = read_captioned(options.data, options.size)
    words = sorted({word for row in split.train for word in row.caption.split()})
    seen = (
        ((row.name, row.caption, int(row.picture.sum(dtype=int))) for row in part)
        for part in split
    )
    config = {
        "vocabulary": words,
        "text": digest_of_parts(seen),
        "longest": 1 + max(len(row.caption.split()) for row in split.train),
    }
    pure, params = build(options, config)
    trained = functools.partial(Trained, pure, options=options, config=config)
    train = Numbered(split.train, words)
    validation = split.validation[:: -(-len(split.validation) // LOOKED_AT)]
    distorted = distortion(options)

    def loss(params: Params, batch: Batch, key: Any) -> tuple[Any, Any]:
        k_augment, k_dropout = jax.random.split(key)
        if options.augment:
            batch = batch._replace(
                pictures=distorted(k_augment, batch.pictures, options.augment)
            )
        return pure.training(params).loss(batch, nnx.Rngs(dropout=k_dropout))

    def sample(params: Params) -> str:
        return (
            f"{trained(params).write([validation[0].picture])[0]} "
            f"({validation[0].caption})"
        )

    experiment = supervised(
        options,
        params,
        loss=loss,
        buckets=Buckets(train.lengths, options.batch, options.seed),
        batch=train.batch,
        validate=lambda params: trained(params).scores(validation, width=1),
        test=lambda params: {
            **trained(params).scores(split.test),
            **copied(split),
        },
        best_by=("word_f1", "max"),
        sample=sample,
        unit="words",
        notes=notes,
        data=f"{options.data}: {sizes(split, 'pictures')}",
    )
    return experiment, config


def distortion(options: Options) -> Callable[[Any, Any, float], Any]:
    """Return the function that distorts images in training.

    A typeface to be read is not among those learned from, but icons to be captioned are
    drawn like those of the training part.
    """
    chosen = options.distort
    if chosen == "auto":
        chosen = "typeface" if embedded(options.data) else "shape"
    return {"typeface": augmented, "shape": half_warped}[chosen]


def copied(split: Split) -> dict[str, float]:
    """Return the scores of the caption of the nearest training image, as a baseline."""
    written = nearest(split.train, split.test)
    references = [row.caption for row in split.test]
    return {
        "nearest_neighbor_exact_match": text_scores(written, references)["exact_match"],
        "nearest_neighbor_word_f1": word_f1(written, references),
    }


class Numbered:
    """Captioned images as numbers.

    Words are numbered from 1; 0 is a word that is not in the training part, and the
    boundary token is the last number.
    """

    def __init__(self, rows: Sequence[Captioned], words: list[str]):
        number = {word: i for i, word in enumerate(words, start=1)}
        self.rows, self.boundary = rows, len(words) + 1
        self.captions = [
            [*(number.get(w, UNKNOWN) for w in row.caption.split()), self.boundary]
            for row in rows
        ]
        longest = max(map(len, self.captions), default=1)
        self.lengths = np.minimum(powers_of_two(map(len, self.captions), 8), longest)

    def batch(self, rows: Rows) -> Batch:
        """Return the images of ``rows``; a row of -1 is an image without a caption."""
        pictures = as_input([self.rows[max(row, 0)].picture for row in rows.rows])
        return Batch(
            *map(jnp.asarray, (pictures, *padded(self.captions, rows, self.boundary)))
        )


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5))
def _write(pure, params, pictures, width, length, penalty):
    """Return the tokens and lengths of the most probable captions."""
    found = pure.still(params).write(pictures, width, length, penalty)
    return found.tokens[..., 0], found.lengths[..., 0]


@functools.partial(jax.jit, static_argnums=0)
def _loss(pure, params, batch):
    """Return the summed loss without randomness, and the number of words."""
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
        """Return the most probable caption of each image."""
        words, captions = ["", *self.config["vocabulary"]], []
        at_once = AT_ONCE if len(pictures) > 1 else 1
        for begin in range(0, len(pictures), at_once):
            images = pictures[begin : begin + at_once]
            batch = as_input(
                [*images, *[np.zeros_like(images[0])] * (at_once - len(images))]
            )
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
            captions += [
                " ".join(words[n] for n in tokens[: lengths[i], i])
                for i in range(len(images))
            ]
        return captions

    def scores(
        self, rows: Sequence[Captioned], width: int | None = None
    ) -> dict[str, float]:
        """Return exact match, BLEU, chrF and word F1 of the captions, and the loss.

        The loss is that of the reference captions, in nats per word.
        """
        numbered = Numbered(rows, self.config["vocabulary"])
        batches = Buckets(numbered.lengths, AT_ONCE).in_order()
        loss = mean_loss(
            _loss(self.functions, self.params, numbered.batch(batch))
            for batch in batches
        )
        written, references = (
            self.write([row.picture for row in rows], width),
            [row.caption for row in rows],
        )
        return {
            **text_scores(written, references),
            "word_f1": word_f1(written, references),
            "loss": loss,
        }

    def predict(self, text: str) -> str:
        """Return the caption of the image in a file."""
        return self.write(
            [read_picture(pathlib.Path(text.strip()), self.options.size)]
        )[0]

    def evaluate(self, path: str) -> dict[str, Any]:
        """Return the scores on all images of a folder with captions.csv.

        ``glyphs`` stands for the test typeface.
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
        """Draw ``curves.png``, and captions of some test images as ``captions.png``."""
        test = read_captioned(self.options.data, self.options.size)[0].test
        examples = test[:: -(-len(test) // 24)]
        drawn = draw_captions(
            run, examples, self.write([row.picture for row in examples])
        )
        pictures = [
            draw_run_curves(run),
            drawn,
        ]
        return [f"picture: {path}" for path in pictures if path]


@styled
def draw_captions(
    run: Run, rows: Sequence[Captioned], written: list[str]
) -> pathlib.Path | None:
    """Draw ``captions.png``: images with their captions.

    A wrong caption is red, with the reference below it.
    """
    across = 6
    down = -(-len(rows) // across)
    figure = new_figure(2.1 * across, 2.3 * down + 0.4)
    if figure is None:
        return None
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    for axis, row, text in zip(axes, rows, written, strict=False):
        axis.imshow(row.picture, cmap="Greys", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("lightgray")
        is_correct = text == row.caption
        words = text if is_correct else f"{text}\nwanted: {row.caption}"
        axis.set_title(
            _wrapped(words),
            fontsize=6.5,
            color="black" if is_correct else dark(RED),
            loc="center",
            y=-0.09,
            va="top",
        )
    what = "Captions of the test part; a wrong one has the wanted one below it"
    figure.suptitle(title(what, subject_of(run)), x=0.01, ha="left")
    figure.get_layout_engine().set(h_pad=0.12)
    path = run.path / "captions.png"
    save(figure, path)
    return path


def _wrapped(text: str) -> str:
    """Wrap a title, and escape what matplotlib would interpret."""
    return plain(
        "\n".join(part for line in text.split("\n") for part in textwrap.wrap(line, 28))
    )


TASK = Task("captioning", Options, BUDGET, build, prepare, Trained)
