"""Words as numbers: a vocabulary of words and of characters, sentences as padded
arrays, and the encoder of both.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from .bucketing import Buckets

PAD, UNKNOWN = 0, 1  # of words and of characters alike
BEGIN, END, FIRST = (
    2,
    3,
    4,
)  # of characters: before and behind each word, and the first real one
CHAR_EMBED = 32
HEAD, TAIL = (
    8,
    10,
)  # characters that are kept of a word too long: its beginning and its end
CHARACTERS = HEAD + TAIL + 2


class Sentences(NamedTuple):
    """Padded sentences: a word or a character of number 0 is padding, and what it is
    embedded as never matters.
    """

    words: Int[np.ndarray | Array, "B T"]
    characters: Int[np.ndarray | Array, "B T C"]

    @property
    def mask(self) -> Bool[np.ndarray | Array, "B T"]:
        return self.words != PAD


@dataclasses.dataclass(frozen=True)
class WordVocabulary:
    """Words (in lower case) and characters that training showed often enough to have
    a number.
    """

    words: tuple[str, ...]
    characters: str

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], least: int = 2) -> WordVocabulary:
        """Those that came at least ``least`` times; of characters, all."""
        counts = collections.Counter(
            word for sentence in sentences for word in sentence
        )
        folded: collections.Counter[str] = collections.Counter()
        for word, count in counts.items():
            folded[word.lower()] += count
        characters = sorted({character for word in counts for character in word})
        return cls(
            tuple(sorted(word for word, count in folded.items() if count >= least)),
            "".join(characters),
        )

    @classmethod
    def stored(cls, config: dict[str, Any]) -> WordVocabulary:
        """Out of the JSON of a run's config, where `dataclasses.asdict` of one was
        put.
        """
        return cls(tuple(config["words"]), config["characters"])

    @functools.cached_property
    def _word_numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, UNKNOWN + 1)}

    @functools.cached_property
    def _character_numbers(self) -> dict[str, int]:
        return {
            character: number for number, character in enumerate(self.characters, FIRST)
        }

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers words and characters have, padding and the unknown
        counted in.
        """
        return len(self.words) + UNKNOWN + 1, len(self.characters) + FIRST

    def __contains__(self, word: str) -> bool:
        return word.lower() in self._word_numbers

    def spelled(self, word: str) -> list[int]:
        """Numbers of a word's characters between BEGIN and END; of a long word its
        first `HEAD` and last `TAIL`.
        """
        kept = word if len(word) <= HEAD + TAIL else word[:HEAD] + word[-TAIL:]
        return [
            BEGIN,
            *(self._character_numbers.get(character, UNKNOWN) for character in kept),
            END,
        ]

    def encode(
        self, sentence: Sequence[str]
    ) -> tuple[Int[np.ndarray, " T"], Int[np.ndarray, "T C"]]:
        """A sentence's words and, a row a word, their characters."""
        words = np.array(
            [self._word_numbers.get(word.lower(), UNKNOWN) for word in sentence],
            np.int32,
        )
        characters = np.zeros((len(sentence), CHARACTERS), np.int32)
        for row, word in zip(characters, sentence, strict=True):
            spelled = self.spelled(word)
            row[: len(spelled)] = spelled
        return words, characters


def words_in(text: str, known: WordVocabulary) -> list[str]:
    """Words of a line, as a treebank counts them: parted by spaces, punctuation at
    either end a word of its own.

    What training showed stays whole, such as ``...``; a text whose words are parted
    already is left as it is.
    """
    found: list[str] = []
    for piece in text.split():
        before, core, after = re.fullmatch(
            r"(\W*)(.*?)(\W*)", piece, re.DOTALL
        ).groups()  # type: ignore[union-attr]
        whole = piece in known or not core
        found += (
            [piece]
            if whole
            else [*before, core, *([after] if after in known else after)]
        )
    return [word for word in found if word]


def pad(
    encoded: Sequence[tuple[np.ndarray, np.ndarray] | None], width: int
) -> Sentences:
    """Encoded sentences side by side, padded to ``width`` words; None is a row of
    nothing but padding.
    """
    batch = Sentences(
        np.full((len(encoded), width), PAD, np.int32),
        np.full((len(encoded), width, CHARACTERS), PAD, np.int32),
    )
    for row, each in enumerate(encoded):
        if each is not None:
            batch.words[row, : len(each[0])], batch.characters[row, : len(each[0])] = (
                each
            )
    return batch


