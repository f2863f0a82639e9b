"""A part of a text in the numbers of a vocabulary, without a copy of the text."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

from ...training.announced import Work, announced

PART = 1 << 22  # the number of tokens that are looked at together


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """Numbers that are looked up where they are asked for.

    It is indexed as an array is, by slices and by arrays of positions, and gives int32
    arrays: ``table[codes[index]]``.

    Args:
        codes: the text as numbers of its own, ``(N,)``, such as mapped from a file.
        table: the token of each of these numbers, ``(K,)`` int32.

    Example:
        >>> codes, table = np.array([2, 0, 1]), np.array([5, 6, 7], np.int32)
        >>> tokens = Tokens(codes, table)
        >>> len(tokens), tokens[1:].tolist(), tokens[np.array([[0, 2]])].tolist()
        (3, [5, 6], [[7, 6]])
    """

    codes: Integer[np.ndarray, " N"]
    table: Int[np.ndarray, " K"]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self.table[self.codes[index]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def parts(self) -> Iterator[Int[np.ndarray, " n"]]:
        """Yield the tokens in parts that fit into memory."""
        for begin in range(0, len(self), PART):
            yield self[begin : begin + PART]

    def counts(self) -> Int[np.ndarray, " K"]:
        """Return how often each number of ``codes`` occurs."""
        return count_codes(self.codes, len(self.table))

    def sliced(self, begin: int, end: int) -> Tokens:
        """Return a part of the text, which is not copied."""
        return Tokens(self.codes[begin:end], self.table)

    def recoded(self, numbers: Int[np.ndarray, " V"]) -> Tokens:
        """Return the text with other numbers, those at ``numbers[token]``."""
        return Tokens(self.codes, numbers[self.table])

    def update(self, digest: Any, work: Work) -> None:
        """Feed the tokens to a hash of `hashlib`, as int32, and count them."""
        for part in self.parts():
            digest.update(part.data)
            work.done += len(part)


def count_codes(codes: Integer[np.ndarray, " N"], size: int) -> Int[np.ndarray, " K"]:
    """Return how often each number below ``size`` occurs."""
    counts = np.zeros(size, np.int64)
    for begin in range(0, len(codes), PART):
        counts += np.bincount(codes[begin : begin + PART], minlength=size)
    return counts


def digest_of(train: Tokens, held_out: Tokens) -> str:
    """Return a hash of two texts, by which a resumed run knows them."""
    digest, total = hashlib.sha256(), len(train) + len(held_out)
    with announced("computing the digest of the text", total, "characters") as work:
        train.update(digest, work)
        digest.update(b"held out")
        held_out.update(digest, work)
    return digest.hexdigest()
