"""Texts as numbers of their characters: in memory, or mapped from a file.

The file of a large text is made once, in the folder `cache_folder`, and found again by
the SHA-256 of the text. It holds nothing but the numbers, of 1, 2 or 4 bytes; beside it
stands a JSON file with the characters and their counts, which is written last. So a
program that is killed leaves nothing that could be mistaken for a whole file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, Integer

from ...training import InputError
from ...training.announced import announced
from .characters import PIECE, Alphabet, NotUTF8, dtype_for, numbers_of
from .file_kinds import why_file_is_not_text, why_not_text

try:
    import fcntl
except ImportError:  # Windows, where two processes may make the same file at once
    fcntl = None  # type: ignore[assignment]

FORMAT = "jaxrnn tokens 1"
LARGE = 20_000_000  # the number of bytes above which a text is mapped from a file
MB = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class CodedText:
    """A text as numbers of its own characters.

    Attributes:
        codes: the numbers, ``(N,)``, in memory or mapped from a file.
        characters: the character of each number.
        counts: how often each occurs, ``(K,)``.
        digest: the SHA-256 of the text as UTF-8.
        file: the file that ``codes`` are mapped from, or None in memory.
    """

    codes: Integer[np.ndarray, " N"]
    characters: str
    counts: Int[np.ndarray, " K"]
    digest: str
    file: pathlib.Path | None = None

    def __len__(self) -> int:
        return len(self.codes)


def cache_folder() -> pathlib.Path:
    """Return the folder of files that can be made again.

    It is ``JAXRNN_CACHE`` of the environment, or ``jaxrnn`` in the user's folder for
    caches, which ``XDG_CACHE_HOME`` may name.
    """
    if named := os.environ.get("JAXRNN_CACHE"):
        return pathlib.Path(named).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(caches) / "jaxrnn"


def coded_bytes(raw: bytes, source: str) -> CodedText:
    """Return the numbers of a text that is in memory as UTF-8.

    Args:
        raw: the text.
        source: its name, for error messages.

    Raises:
        InputError: if it is not UTF-8.
    """
    alphabet, parts = Alphabet(), []
    try:
        for _, numbers in numbers_of(io.BytesIO(raw).read, alphabet):
            parts.append(numbers.astype(dtype_for(len(alphabet.counts))))
    except NotUTF8 as error:
        raise InputError(why_not_text(source, raw, error.position)) from None
    dtype = dtype_for(len(alphabet.counts))
    codes = np.concatenate([np.zeros(0, dtype), *parts])
    digest = hashlib.sha256(raw).hexdigest()
    return CodedText(codes, alphabet.characters, alphabet.counts, digest)


def coded_file(path: pathlib.Path) -> CodedText:
    """Return the numbers of a text file, mapped from a file that is made once.

    Raises:
        InputError: if the file is not UTF-8, or the folder of the cache cannot be
            written.
        OSError: if the file cannot be read.
    """
    folder, name, size = cache_folder() / "tokens", path.name, path.stat().st_size
    with announced(f"reading {name}", size / MB, "MB") as work:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                digest.update(piece)
                work.done += len(piece) / MB
    key = digest.hexdigest()
    if (found := _mapped(folder, key)) is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f"{key}.lock", name) as is_alone:
            # Another process may have made it in the meantime.
            if _mapped(folder, key) is None:
                if is_alone:
                    _remove_parts(folder, key)
                _make(path, folder, key)
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename == str(path):
            raise
        raise InputError(
            f"{folder} cannot be written: {os.strerror(error.errno)}; it takes the "
            f"characters of {name} as numbers, about {size / MB:,.0f} MB: make room, "
            f"or name another folder in the environment, JAXRNN_CACHE=FOLDER"
        ) from None
    found = _mapped(folder, key)
    if found is None:
        raise InputError(f"{path} has changed while it was read: try again")
    return found


_NO_ROOM = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EFBIG, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP),
)


def _mapped(folder: pathlib.Path, key: str) -> CodedText | None:
    """Return the text of a key, if its files are there and whole."""
    tokens = folder / f"{key}.tokens"
    try:
        about = json.loads((folder / f"{key}.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            return None
        dtype = np.dtype(about["dtype"])
        if tokens.stat().st_size != about["length"] * dtype.itemsize:
            return None
        counts, characters = np.array(about["counts"], np.int64), about["characters"]
        if counts.shape != (len(characters),) or counts.sum() != about["length"]:
            return None
        codes = np.memmap(tokens, dtype, "r").view(np.ndarray)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return CodedText(codes, characters, counts, key, tokens)


def _make(path: pathlib.Path, folder: pathlib.Path, key: str) -> None:
    """Write the files of a text; those of a text with another key are not written."""
    part = _part(folder / f"{key}.tokens")
    alphabet, digest, dtype = Alphabet(), hashlib.sha256(), dtype_for(0)
    size = path.stat().st_size / MB
    length = 0
    try:
        with (
            announced(f"numbering the characters of {path.name}", size, "MB") as work,
            path.open("rb") as file,
            part.open("w+b") as out,
        ):

            def read(count: int) -> bytes:
                raw = file.read(count)
                digest.update(raw)
                return raw

            for position, numbers in numbers_of(read, alphabet):
                if (wider := dtype_for(len(alphabet.counts))) != dtype:
                    _widen(out, length, dtype, wider)
                    dtype = wider
                out.write(numbers.astype(dtype).data)
                length += len(numbers)
                work.done = position / MB
            out.flush()
            os.fsync(out.fileno())
        about = {
            "format": FORMAT,
            "text": path.name,
            "length": length,
            "dtype": dtype.str,
            "characters": alphabet.characters,
            "counts": alphabet.counts.tolist(),
        }
        if digest.hexdigest() == key:
            os.replace(part, folder / f"{key}.tokens")
            _write(folder / f"{key}.json", json.dumps(about) + "\n")
    except NotUTF8 as error:
        reason = why_file_is_not_text(str(path), error.position)
        raise InputError(reason) from None
    finally:
        part.unlink(missing_ok=True)


def _part(path: pathlib.Path) -> pathlib.Path:
    """Return a file name for what is not whole yet, which no other process uses."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")


