"""The bits per character of models that look at no or one character before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from ...training.announced import announced
from ..data.tokens import PART, Tokens

FEW = 512  # up to so many characters the pairs are counted without sorting them
DENSE = 4096  # the number of characters up to which every pair has a counter


def ngram_baselines(
    train: Int[np.ndarray, " N"] | Tokens,
    held_out: Int[np.ndarray, " M"] | Tokens,
    size: int,
) -> dict[str, float]:
    r"""Return the bits per character of a unigram and a bigram model.

    The unigram model counts every character once more than it occurs,
    ``p(b) = (n(b) + 1) / (N + V)``. The bigram model adds ``V`` imagined characters
    that are distributed as in the unigram model,
    ``p(b | a) = (n(a, b) + V p(b)) / (n(a) + V)``, so that what was never seen after
    ``a`` is not impossible (Dirichlet smoothing, MacKay & Peto 1995). Like the network
    they score every character but the first.

    Args:
        train: the training text as numbers below ``size``, at least two of them.
        held_out: the text to score, of at least two characters.
        size: V, the number of known characters, the unknown one included.

    Returns:
        ``unigram_bits_per_char`` and ``bigram_bits_per_char``.

    Example:
        >>> text = np.array([0, 1, 0, 1, 0, 1])
        >>> round(ngram_baselines(text, text, 2)["unigram_bits_per_char"], 3)
        1.0
    """
    with announced("counting pairs", len(train), "characters") as work:
        single, pairs = np.zeros(size, np.int64), _Pairs(size)
        for part in _parts(train):
            single += np.bincount(part[:-1], minlength=size)
            pairs.add(_pairs(part, size))
            work.done += len(part) - 1
    last = int(np.asarray(train[-1:])[0])
    unigram = (single + (np.arange(size) == last) + 1) / (len(train) + size)
    unigram_bits = bigram_bits = 0.0
    for part in _parts(held_out):
        before, after = part[:-1], part[1:]
        seen = pairs.counts(_pairs(part, size))
        bigram = (seen + size * unigram[after]) / (single[before] + size)
        unigram_bits += _bits(unigram[after])
        bigram_bits += _bits(bigram)
    count = len(held_out) - 1
    return {
        "unigram_bits_per_char": unigram_bits / count,
        "bigram_bits_per_char": bigram_bits / count,
    }


class _Pairs:
    """How often each pair of characters was seen.

    An alphabet may have thousands of characters: up to `DENSE` of them every pair has a
    counter, and above only pairs that occur have one.
    """

    def __init__(self, size: int):
        self.size, self.is_dense = size, size <= DENSE
        self.known = np.zeros(0, np.int64)
        self.seen = np.zeros(size * size if self.is_dense else 0, np.int64)

    def add(self, pairs: Int[np.ndarray, " n"]) -> None:
        """Count more pairs."""
        if self.size <= FEW:
            self.seen += np.bincount(pairs, minlength=self.size**2)
            return
        found, counts = np.unique(pairs, return_counts=True)
        if self.is_dense:
            self.seen[found] += counts
            return
        both = np.concatenate([self.known, found])
        self.known, place = np.unique(both, return_inverse=True)
        weights = np.concatenate([self.seen, counts])
        self.seen = np.bincount(place, weights).astype(np.int64)

    def counts(self, pairs: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return how often each of these pairs was seen."""
        if self.is_dense:
            return self.seen[pairs]
        place = np.minimum(np.searchsorted(self.known, pairs), len(self.known) - 1)
        return np.where(self.known[place] == pairs, self.seen[place], 0)


def _parts(text: np.ndarray | Tokens) -> Iterator[Int[np.ndarray, " n"]]:
    """Yield parts of a text, each with the first character of the next one."""
    for begin in range(0, len(text) - 1, PART):
        yield text[begin : begin + PART + 1]


def _pairs(text: np.ndarray, size: int) -> np.ndarray:
    """Return a number for each pair of neighboring characters."""
    return text[:-1].astype(np.int64) * size + text[1:]


def _bits(probabilities: np.ndarray) -> float:
    """Return the number of bits that events of these probabilities cost."""
    return float(-np.log2(probabilities).sum())
