"""The training text and the held-out text of a character language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from ...training import InputError
from .text import UNKNOWN, Vocabulary, coded_text
from .token_files import LARGE, MB, CodedText, remembered
from .tokens import Tokens, count_codes, digest_of

HELD_OUT = 0.05  # the share of a single text that is held out
RARE = 10  # in a large text, characters seen less often are unknown


@dataclasses.dataclass(frozen=True)
class Texts:
    """The training text, the held-out text and the vocabulary.

    Attributes:
        train, held_out: the texts as numbers of the vocabulary.
        vocabulary: the characters of the training text.
        notes: what became of its rare characters, if any, and where the files of large
            texts are.
        digests: the digests of what they were read from.
        is_large: whether one of them is mapped from a file.
    """

    train: Tokens
    held_out: Tokens
    vocabulary: Vocabulary
    notes: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    is_large: bool = False

    @classmethod
    def read(cls, sources: Sequence[str], least: int = 2, min_count: int = 0) -> Texts:
        """Read the texts.

        The held-out text is the second source, or the last 5 % of a single source.

        Args:
            sources: one or two files or embedded texts.
            least: the number of characters that training needs, for error messages.
            min_count: the number of times that a character must be in the training text
                to be known; 0 is 1, and `RARE` in a text of more than `LARGE`
                characters.
        """
        first = coded_text(sources[0])
        second = coded_text(sources[1]) if len(sources) > 1 else first
        cut = len(first)
        if second is first:
            cut -= int(len(first) * HELD_OUT)
        beyond = first.codes[cut:]
        held_out = second.codes if second is not first else beyond
        if len(held_out) < 2:
            raise InputError(
                f"{sources[-1]} is too short: the held-out text"
                f"{'' if len(sources) > 1 else ', its last 5 %,'} has {len(held_out)} "
                f"characters, at least 2 are needed, and at least {least:,} to train "
                f"on with this --batch and --k1"
            )
        # The held-out part is the smaller one to count.
        counts = first.counts - count_codes(beyond, len(first.counts))
        vocabulary, notes = known_characters(first.characters, counts, min_count)
        return cls(
            Tokens(first.codes[:cut], vocabulary.encode(first.characters)),
            Tokens(held_out, vocabulary.encode(second.characters)),
            vocabulary,
            (*notes, *_mapped_files(first, second)),
            (first.digest, second.digest),
            bool(first.file or second.file),
        )

    def digest(self) -> str:
        """Return a hash of the texts, by which a resumed run knows them."""

        def compute() -> str:
            return digest_of(self.train, self.held_out)

        if not self.is_large:
            return compute()
        # All that the tokens depend on, so that a large text is read but once.
        key = (*self.digests, len(self.train), self.vocabulary.characters)
        return remembered(key, compute)


def _mapped_files(*texts: CodedText) -> list[str]:
    """Return notes that say which files the texts are mapped from."""
    files = dict.fromkeys(text.file for text in texts if text.file is not None)
    return [
        f"characters as numbers: {file} ({file.stat().st_size / MB:,.0f} MB), which "
        f"later runs find again and which may be deleted"
        for file in files
    ]


def known_characters(
    characters: str, counts: Int[np.ndarray, " K"], min_count: int
) -> tuple[Vocabulary, tuple[str, ...]]:
    """Return the vocabulary of a text, and a note on rare characters.

    Args:
        characters: the characters of the text.
        counts: how often each is in the training part.
        min_count: as for `Texts.read`.

    Raises:
        InputError: if no character is left.
    """
    total = int(counts.sum())
    least = min_count or (RARE if total > LARGE else 1)
    is_rare = (counts > 0) & (counts < least)
    known = [
        character
        for character, count in zip(characters, counts.tolist(), strict=True)
        if count >= least and character != UNKNOWN
    ]
    if not known:
        most = max(
            (n for c, n in zip(characters, counts, strict=True) if c != UNKNOWN),
            default=0,
        )
        raise InputError(
            f"--min-count {least} leaves no character: the most frequent one is "
            f"{int(most):,} times in the training text"
            if most
            else "the training text has no character but U+FFFD, which stands for "
            "what could not be read: convert the original to UTF-8 again"
        )
    note = (
        f"unknown symbol: {int(is_rare.sum()):,} of the {int((counts > 0).sum()):,} "
        f"different characters, seen fewer than {least:,} times, "
        f"{int(counts[is_rare].sum()):,} of all {total:,}; --min-count 1 keeps them"
    )
    return Vocabulary(UNKNOWN + "".join(sorted(known))), (note,) * bool(is_rare.any())


def tokens_of(coded: CodedText, vocabulary: Vocabulary) -> Tokens:
    """Return a text as numbers of a vocabulary."""
    return Tokens(coded.codes, vocabulary.encode(coded.characters))
