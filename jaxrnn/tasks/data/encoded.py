"""Many sequences of numbers in few arrays, in place of as many small ones."""

from __future__ import annotations

import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from .vocabulary import Sentences, WordVocabulary, pad


class Ragged(Sequence):
    """Sequences of whole numbers, one after the other in one array.

    It is read as a list of int32 arrays is; each takes 4 bytes a number and 8 bytes.

    Args:
        sequences: the sequences.

    Example:
        >>> ragged = Ragged([[3, 1], [], [2]])
        >>> len(ragged), ragged[0].tolist(), ragged.lengths.tolist()
        (3, [3, 1], [2, 0, 1])
    """

    def __init__(self, sequences: Iterable[Iterable[int]]):
        values, ends = array.array("i"), array.array("q", [0])
        for sequence in sequences:
            values.extend(sequence)
            ends.append(len(values))
        self._values = np.frombuffer(values, np.int32)
        self._ends = np.frombuffer(ends, np.int64)

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        """Return the length of each sequence."""
        return np.diff(self._ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        return self._values[self._ends[index] : self._ends[index + 1]]


class EncodedSentences(Sequence):
    """Sentences as numbers of a vocabulary, whose words are spelled once each.

    It is read as a list of what `WordVocabulary.encode` gives is. A sentence takes four
    bytes a word and eight bytes; the characters, twenty numbers a word, are kept for
    every different word, and not for every word.

    Args:
        sentences: the sentences, which are read once.
        vocabulary: the words and characters that are known; None for those that occur
            at least ``least`` times in these sentences.
        least: see ``vocabulary``.

    Attributes:
        vocabulary: the vocabulary.
    """

    def __init__(
        self,
        sentences: Iterable[Sequence[str]],
        vocabulary: WordVocabulary | None = None,
        least: int = 1,
    ):
        kinds: dict[str, int] = {}
        self._kinds = Ragged(
            [kinds.setdefault(word, len(kinds)) for word in sentence]
            for sentence in sentences
        )
        if vocabulary is None:
            counts = np.bincount(self._kinds._values, minlength=len(kinds))
            occurring = dict(zip(kinds, counts.tolist(), strict=True))
            vocabulary = WordVocabulary.of_counts(occurring, least)
        self.vocabulary = vocabulary
        self._words, self._characters = spelled_words(list(kinds), vocabulary)

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        """Return the number of words of each sentence."""
        return self._kinds.lengths

    def __len__(self) -> int:
        return len(self._kinds)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        kinds = self._kinds[index]
        return self._words[kinds], self._characters[kinds]

    def padded(self, rows: Int[np.ndarray, " B"], width: int) -> Sentences:
        """Return a batch of sentences; a row of -1 is empty."""
        return pad([None if i < 0 else self[i] for i in rows], width)


def spelled_words(
    words: Sequence[str], vocabulary: WordVocabulary
) -> tuple[Int[np.ndarray, " K"], Integer[np.ndarray, "K C"]]:
    """Return the numbers of words, and those of their characters in few bytes."""
    small = np.uint8 if vocabulary.sizes[1] <= 256 else np.int32
    parts = [
        (numbers, spelled.astype(small))
        for numbers, spelled in map(vocabulary.encode, _in_parts(words))
    ]
    numbers, spelled = zip(*parts, strict=True)
    return np.concatenate(numbers), np.concatenate(spelled)


def _in_parts(words: Sequence[str], size: int = 4096) -> Iterator[Sequence[str]]:
    """Yield parts of a list; one that is empty for an empty list."""
    for begin in range(0, max(len(words), 1), size):
        yield words[begin : begin + size]
