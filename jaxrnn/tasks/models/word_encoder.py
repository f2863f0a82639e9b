"""The sentence encoder of sentiment and tagging, and its batched predictions."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ...core.layer import Layer
from ...core.types import Params
from ...layers import bidirectional, dropout, stack
from ...training.announced import announced
from ..data.encoded import EncodedSentences
from ..data.vocabulary import (
    CHAR_EMBED,
    Sentences,
    WordEncoder,
    WordVocabulary,
    sentence_buckets,
)
from .cell_registry import make_cell
from .functional import Pure

TYPICAL = 20  # typical number of words, which is the time scale of a chrono cell


def reading_layers(
    options: Any, vocabulary: dict[str, Any], rngs: nnx.Rngs
) -> tuple[WordEncoder, Layer]:
    """Return the word encoder, and bidirectional layers with dropout between them."""
    encoder = WordEncoder(
        WordVocabulary.stored(vocabulary).sizes,
        options.embed,
        CHAR_EMBED,
        options.filters,
        options.kernel,
        options.dropout,
        options.word_dropout,
        rngs=rngs,
    )
    parts: list[Any] = []
    for i in range(options.layers):
        parts += [dropout(options.dropout)] if i and options.dropout else []
        parts.append(bidirectional(make_cell(options.cell, options.hidden, TYPICAL)))
    return encoder, stack(*parts)


@functools.partial(jax.jit, static_argnums=0)
def probabilities(
    functions: Pure, params: Params, batch: Sentences
) -> Float[Array, "B ..."]:
    """Return the probability of each label, for each row or word of a batch.

    The values at padding are meaningless.
    """
    return jax.nn.softmax(functions.still(params)(batch))


def probabilities_of(
    functions: Pure, params: Params, encoded: EncodedSentences, batch: int
) -> Iterator[tuple[Int[np.ndarray, " B"], np.ndarray]]:
    """Yield the `probabilities` of any number of encoded sentences.

    They are computed in batches of similar length, which come with the numbers of their
    sentences: ``(B,)`` and ``(B, ...)``.
    """
    with announced("scoring", len(encoded), "texts") as work:
        for rows, width in sentence_buckets(encoded.lengths, batch).in_order():
            sentences = encoded.padded(rows, width)
            found = np.asarray(probabilities(functions, params, sentences))
            yield rows[rows >= 0], found[rows >= 0]
            work.done += int((rows >= 0).sum())
