"""Word and character vocabularies, padded sentences, and an encoder of words."""

from __future__ import annotations

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from .bucketing import Buckets

PAD, UNKNOWN = 0, 1  # of both words and characters
# Character tokens before and after each word, and the first number of a real character.
BEGIN, END, FIRST = 2, 3, 4
CHAR_EMBED = 32
# The numbers of characters at the beginning and the end of a word that are kept of a
# word longer than their sum.
HEAD, TAIL = 8, 10
CHARACTERS = HEAD + TAIL + 2


class Sentences(NamedTuple):
    """Padded sentences as numbers of words and of characters.

    The number 0 is padding, whose embedding has no effect.
    """

    words: Int[np.ndarray | Array, "B T"]
    characters: Int[np.ndarray | Array, "B T C"]

    @property
    def mask(self) -> Bool[np.ndarray | Array, "B T"]:
        """Return True where there is a word."""
        return self.words != PAD


@dataclasses.dataclass(frozen=True)
class WordVocabulary:
    """The frequent words (in lower case) and all characters of sentences."""

    words: tuple[str, ...]
    characters: str

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], least: int = 2) -> WordVocabulary:
        """Collect the words that occur at least ``least`` times, and all characters."""
        return cls.of_counts(
            collections.Counter(word for sentence in sentences for word in sentence),
            least,
        )

    @classmethod
    def of_counts(cls, counts: Mapping[str, int], least: int = 2) -> WordVocabulary:
        """Collect the words that occur so often, of all words and their counts."""
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
        """Read a vocabulary from a run's config, stored by `dataclasses.asdict`."""
        return cls(tuple(config["words"]), config["characters"])

    @functools.cached_property
    def _word_numbers(self) -> dict[str, int]:
        """Return the numbers of the words."""
        return {word: number for number, word in enumerate(self.words, UNKNOWN + 1)}

    @functools.cached_property
    def _character_numbers(self) -> dict[str, int]:
        """Return the numbers of the characters."""
        return {
            character: number for number, character in enumerate(self.characters, FIRST)
        }

    @property
    def sizes(self) -> tuple[int, int]:
        """Return how many numbers words and characters have, including special ones."""
        return len(self.words) + UNKNOWN + 1, len(self.characters) + FIRST

    def __contains__(self, word: str) -> bool:
        return word.lower() in self._word_numbers

    def spelled(self, word: str) -> list[int]:
        """Return the numbers of a word's characters between BEGIN and END.

        Of a long word these are its first `HEAD` and last `TAIL` characters.
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
        """Return the numbers of the words and, one row per word, of the characters."""
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
    """Split a line into words as a treebank does.

    Words are separated by spaces, and punctuation at either end is a word of its own.
    Words of the vocabulary, such as ``...``, stay whole; a text that is already split
    is not changed.
    """
    words: list[str] = []
    for piece in text.split():
        before, core, after = re.fullmatch(
            r"(\W*)(.*?)(\W*)", piece, re.DOTALL
        ).groups()  # type: ignore[union-attr]
        is_word = piece in known or not core
        words += (
            [piece]
            if is_word
            else [*before, core, *([after] if after in known else after)]
        )
    return [word for word in words if word]


def pad(
    encoded: Sequence[tuple[np.ndarray, np.ndarray] | None], width: int
) -> Sentences:
    """Stack encoded sentences, padded to ``width`` words; None is an empty row."""
    batch = Sentences(
        np.full((len(encoded), width), PAD, np.int32),
        np.full((len(encoded), width, CHARACTERS), PAD, np.int32),
    )
    for row, sentence in enumerate(encoded):
        if sentence is not None:
            (
                batch.words[row, : len(sentence[0])],
                batch.characters[row, : len(sentence[0])],
            ) = sentence
    return batch


def sentence_buckets(
    lengths: Iterable[int] | Int[np.ndarray, " N"],
    batch: int,
    seed: int = 0,
    most: int = 8192,
) -> Buckets:
    """Return `Buckets` of few widths, each of limited sentences and words."""
    return Buckets(
        np.array(list(lengths), int), batch, seed, most, first=16, coarse=True
    )


class WordEncoder(nnx.Module):
    """Features of words, from their embedding and from their characters::

        [embed(word) ; max over characters of relu(convolution(characters))]

    The characters tell something about words that are not in the vocabulary. In
    training, each word is replaced by the unknown word with probability
    ``word_dropout``, so that the unknown word has a meaning, and features are dropped
    with rate ``dropout``.

    Args:
        sizes: the numbers of words and of characters, `WordVocabulary.sizes`.
        embed, char_embed: the sizes of the embeddings.
        filters: the number of convolution filters; 0 uses no characters.
        kernel: the number of characters that each filter covers.
        dropout, word_dropout: the rates.
        rngs: draw the parameters.
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
        """Return the features of the words of a batch; zero where there is padding."""
        words, mask = jnp.asarray(batch.words), jnp.asarray(batch.mask)
        if self.word_dropout and not self.deterministic:
            if rngs is None:
                raise ValueError(
                    "WordEncoder: word dropout draws random numbers: call it with "
                    "rngs=nnx.Rngs(...), or call model.eval() first"
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
        """Return the features of words from their characters.

        Padding is zero at the input of the convolution, and excluded from the maximum.
        """
        valid = (characters != PAD)[..., None]
        embedded: Any = self.characters(characters)  # type: ignore[misc]
        embedded = jnp.where(valid, embedded, jnp.zeros_like(embedded))
        flat = embedded.reshape(-1, *embedded.shape[2:])
        features: Any = self.convolution(flat)  # type: ignore[misc]
        features = features.reshape(*embedded.shape[:3], -1)
        return jnp.max(
            jnp.where(valid, jax.nn.relu(features), jnp.zeros_like(features)), axis=2
        )


EMBED_SCALE = 0.1


def mean_over(
    ys: Float[Array, "B T H"], mask: Bool[Array, "B T"]
) -> Float[Array, "B H"]:
    """Return the mean over the steps of the mask, 0 if there are none."""
    total = jnp.where(mask[..., None], ys, jnp.zeros_like(ys)).sum(1)
    return total / jnp.maximum(mask.sum(1), 1).astype(ys.dtype)[:, None]


def max_over(
    ys: Float[Array, "B T H"], mask: Bool[Array, "B T"]
) -> Float[Array, "B H"]:
    """Return the maximum over the steps of the mask, 0 if there are none."""
    largest = jnp.where(mask[..., None], ys, jnp.full_like(ys, -jnp.inf)).max(1)
    return jnp.where(mask.any(1)[:, None], largest, jnp.zeros_like(largest))
