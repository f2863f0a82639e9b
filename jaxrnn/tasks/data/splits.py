"""Splits of examples into a training, a validation and a test part."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from .packed import take

NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
}
NAMES |= {"test": "test", "held-out": "test", "held_out": "test"}


class Split(NamedTuple):
    """Disjoint lists of examples, or examples that are packed."""

    train: Sequence[Any]
    validation: Sequence[Any]
    test: Sequence[Any]


def sizes(split: Split, what: str) -> str:
    """Return the sizes of the parts in words.

    Example:
        >>> sizes(Split(["a", "b"], ["c"], []), "texts")
        '2 texts to train on, 1 for validation, 0 for the test'
    """
    train, validation, test = (f"{len(part):,}" for part in split)
    return (
        f"{train} {what} to train on, {validation} for validation, {test} for the test"
    )


def split_by(
    examples: Iterable[Any],
    key: Callable[[Any], str],
    shares: tuple[float, float] = (0.8, 0.1),
) -> Split:
    """Split examples by a hash of their keys.

    Examples with equal keys are in the same part, and an example stays in its part when
    the file grows. ``shares`` are those of the training and the validation part; the
    rest is the test part.
    """
    if not isinstance(examples, Sequence):
        examples = list(examples)
    rows = array.array("q"), array.array("q"), array.array("q")
    for i, example in enumerate(examples):
        position = share_of(key(example))
        part = 0 if position < shares[0] else 1 if position < sum(shares) else 2
        rows[part].append(i)
    return Split(*(take(examples, part) for part in rows))


def by_name(examples: Sequence[Any], names: Iterable[str]) -> Split:
    """Split examples by the names of their parts; "" is the training part."""
    rows = {name: array.array("q") for name in Split._fields}
    for i, name in enumerate(names):
        rows[name or "train"].append(i)
    return Split(*(take(examples, part) for part in rows.values()))


def with_validation(split: Split, key: Callable[[Any], str]) -> Split:
    """Move a tenth of the training part, by a hash, to the validation part."""
    parts = split_by(split.train, key, (0.9, 0.1))
    return parts._replace(test=split.test)


def spread(examples: Sequence[Any], most: int) -> Sequence[Any]:
    """Return at most so many examples, equally far from each other; all for 0.

    Example:
        >>> list(spread(range(10), 4)), list(spread(range(3), 0))
        ([0, 3, 6, 9], [0, 1, 2])
    """
    return examples[:: max(-(-len(examples) // most), 1)] if most else examples


def share_of(key: str) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    return (
        int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest(), "big")
        / 2**48
    )


def unseen_labels(
    split: Split, labels_of: Callable[[Any], Iterable[str]]
) -> tuple[str, ...]:
    """Return a note on labels that are missing in the training part, if any."""
    trained, *others = (
        {label for example in part for label in labels_of(example)} for part in split
    )
    unknown = sorted(set().union(*others) - trained)
    return (
        (f"not in the training part, so never predicted: {', '.join(unknown)}",)
        if unknown
        else ()
    )
