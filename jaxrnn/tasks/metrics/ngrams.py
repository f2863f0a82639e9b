"""The bits per character of models that look at no or one character before."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def ngram_baselines(
    train: Int[np.ndarray, " N"], held_out: Int[np.ndarray, " M"], size: int
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
    unigram = (np.bincount(train, minlength=size) + 1) / (len(train) + size)
    # Only pairs that occur are stored: an alphabet may have thousands of characters.
    pairs, counts = np.unique(_pairs(train, size), return_counts=True)
    wanted = _pairs(held_out, size)
    place = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
    seen = np.where(pairs[place] == wanted, counts[place], 0)
    before = np.bincount(train[:-1], minlength=size)[held_out[:-1]]
    bigram = (seen + size * unigram[held_out[1:]]) / (before + size)
    return {
        "unigram_bits_per_char": _bits(unigram[held_out[1:]]),
        "bigram_bits_per_char": _bits(bigram),
    }


def _pairs(text: np.ndarray, size: int) -> np.ndarray:
    """Return a number for each pair of neighbouring characters."""
    return text[:-1].astype(np.int64) * size + text[1:]


def _bits(probabilities: np.ndarray) -> float:
    """Return the mean number of bits that events of these probabilities cost."""
    return float(-np.log2(probabilities).mean())