def sentence_buckets(
    lengths: Iterable[int], batch: int, seed: int = 0, most: int = 8192
) -> Buckets:
    """Batches of like length: at most ``batch`` sentences, and ``most`` words, in
    few widths.
    """
    return Buckets(
        np.array(list(lengths), int), batch, seed, most, first=16, coarse=True
    )


class WordEncoder(nnx.Module):
    """Each word as ``[embedding of the word ; max over its characters of
    relu(convolution(characters))]``.

    What a word is spelled like says something about words that training never showed.
    In training each word is taken for the unknown one with probability
    ``word_dropout``, so that the unknown word means something, and features are
    dropped. Each of the ``filters`` sees ``kernel`` characters at once; with 0 of them
    there are no characters.
    """

    def __init__(
        self,
        sizes: tuple[int, int],
        embed: int,
        char_embed: int,
        filters: int,
        kernel: int = 3,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
        *,
        rngs: nnx.Rngs,
    ):
        self.words = nnx.Embed(
            sizes[0],
            embed,
            embedding_init=nnx.initializers.normal(EMBED_SCALE),
            rngs=rngs,
        )
        self.characters = (
            nnx.Embed(sizes[1], char_embed, rngs=rngs) if filters else None
        )
        self.convolution = (
            nnx.Conv(char_embed, filters, (kernel,), rngs=rngs) if filters else None
        )
        self.dropout, self.word_dropout, self.deterministic = (
            nnx.Dropout(dropout),
            word_dropout,
            False,
        )
        self.output_size = embed + filters

    def __call__(
        self, batch: Sentences, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B T D"]:
        words, mask = jnp.asarray(batch.words), jnp.asarray(batch.mask)
        if self.word_dropout and not self.deterministic:
            if rngs is None:
                raise ValueError(
                    "WordEncoder: word dropout draws: call it with rngs=nnx.Rngs(...), "
                    "or model.eval() first"
                )
            dropped = jax.random.bernoulli(
                rngs.dropout(), self.word_dropout, words.shape
            )
            words = jnp.where(mask & dropped, UNKNOWN, words)
        parts = [self.words(words)]
        if self.characters is not None:
            parts.append(self.spell(jnp.asarray(batch.characters)))
        features = jnp.concatenate(parts, axis=-1)
        return self.dropout(
            jnp.where(mask[..., None], features, jnp.zeros_like(features)), rngs=rngs
        )

    def spell(self, characters: Int[Array, "B T C"]) -> Float[Array, "B T F"]:
        """Features of words by their characters; padding is what stands beyond a
        word's ends: zeros, and never the largest.
        """
        there = (characters != PAD)[..., None]
        embedded: Any = self.characters(characters)  # type: ignore[misc]
        embedded = jnp.where(there, embedded, jnp.zeros_like(embedded))
        flat = embedded.reshape(-1, *embedded.shape[2:])
        found = self.convolution(flat).reshape(*embedded.shape[:3], -1)  # type: ignore[misc]
        return jnp.max(
            jnp.where(there, jax.nn.relu(found), jnp.zeros_like(found)), axis=2
        )


EMBED_SCALE = 0.1


def mean_over(
    ys: Float[Array, "B T H"], mask: Bool[Array, "B T"]
) -> Float[Array, "B H"]:
    """The mean over the steps that ``mask`` lets count; 0 where there is none."""
    total = jnp.where(mask[..., None], ys, jnp.zeros_like(ys)).sum(1)
    return total / jnp.maximum(mask.sum(1), 1).astype(ys.dtype)[:, None]


def max_over(
    ys: Float[Array, "B T H"], mask: Bool[Array, "B T"]
) -> Float[Array, "B H"]:
    """The largest over the steps that ``mask`` lets count; 0 where there is none."""
    largest = jnp.where(mask[..., None], ys, jnp.full_like(ys, -jnp.inf)).max(1)
    return jnp.where(mask.any(1)[:, None], largest, jnp.zeros_like(largest))
