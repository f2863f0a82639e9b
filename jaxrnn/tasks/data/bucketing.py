"""Batches of sequences of like length: little padding, few shapes to compile, and
any batch from its number alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int


class Rows(NamedTuple):
    """Which examples a batch holds, -1 where it has one fewer, and to how many steps
    they are padded.
    """

    rows: Int[np.ndarray, " B"]
    width: int


def padded(
    sequences: Sequence[Any], rows: Rows, fill: int
) -> tuple[Int[np.ndarray, "B W"], Int[np.ndarray, " B"]]:
    """The numbered sequences of a batch, filled up to its width, and their lengths;
    one that is not there is all ``fill``.
    """
    found, lengths = (
        np.full((len(rows.rows), rows.width), fill, np.int32),
        np.zeros(len(rows.rows), np.int32),
    )
    for i, row in enumerate(rows.rows):
        if row >= 0:
            lengths[i] = len(sequences[row])
            found[i, : lengths[i]] = sequences[row]
    return found, lengths


def powers_of_two(lengths: Iterable[int], least: int) -> Int[np.ndarray, " N"]:
    """Lengths rounded up to a power of two, ``least`` at least, so that few shapes
    are compiled.
    """
    return 2 ** np.ceil(np.log2([max(length, least) for length in lengths])).astype(int)


def widths_for(longest: int, first: int = 8, coarse: bool = False) -> tuple[int, ...]:
    """Widths of buckets up to ``longest``: 8, 12, 16, 24, 32, 48, ..., or where they
    are ``coarse`` 8, 16, 32, ...
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
    """Examples by length, ``batch`` at a time, each epoch in an order of its own.

    ``buckets(step)`` depends on the seed and the step alone: a resumed run needs
    nothing saved to see the same batches, so there is no data loader with a state, such
    as grain's, here.

    ``most``, unless 0, bounds the steps of a batch, padding counted in: batches of very
    long examples hold fewer, at least one, so that memory does not grow with the
    longest. ``first`` and ``coarse`` (see `widths_for`) are for small models: to
    compile for one more width takes longer than to walk over some padding.
    """

    lengths: Int[np.ndarray, " N"]
    batch: int
    seed: int = 0
    most: int = 0
    first: int = 8
    coarse: bool = False

    @functools.cached_property
    def _members(self) -> list[tuple[int, np.ndarray]]:
        """Width and examples of every bucket that has any."""
        widths = np.array(
            widths_for(int(self.lengths.max(initial=1)), self.first, self.coarse)
        )
        which = np.searchsorted(widths, self.lengths)
        return [(int(widths[i]), np.flatnonzero(which == i)) for i in np.unique(which)]

    @functools.cached_property
    def per_epoch(self) -> int:
        """Batches that show every example once."""
        return sum(
            -(-len(members) // self._size(width)) for width, members in self._members
        )

    def __call__(self, step: int) -> Rows:
        """The batch of an update, counted from 0."""
        epoch, place = divmod(step, self.per_epoch)
        return self._epoch(epoch)[place]

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _epoch(self, epoch: int) -> list[Rows]:
        rng = np.random.default_rng([self.seed, epoch])
        found = [
            rows
            for width, members in self._members
            for rows in self._cut(rng.permutation(members), width)
        ]
        return [found[i] for i in rng.permutation(len(found))]

    def in_order(self) -> list[Rows]:
        """Every example once, for evaluation."""
        return [
            rows
            for width, members in self._members
            for rows in self._cut(members, width)
        ]

    def _cut(self, members: np.ndarray, width: int) -> list[Rows]:
        size = self._size(width)
        missing = -len(members) % size
        filled = np.concatenate([members, np.full(missing, -1, members.dtype)])
        return [Rows(part, width) for part in filled.reshape(-1, size)]

    def _size(self, width: int) -> int:
        return min(self.batch, max(self.most // width, 1)) if self.most else self.batch
