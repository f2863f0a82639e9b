"""Rows of texts in one piece of memory, in place of as many objects."""

from __future__ import annotations

import array
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from jaxtyping import Int

Row = TypeVar("Row")


class Packed(Sequence[Row], Generic[Row]):
    """Rows whose fields are texts, which is read as a list of them is.

    A row takes the bytes of its fields in UTF-8 and some more; it is made where it is
    asked for. Of fields with few different values, such as labels, each value is
    kept once, and a row has its number.

    Args:
        make: makes a row of its fields, such as a NamedTuple.
        rows: the fields of each row: first the long ones, then those of few different
            values.
        long: how many are long.

    Example:
        >>> rows = Packed(lambda *fields: fields, [("a text", "x"), ("another", "x")])
        >>> len(rows), rows[1], list(rows[:1])
        (2, ('another', 'x'), [('a text', 'x')])
    """

    def __init__(
        self, make: Callable[..., Row], rows: Iterable[Sequence[str]], long: int = 1
    ):
        self._make, self._long, self._texts = make, long, bytearray()
        ends, few = array.array("q", [0]), array.array("i")
        known: dict[tuple[str, ...], int] = {}
        for row in rows:
            for text in row[:long]:
                self._texts += text.encode("utf-8", "surrogatepass")
                ends.append(len(self._texts))
            few.append(known.setdefault(tuple(row[long:]), len(known)))
        self._ends, self._few = np.frombuffer(ends, np.int64), np.frombuffer(few, "i4")
        self._known = list(known)
        self._rows: Int[np.ndarray, " n"] | range = range(len(few))

    def taken(self, rows: Any) -> Packed[Row]:
        """Return some of the rows, in their order, without a copy of the texts.

        Args:
            rows: their numbers, or a slice.
        """
        some = type(self).__new__(type(self))
        some.__dict__.update(self.__dict__)
        some._rows = (
            self._rows[rows]
            if isinstance(rows, slice)
            else np.asarray(self._rows)[np.asarray(rows, np.int64)]
        )
        return some

    def made(self, make: Callable[..., Any]) -> Packed[Any]:
        """Return the same rows, made of their fields in another way."""
        some = self.taken(slice(None))
        some._make = make
        return some

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.taken(index)
        row = int(self._rows[index])
        ends = self._ends[row * self._long : (row + 1) * self._long + 1].tolist()
        texts = (
            self._texts[begin:end].decode("utf-8", "surrogatepass")
            for begin, end in itertools.pairwise(ends)
        )
        return self._make(*texts, *self._known[self._few[row]])

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class PackedSentences(Packed[Row]):
    """Sentences of words and their tags, each different one of which is kept once.

    It is read as a list of them is. A word with its tag takes eight bytes.

    Args:
        make: makes a sentence of a tuple of words and one of tags.
        sentences: the pairs of words and tags of each sentence.

    Example:
        >>> packed = PackedSentences(lambda *both: both, [[("a", "X"), ("b", "Y")]])
        >>> len(packed), packed[0]
        (1, (('a', 'b'), ('X', 'Y')))
    """

    def __init__(
        self,
        make: Callable[..., Row],
        sentences: Iterable[Iterable[tuple[str, str]]],
    ):
        texts: dict[str, int] = {}
        numbers, ends = array.array("i"), array.array("q", [0])
        for sentence in sentences:
            for pair in sentence:
                numbers.extend(texts.setdefault(text, len(texts)) for text in pair)
            ends.append(len(numbers))
        self._make, self._words = make, list(texts)
        self._numbers = np.frombuffer(numbers, np.int32)
        self._ends = np.frombuffer(ends, np.int64)
        self._texts = bytearray()  # by which `joined` knows the same rows
        self._rows = range(len(ends) - 1)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.taken(index)
        row = int(self._rows[index])
        pairs = self._numbers[self._ends[row] : self._ends[row + 1]].tolist()
        texts = [self._words[i] for i in pairs]
        return self._make(tuple(texts[::2]), tuple(texts[1::2]))


def take(examples: Sequence[Any], rows: Sequence[int]) -> Sequence[Any]:
    """Return some examples of a list, or of what is packed."""
    if isinstance(examples, Packed):
        return examples.taken(rows)
    return [examples[i] for i in rows]


def joined(first: Sequence[Any], second: Sequence[Any]) -> Sequence[Any]:
    """Return the examples of one list and then those of another.

    They stay packed where both are parts of the same rows.
    """
    if (
        isinstance(first, Packed)
        and isinstance(second, Packed)
        and first._texts is second._texts
    ):
        some = first.taken(slice(None))
        some._rows = np.concatenate([np.asarray(one._rows) for one in (first, second)])
        return some
    return [*first, *second]
