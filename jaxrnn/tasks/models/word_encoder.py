"""The sentence encoder of sentiment and tagging, and its batched predictions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ...core.layer import Layer
from ...core.types import Params
from ...layers import bidirectional, dropout, stack
from ..data.vocabulary import (
    CHAR_EMBED,
    Sentences,
    WordEncoder,
    WordVocabulary,
    pad,
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
    functions: Pure, params: Params, encoded: Sequence[Any], batch: int
) -> list[np.ndarray]:
    """Return the `probabilities` of any number of encoded sentences, in their order.

    They are computed in batches of similar length.
    """
    by_sentence: dict[int, np.ndarray] = {}
    for rows, width in sentence_buckets(
        (len(words) for words, _ in encoded), batch
    ).in_order():
        sentences = pad([None if i < 0 else encoded[i] for i in rows], width)
        for i, row in zip(
            rows, np.asarray(probabilities(functions, params, sentences)), strict=True
        ):
            by_sentence[int(i)] = row
    return [by_sentence[i] for i in range(len(encoded))]
