"""Batches of sequences of similar length: little padding and few shapes to compile.

Every batch is determined by its number alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int


class Rows(NamedTuple):
    """The examples of a batch, -1 for an empty row, and the length of their padding."""

    rows: Int[np.ndarray, " B"]
    width: int


def padded(
    sequences: Sequence[Any], rows: Rows, fill: int
) -> tuple[Int[np.ndarray, "B W"], Int[np.ndarray, " B"]]:
    """Pad the token sequences of a batch to its width; also return their lengths.

    Empty rows contain only ``fill``.
    """
    tokens, lengths = (
        np.full((len(rows.rows), rows.width), fill, np.int32),
        np.zeros(len(rows.rows), np.int32),
    )
    for i, row in enumerate(rows.rows):
        if row >= 0:
            lengths[i] = len(sequences[row])
            tokens[i, : lengths[i]] = sequences[row]
    return tokens, lengths


def powers_of_two(lengths: Iterable[int], least: int) -> Int[np.ndarray, " N"]:
    """Round lengths up to powers of two, at least ``least``.

    So only few shapes are compiled.
    """
    return 2 ** np.ceil(np.log2([max(length, least) for length in lengths])).astype(int)


def widths_for(longest: int, first: int = 8, coarse: bool = False) -> tuple[int, ...]:
    """Return the widths of buckets up to ``longest``.

    These are 8, 12, 16, 24, 32, 48, ..., or if ``coarse`` 8, 16, 32, ...
    """
    if coarse:
        return tuple(
            first * 2**i
            for i in range(max(-(-longest // first) - 1, 0).bit_length() + 1)
        )
    widths = [first]
    while widths[-1] < longest:
        power = 2 ** (len(widths) // 2) * first
        widths.append(power * 3 // 2 if len(widths) % 2 else power)
    return tuple(widths)


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
    """Batches of examples of similar length, in a new order in each epoch.

    ``buckets(step)`` depends on the seed and the step alone, so that a resumed run gets
    the same batches without saved state; a data loader with state, such as grain's, is
    not needed.

    Args:
        lengths: the length of every example, ``(N,)``.
        batch: the number of examples per batch.
        seed: the seed of the order.
        most: the largest number of steps of a batch, including padding; 0 for no limit.
            Batches of very long examples then hold fewer of them, at least one, so that
            memory does not grow with the longest example.
        first, coarse: see `widths_for`. With a small model, compiling one more width
            takes longer than processing some padding.
    """

    lengths: Int[np.ndarray, " N"]
    batch: int
    seed: int = 0
    most: int = 0
    first: int = 8
    coarse: bool = False

    @functools.cached_property
    def _members(self) -> list[tuple[int, np.ndarray]]:
        """Return the width and the examples of every nonempty bucket."""
        widths = np.array(
            widths_for(int(self.lengths.max(initial=1)), self.first, self.coarse)
        )
        which = np.searchsorted(widths, self.lengths)
        return [(int(widths[i]), np.flatnonzero(which == i)) for i in np.unique(which)]

    @functools.cached_property
    def per_epoch(self) -> int:
        """Return the number of batches that contain every example once."""
        return sum(
            -(-len(members) // self._size(width)) for width, members in self._members
        )

    def __call__(self, step: int) -> Rows:
        """Return the batch of an update, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        return self._epoch(epoch)[place]

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _epoch(self, epoch: int) -> list[Rows]:
        """Return the batches of an epoch in random order."""
        rng = np.random.default_rng([self.seed, epoch])
        batches = [
            rows
            for width, members in self._members
            for rows in self._cut(rng.permutation(members), width)
        ]
        return [batches[i] for i in rng.permutation(len(batches))]

    def in_order(self) -> list[Rows]:
        """Return batches with every example once, for evaluation."""
        return [
            rows
            for width, members in self._members
            for rows in self._cut(members, width)
        ]

    def _cut(self, members: np.ndarray, width: int) -> list[Rows]:
        """Cut the examples of one bucket into batches."""
        size = self._size(width)
        missing = -len(members) % size
        filled = np.concatenate([members, np.full(missing, -1, members.dtype)])
        return [Rows(part, width) for part in filled.reshape(-1, size)]

    def _size(self, width: int) -> int:
        """Return the number of examples per batch of a width."""
        return min(self.batch, max(self.most // width, 1)) if self.most else self.batch
