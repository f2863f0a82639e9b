"""What sentiment and tagging share: the layers that read a sentence, and their
answers to many sentences at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ...core.cell import Layer, Params
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

TYPICAL = 20  # words of a sentence: the time scale of a chrono cell


def reading_layers(
    options: Any, vocabulary: dict[str, Any], rngs: nnx.Rngs
) -> tuple[WordEncoder, Layer]:
    """The encoder of words, and the bidirectional layers over them with dropout
    between.
    """
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
    """Of each label for each row of a batch, or for each word; what stands in
    padding means nothing.
    """
    return jax.nn.softmax(functions.still(params)(batch))


def probabilities_of(
    functions: Pure, params: Params, encoded: Sequence[Any], batch: int
) -> list[np.ndarray]:
    """`probabilities` of any number of encoded sentences, in their order, ``batch``
    of like length at a time.
    """
    found: dict[int, np.ndarray] = {}
    for rows, width in sentence_buckets(
        (len(words) for words, _ in encoded), batch
    ).in_order():
        sentences = pad([None if i < 0 else encoded[i] for i in rows], width)
        for i, row in zip(
            rows, np.asarray(probabilities(functions, params, sentences)), strict=True
        ):
            found[int(i)] = row
    return [found[i] for i in range(len(encoded))]
