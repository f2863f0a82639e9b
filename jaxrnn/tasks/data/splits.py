"""Which examples are trained on, which choose the best parameters, and which are
scored in the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
}
NAMES |= {"test": "test", "held-out": "test", "held_out": "test"}


class Split(NamedTuple):
    """Disjoint lists of examples."""

    train: list[Any]
    validation: list[Any]
    test: list[Any]


def split_by(
    examples: Iterable[Any],
    key: Callable[[Any], str],
    shares: tuple[float, float] = (0.8, 0.1),
) -> Split:
    """By a hash of each example's key, so that those of one key stay together and a
    larger file keeps its split.

    ``shares`` are those of the training and of the validation part; the rest is the
    test part.
    """
    split = Split([], [], [])
    for example in examples:
        where = share_of(key(example))
        split[0 if where < shares[0] else 1 if where < sum(shares) else 2].append(
            example
        )
    return split


def by_name(named: Iterable[tuple[Any, str]]) -> Split:
    """Out of examples and the part that each is in; what names none is trained on."""
    split = Split([], [], [])
    for example, name in named:
        getattr(split, name or "train").append(example)
    return split


def with_validation(split: Split, key: Callable[[Any], str]) -> Split:
    """The split with a tenth of its training part, by a hash, to validate on."""
    again = split_by(split.train, key, (0.9, 0.1))
    return again._replace(test=split.test)


def share_of(key: str) -> float:
    """A number in [0, 1) that depends on nothing but the key."""
    return (
        int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest(), "big")
        / 2**48
    )


def unseen_labels(
    split: Split, labels_of: Callable[[Any], Iterable[str]]
) -> tuple[str, ...]:
    """A note that names the labels of the other parts that training never shows, if
    there are any.
    """
    shown, *others = (
        {label for example in part for label in labels_of(example)} for part in split
    )
    unknown = sorted(set().union(*others) - shown)
    return (
        (f"never shown in training, so always mistaken: {', '.join(unknown)}",)
        if unknown
        else ()
    )
