"""Characters of a text as numbers, piece by piece, at the speed of NumPy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Int

PIECE = 1 << 20  # the number of bytes that are decoded at a time
MARK = b"\xef\xbb\xbf"  # the byte-order mark that some programs begin a file with


class Alphabet:
    """The characters of a text, numbered in the order in which they are first seen.

    So a text is numbered in one pass, whatever it contains.

    Attributes:
        counts: how often each of them was seen, ``(K,)``.
    """

    def __init__(self) -> None:
        self._numbers = np.full(0x110000, -1, np.int32)
        self._codes: list[int] = []
        self.counts = np.zeros(0, np.int64)

    @property
    def characters(self) -> str:
        """Return the characters in the order of their numbers."""
        return "".join(map(chr, self._codes))

    def encode(self, piece: bytes) -> Int[np.ndarray, " n"]:
        r"""Number the characters of a piece of UTF-8, with line ends of ``\n``.

        Raises:
            UnicodeDecodeError: if it is not UTF-8.
        """
        clean = piece.replace(b"\r\n", b"\n")
        if clean.isascii():
            codes = np.frombuffer(clean, np.uint8)
        else:
            try:
                text = clean.decode()
            except UnicodeDecodeError:
                text = piece.decode()  # fails at the position in the file
            codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        numbers = self._numbers[codes]
        if (numbers < 0).any():
            values, places = np.unique(codes[numbers < 0], return_index=True)
            new = values[np.argsort(places)]
            self._numbers[new] = len(self._codes) + np.arange(len(new))
            self._codes += new.tolist()
            numbers = self._numbers[codes]
        counts = np.bincount(numbers, minlength=len(self._codes))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        return numbers


def pieces_of(
    read: Callable[[int], bytes], size: int = PIECE
) -> Iterator[tuple[int, bytes]]:
    r"""Yield a file in pieces that cut no character and no ``\r\n`` in two.

    A byte-order mark at its beginning is left out.

    Args:
        read: returns at most so many of the next bytes, none at the end.
        size: about how many bytes a piece has.

    Yields:
        The position of the piece in the file, and its bytes.
    """
    rest, position = b"", 0
    while raw := read(size):
        piece = rest + raw
        if position == 0:
            if len(piece) < len(MARK) and MARK.startswith(piece):
                rest = piece
                continue
            if piece.startswith(MARK):
                position, piece = len(MARK), piece[len(MARK) :]
        cut = len(piece) - _unfinished(piece)
        if cut:
            yield position, piece[:cut]
        position, rest = position + cut, piece[cut:]
    if rest:
        yield position, rest


class NotUTF8(ValueError):
    """Raised for bytes that are not UTF-8.

    Attributes:
        position: the position of the first of them in the file.
    """

    def __init__(self, position: int):
        super().__init__(f"byte {position} is not UTF-8")
        self.position = position


def numbers_of(
    read: Callable[[int], bytes], alphabet: Alphabet
) -> Iterator[tuple[int, Int[np.ndarray, " n"]]]:
    """Yield the characters of a file as numbers of an alphabet that grows.

    Args:
        read: returns at most so many of the next bytes, none at the end.
        alphabet: the characters so far.

    Yields:
        The number of bytes that have been read, and the next numbers.

    Raises:
        NotUTF8: if the file is not UTF-8.
    """
    for position, piece in pieces_of(read):
        try:
            numbers = alphabet.encode(piece)
        except UnicodeDecodeError as error:
            raise NotUTF8(position + error.start) from None
        yield position + len(piece), numbers


def _unfinished(piece: bytes) -> int:
    """Return the number of last bytes that may belong together with what follows."""
    if piece.endswith(b"\r"):
        return 1
    for back, byte in enumerate(reversed(piece[-3:]), 1):
        if byte >= 0xC0:  # the first byte of a character of 2, 3 or 4 bytes
            length = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            return back if length > back else 0
        if byte < 0x80:
            return 0
    return 0


def dtype_for(symbols: int) -> np.dtype:
    """Return the smallest dtype for so many numbers: 1, 2 or 4 bytes."""
    if symbols <= 1 << 8:
        return np.dtype("<u1")
    return np.dtype("<u2") if symbols <= 1 << 16 else np.dtype("<u4")
