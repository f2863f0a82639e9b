"""Metrics of generated texts: exact match, BLEU, chrF (by sacrebleu) and word F1."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from ...training import InputError


def sacrebleu() -> Any:
    """Import sacrebleu, or raise an error that says how to install it."""
    try:
        import sacrebleu as package
    except ImportError:
        raise InputError(
            "BLEU and chrF need the package sacrebleu: pip install 'jaxrnn[cli]'"
        ) from None
    return package


def text_scores(written: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Return exact match, BLEU and chrF of the corpus.

    ``exact_match`` is in [0, 1]; ``bleu`` (Papineni et al. 2002) and ``chrf`` (Popović
    2015) are in [0, 100].
    """
    exact = sum(a == b for a, b in zip(written, wanted, strict=True)) / len(wanted)
    package = sacrebleu()
    bleu = package.corpus_bleu(list(written), [list(wanted)], force=True).score
    return {
        "exact_match": exact,
        "bleu": bleu,
        "chrf": package.corpus_chrf(list(written), [list(wanted)]).score,
    }


def word_f1(written: Sequence[str], wanted: Sequence[str]) -> float:
    """Return F1 of the words, as bags, over the corpus."""
    shared = total = 0
    for a, b in zip(written, wanted, strict=True):
        one, other = collections.Counter(a.split()), collections.Counter(b.split())
        shared, total = (
            shared + (one & other).total(),
            total + one.total() + other.total(),
        )
    return 2 * shared / total if total else 0.0
