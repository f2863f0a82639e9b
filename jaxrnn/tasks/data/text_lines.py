"""Lines of a UTF-8 file, one after the other, with progress."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterator

from ...training import InputError
from ...training.announced import announced
from .characters import pieces_of
from .file_kinds import why_file_is_not_text
from .text import unreadable
from .token_files import MB


class _Clean(io.RawIOBase):
    r"""The bytes of a file with line ends of ``\n`` and without a byte-order mark."""

    def __init__(self, file: io.BufferedIOBase):
        self.pieces, self.rest, self.read_bytes = pieces_of(file.read), b"", 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Put the next bytes into a buffer."""
        while not self.rest:
            found = next(self.pieces, None)
            if found is None:
                return 0
            self.read_bytes = found[0] + len(found[1])
            self.rest = found[1].replace(b"\r\n", b"\n")
        count = min(len(buffer), len(self.rest))
        buffer[:count], self.rest = self.rest[:count], self.rest[count:]
        return count


def utf8_lines(
    source: str, wanted: str, embedded: str = "", ends: str = "\n"
) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, each with its end.

    They are those of `text.read_utf8`, but the file is not held in memory.

    Args:
        source: the path of the file.
        wanted: what ``--data`` must be, for error messages.
        embedded: the names of embedded texts, for error messages.
        ends: what ends a line; "" is what `csv.reader` asks for.

    Raises:
        InputError: as for `text.read_utf8`, where a line is asked for.
    """
    path, is_empty = pathlib.Path(source), True
    if path.is_dir():
        raise InputError(f"{source} is a directory; --data must be {wanted}")
    try:
        size = path.stat().st_size / MB
        with (
            announced(f"reading {path.name}", size, "MB") as work,
            path.open("rb") as f,
        ):
            clean = _Clean(f)
            text = io.TextIOWrapper(io.BufferedReader(clean), "utf-8", newline=ends)
            for line in text:
                is_empty = False
                work.done = clean.read_bytes / MB
                yield line
    except OSError as error:
        raise unreadable(source, error, wanted, embedded) from None
    except UnicodeDecodeError:
        raise InputError(why_file_is_not_text(source, _mistake(path))) from None
    if is_empty:
        raise InputError(f"{source} is empty; --data must be {wanted}")


def _mistake(path: pathlib.Path) -> int:
    """Return the position of the first byte of a file that is not UTF-8."""
    with path.open("rb") as file:
        for position, piece in pieces_of(file.read):
            try:
                piece.decode()
            except UnicodeDecodeError as error:
                return position + error.start
    return 0
