"""What a file is that cannot be read as text, and what to do about it."""

from __future__ import annotations

import pathlib

BEGIN = 4096  # the number of first bytes by which a file is told
STRANGE = 0.05  # the share of control characters from which a file is no text
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\f\r\x1b") | {127}

# The first bytes of kinds of files that are given by mistake.
_KINDS = {
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a ZIP archive, as .xlsx and .docx files are",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x7fELF": "a program",
}
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_UTF_32 = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")


def why_not_text(source: str, raw: bytes, position: int) -> str:
    """Return what a file is that is not UTF-8, and how to convert it.

    Args:
        source: the path of the file.
        raw: its contents.
        position: the position of the first byte that is not UTF-8.

    Returns:
        A sentence that begins with the path.

    Example:
        >>> why_not_text("a.txt", b"\\x89PNG\\r\\n\\x1a\\n...", 0)
        'a.txt is a PNG image, and not text'
    """
    line = raw[:position].count(b"\n") + 1
    return _why(source, raw[:BEGIN], line, position, raw[position])


def why_file_is_not_text(source: str, position: int) -> str:
    """Return what `why_not_text` does, without the file in memory."""
    left, lines = position, 1
    with pathlib.Path(source).open("rb") as file:
        begin = file.read(BEGIN)
        file.seek(0)
        while piece := file.read(min(left, 1 << 20)):
            lines += piece.count(b"\n")
            left -= len(piece)
        return _why(source, begin, lines, position, file.read(1)[0])


def _why(source: str, begin: bytes, line: int, position: int, byte: int) -> str:
    """Return what a file with these first bytes is, and its line that is not UTF-8."""
    for first, kind in _KINDS.items():
        if begin.startswith(first):
            return f"{source} is {kind}, and not text"
    for begins, name in ((_UTF_32, "UTF-32"), (_UTF_16, "UTF-16")):
        if begin.startswith(begins):
            return (
                f"{source} is {name}, as Windows programs write it, and not UTF-8; "
                f"convert the file: iconv -f {name.lower()} -t utf-8 {source} > "
                f"NEW_FILE"
            )
    if b"\x00" in begin:
        return (
            f"{source} is not text: it has a zero byte at position {begin.index(0)} "
            f"and is not UTF-8"
        )
    if sum(value in _CONTROL for value in begin) > STRANGE * len(begin):
        return (
            f"{source} is not text: many of its bytes are control characters, and byte "
            f"{position} (0x{byte:02x}) is not UTF-8"
        )
    return (
        f"{source}:{line}: byte {position} (0x{byte:02x}) is not UTF-8; "
        f"convert the file, e.g. with iconv -f latin1 -t utf-8"
    )