def _remove_parts(folder: pathlib.Path, key: str) -> None:
    """Remove what processes left that were killed while they made a file."""
    for left_over in folder.glob(f"{key}.*.part"):
        left_over.unlink(missing_ok=True)


def _write(path: pathlib.Path, text: str) -> None:
    """Write a file atomically, also where several processes do so at once."""
    part = _part(path)
    try:
        with part.open("w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _widen(out: BinaryIO, length: int, old: np.dtype, new: np.dtype) -> None:
    """Rewrite the numbers of a file with more bytes each, from the last to the first.

    A number is never overwritten before it is read, because every one moves back.
    """
    out.flush()
    for begin in reversed(range(0, length, PIECE)):
        out.seek(begin * old.itemsize)
        count = min(PIECE, length - begin)
        numbers = np.frombuffer(out.read(count * old.itemsize), old)
        out.seek(begin * new.itemsize)
        out.write(numbers.astype(new).data)
    out.seek(length * new.itemsize)


@contextlib.contextmanager
def _alone(lock: pathlib.Path, name: str) -> Iterator[bool]:
    """Wait until no other process makes the same files.

    Yields:
        Whether that is certain: not everywhere can files be locked.
    """
    if fcntl is None:
        yield False
        return
    with lock.open("w") as file:
        is_alone = False
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with announced(f"waiting for another process that reads {name}"):
                    fcntl.flock(file, fcntl.LOCK_EX)
            is_alone = True
        yield is_alone


def remembered(key: tuple[Any, ...], compute: Callable[[], str]) -> str:
    """Return a text that depends on a key alone, computed once.

    Args:
        key: what it depends on, as JSON.
        compute: returns the text; it is called where the cache does not have it.
    """
    name = hashlib.sha256(json.dumps([FORMAT, *key]).encode()).hexdigest()
    file = cache_folder() / "tokens" / f"{name}.text"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if text := file.read_text(encoding="utf-8"):
            return text
    text = compute()
    with contextlib.suppress(OSError):
        _write(file, text)
    return text
